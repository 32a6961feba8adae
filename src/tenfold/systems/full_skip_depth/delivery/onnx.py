"""One ONNX file for images of any size: RGB in [0, 1] in, metres out, normalization and range inside."""

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError, require
from tenfold.models.onnx import onnx_session


@dataclass(frozen=True)
class DepthOnnx:
    """An ONNX file that gave PyTorch's answers.

    Attributes:
        path: the file.
        max_difference: largest difference from PyTorch over all checked sizes, in metres.
        sizes: ``(batch, height, width)`` that were checked.
    """

    path: Path
    max_difference: float
    sizes: tuple[tuple[int, int, int], ...]


class Served(nn.Module):
    """A depth network with its calibration, as it is delivered.

    Args:
        network: see ``FullSkipDepth``.
        scale: factor of its depth.
        shift: added to it, in metres.
    """

    def __init__(self, network: nn.Module, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.network, self.scale, self.shift = network, scale, shift

    def forward(self, images: Tensor, focal: Tensor | None = None) -> Tensor:
        """``(batch, 3, height, width)`` RGB in [0, 1] to ``(batch, 1, height, width)`` metres."""
        depth = self.network(images) if focal is None else self.network(images, focal)
        return depth if (self.scale, self.shift) == (1.0, 0.0) else depth * self.scale + self.shift


class OnnxDepth(nn.Module):
    """An exported file in the place of the network that it was made from.

    Args:
        file: made by ``export_depth_onnx``.

    Raises:
        UserError: onnxruntime is missing, or the file is none of depth.
    """

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        self.session = onnx_session(file)
        kept = self.session.get_modelmeta().custom_metadata_map
        self.names = [value.name for value in self.session.get_inputs()]
        if self.names not in (["images"], ["images", "focal"]):
            raise UserError(f"{file} takes {', '.join(self.names)}, not images: it is no depth network of this system")
        try:
            self.trained: list[int] | None = json.loads(kept.get("tenfold.trained_size", "null"))
        except ValueError as error:
            raise UserError(f"{file}: its trained size is not readable; export it again") from error

    def forward(self, images: Tensor, focal: Tensor | None = None) -> Tensor:
        """As the network: ``(batch, 3, height, width)`` in [0, 1] to ``(batch, 1, height, width)`` metres."""
        feeds = {"images": images.numpy()}
        if "focal" in self.names:
            if focal is None:
                raise UserError("this network rescales depth by the focal length: give it with --intrinsics '[f]'")
            feeds["focal"] = focal.to(torch.float32).numpy()
        try:
            return torch.from_numpy(self.session.run(None, feeds)[0])
        except Exception as error:  # onnxruntime's errors have no common class
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"the ONNX file does not take images of {tuple(images.shape)}: {reason}") from error


def export_depth_onnx(
    network: nn.Module,
    path: str | Path,
    *,
    size: tuple[int, int] = (480, 640),
    dynamic: bool = True,
    focal: bool = False,
    metadata: dict[str, str] | None = None,
    tolerance: float = 1e-4,
) -> DepthOnnx:
    """Export a network and compare onnxruntime's answers with PyTorch's at several sizes before the file is kept.

    Args:
        network: in eval mode.
        path: the file.
        size: ``(height, width)`` it is traced at; the only one where not ``dynamic``.
        dynamic: whether batch, height and width may change when it runs.
        focal: whether it has a second input, focal lengths ``(batch,)`` in pixels.
        metadata: kept in the file as text.
        tolerance: largest difference, relative to the largest depth.

    Raises:
        UserError: a package is missing, the network cannot be exported, or the answers differ; no file is left.
    """
    onnx = require("onnx", "onnx")
    path = Path(path)
    names = ["images", "focal"] if focal else ["images"]
    program = _program(network, _example(2, size, focal), names, dynamic)
    temporary = path.with_name(f".{path.name}.tmp")
    sizes = [(2, *size)]
    if dynamic:
        smaller = (max(33, size[0] * 3 // 4 + 5), max(33, size[1] // 2 + 3))  # odd ones, too
        sizes += [(1, *smaller), (1, *size)]
    try:
        program.save(str(temporary), include_initializers=True)
        if metadata:
            model = onnx.load(str(temporary))
            onnx.helper.set_model_props(model, metadata)
            onnx.save(model, str(temporary))
        session = onnx_session(temporary)
        worst = max(_difference(network, session, _example(n, (h, w), focal), names, tolerance) for n, h, w in sizes)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return DepthOnnx(path, worst, tuple(sizes))


def _example(batch: int, size: tuple[int, int], focal: bool) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, *size, generator=generator)
    return (images, torch.linspace(500, 700, batch)) if focal else (images,)


def _program(network: nn.Module, inputs: Sequence[Tensor], names: list[str], dynamic: bool) -> Any:
    require("onnxscript", "onnx")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    shapes = None
    if dynamic:
        batch = torch.export.Dim("batch", min=1)
        axes = {0: batch, 2: torch.export.Dim("height", min=33), 3: torch.export.Dim("width", min=33)}
        shapes = (axes, {0: batch}) if len(inputs) == 2 else (axes,)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                network,
                tuple(inputs),
                input_names=names,
                output_names=["depth"],
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many libraries
        cause = error.__cause__ or error
        first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        more = "; try one size with --dynamic false" if dynamic else ""
        raise UserError(f"the network cannot be exported to ONNX: {first[:160]}{more}") from error


def _difference(
    network: nn.Module, session: Any, inputs: Sequence[Tensor], names: list[str], tolerance: float
) -> float:
    with torch.no_grad():
        ours = network(*inputs)
    try:
        theirs = torch.from_numpy(session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0])
    except Exception as error:  # onnxruntime's errors have no common class
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"the ONNX file does not take {tuple(inputs[0].shape)} ({reason}): export one size with --dynamic false"
        ) from error
    difference = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
    if not difference <= tolerance * float(ours.abs().max()):
        raise UserError(
            f"the ONNX export was refused: at {tuple(inputs[0].shape)} it differs from PyTorch by {difference:.2g}"
        )
    return difference
