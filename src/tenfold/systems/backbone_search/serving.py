"""A delivered detector: loaded from a run, exported to ONNX with all that is needed to run it, asked about pictures."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold.errors import UserError
from tenfold.models.folder import load_manifest, load_weights, no_larger_than_its_files
from tenfold.models.onnx import OnnxExport, describe_onnx, export_onnx, onnx_session
from tenfold.systems.backbone_search.data.letterbox import letterbox
from tenfold.systems.backbone_search.detector.postprocess import Detections, postprocess, to_photo
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite
from tenfold.systems.backbone_search.objectives.latency import Detecting


class _Served:
    """A detector with its preprocessing and its suppression, whatever computes it."""

    extra: Mapping[str, Any]

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.extra["classes"])

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        """``(1, cells, 5 + classes)`` of ``YOLOXLite.detect`` for one letterboxed image ``(1, 3, height, width)``."""
        raise NotImplementedError

    def __call__(self, image: np.ndarray, confidence: float = 0.3, overlap: float = 0.65) -> Detections:
        """The same as ``detect``."""
        return self.detect(image, confidence, overlap)

    def detect(self, image: np.ndarray, confidence: float = 0.3, overlap: float = 0.65) -> Detections:
        """What is in a picture, in its own pixels.

        Args:
            image: ``(height, width, 3)`` uint8 RGB.
            confidence: least score.
            overlap: of two boxes of one class with more overlap the worse goes.
        """
        pixels, ratio = letterbox(image, self.extra["height"], self.extra["width"])
        most = int(self.extra.get("most_detections", 100))
        output = self.outputs(pixels[None].float())
        found = postprocess(output, confidence=confidence, overlap=overlap, most=most)[0]
        return to_photo(found, ratio, image.shape[:2])


@dataclass(frozen=True)
class ServedDetector(_Served):
    """A detector of PyTorch, ready to be called with a picture.

    Attributes:
        model: in eval mode.
        extra: classes, ids, input size, score rule.
    """

    model: YOLOXLite
    extra: Mapping[str, Any]

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        """See ``YOLOXLite.detect``."""
        with torch.inference_mode():
            return self.model.detect(images)


@dataclass(frozen=True)
class OnnxDetector(_Served):
    """An exported detector on onnxruntime, ready to be called with a picture.

    Attributes:
        session: of the file.
        extra: from the file's metadata.
    """

    session: Any
    extra: Mapping[str, Any]

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        """See ``YOLOXLite.detect``."""
        return torch.from_numpy(self.session.run(["output"], {"images": images.numpy()})[0])


def load_onnx(path: str | Path, threads: int = 1) -> OnnxDetector:
    """The detector of a file that ``export_detector`` wrote, float or INT8.

    Args:
        path: the file.
        threads: of onnxruntime.

    Raises:
        UserError: the file cannot be read, or does not carry along what it needs.
    """
    session = onnx_session(path, threads)
    told = session.get_modelmeta().custom_metadata_map
    try:
        height, width = (int(side) for side in told["size"].split("x"))
        classes = [str(name) for name in json.loads(told["classes"])]
        most = int(told.get("most_detections", 100))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} carries no classes and size along: export it again with tenfold") from error
    shapes = [list(session.get_inputs()[0].shape), session.get_outputs()[0].shape[-1]]
    if shapes != [[1, 3, height, width], 5 + len(classes)]:
        raise UserError(f"{path} says {height}x{width} and {len(classes)} classes, but its network has other shapes")
    return OnnxDetector(
        session, {"classes": classes, "height": height, "width": width, "most_detections": most, "score": told["score"]}
    )


def load(folder: str | Path, *, factory: str | None = None) -> ServedDetector:
    """The detector of a run, or of an imported model, ready to be called with a picture.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        factory: no detector here is made by code of the reader's, so none is allowed.

    Raises:
        UserError: the folder holds none, its weights are damaged, or its plan is out of range.
    """
    manifest = load_manifest(folder, "backbone-search")
    if factory is not None:
        raise UserError("detectors of backbone-search are plain plans: there is no --factory to allow")
    if manifest.builder != "yolox-lite" or set(manifest.arguments) != {"plan"}:
        raise UserError(f"{folder}: model.json names the builder {manifest.builder!r}, which is none of this system")
    plan = DetectorPlan.from_dict(manifest.arguments["plan"])
    extra = manifest.extra
    sides = [extra.get("height"), extra.get("width")]
    if any(not isinstance(side, int) or side % 32 or not 32 <= side <= 4096 for side in sides):
        raise UserError(f"{folder}: model.json gives no input size in multiples of 32")
    if not isinstance(extra.get("classes"), list) or len(extra["classes"]) != plan.num_classes:
        raise UserError(f"{folder}: model.json does not name the {plan.num_classes} classes of its network")
    with no_larger_than_its_files(folder, manifest.arguments):
        model = YOLOXLite(plan)
    load_weights(model, folder)
    return ServedDetector(model.eval(), extra)


def export_detector(model: YOLOXLite, path: Path, extra: Mapping[str, Any]) -> OnnxExport:
    """Write an ONNX file: ``images`` (BGR, 0 to 255, letterboxed) to ``output`` (boxes in pixels, probabilities).

    Classes, size, how pictures are prepared and how scores are made stand in its metadata.

    Args:
        model: the detector.
        path: the file.
        extra: see ``ServedDetector``.

    Raises:
        UserError: a package is missing, or onnxruntime's answers differ from PyTorch's; no file is left.
    """
    height, width = extra["height"], extra["width"]
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, height, width), generator=generator).float()
    done = export_onnx(
        Detecting(model).eval(), [image], path, input_names=["images"], output_names=["output"], tolerance=1e-4
    )
    describe_onnx(path, metadata_of(extra))
    return done


def metadata_of(extra: Mapping[str, Any]) -> dict[str, str]:
    """What an exported file says of itself."""
    height, width = extra["height"], extra["width"]
    return {
        "system": "backbone-search",
        "classes": json.dumps(list(extra["classes"])),
        "size": f"{height}x{width}",
        "input": "BGR, 0 to 255, scaled by min(height / h, width / w) into the top left corner, filled with 114",
        "output": "cells x (centre x, centre y, width, height in pixels of the input; objectness; classes)",
        "score": str(extra.get("score", "")),
        "most_detections": str(extra.get("most_detections", 100)),
    }


def draw_boxes(image: np.ndarray, found: Detections, classes: list[str]) -> Any:
    """A picture with boxes, names and scores, as a PIL image.

    Args:
        image: ``(height, width, 3)`` uint8 RGB.
        found: what was found.
        classes: names.
    """
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    size = max(10, min(image.shape[:2]) // 30)
    font = ImageFont.load_default(size)
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True):
        colour = _COLOURS[label % len(_COLOURS)]
        pen.rectangle(box, outline=colour, width=max(1, size // 8))
        pen.text((box[0] + 2, max(0.0, box[1] - size - 2)), f"{classes[label]} {score:.2f}", fill=colour, font=font)
    return picture


_COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000"]
