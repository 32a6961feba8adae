"""Detectors on disk: rebuilt from plain named values, nothing in a file acts."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.folder import (
    Manifest,
    load_manifest,
    load_weights,
    no_larger_than_its_files,
    plain_arguments,
)
from tenfold.systems.cross_modal_detector.augmentation.images import ImageAugmentation
from tenfold.systems.cross_modal_detector.augmentation.masking import MissingPolicy
from tenfold.systems.cross_modal_detector.augmentation.pipeline import Pipeline, testing_batch
from tenfold.systems.cross_modal_detector.method import Detections, detect
from tenfold.systems.cross_modal_detector.networks.build import build_small
from tenfold.systems.cross_modal_detector.networks.detector import CrossModalDetector
from tenfold.systems.cross_modal_detector.networks.published import build_published
from tenfold.systems.cross_modal_detector.sets.frames import Frame, Missing, Sample, read_frame

SYSTEM = "cross-modal-detector"
BUILDERS: dict[str, Callable[..., CrossModalDetector]] = {"small": build_small, "published": build_published}


@dataclass
class ServedDetector:
    """A detector with the one way in which its samples are prepared; call it with frames or samples.

    Attributes:
        detector: in eval mode.
        classes: names of its labels.
        image_size: height and width to which images are brought.
        sweeps: earlier clouds that a frame is read with.
        missing: what is done about sensors that are not there.
        most: boxes of a sample.
    """

    detector: CrossModalDetector
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    sweeps: int = 0
    missing: MissingPolicy = "drop"
    most: int = 300

    @property
    def pipeline(self) -> Pipeline:
        """How samples are prepared."""
        return Pipeline(tuple(self.detector.area.tolist()), ImageAugmentation(self.image_size))

    def read(self, frame: Frame, missing_files: Missing = "refuse") -> Sample:
        """A frame's sensors, of those that the detector has."""
        return read_frame(
            frame,
            self.classes,
            sweeps=self.sweeps,
            missing=missing_files,
            images=self.detector.image is not None,
            lidar=self.detector.lidar is not None,
        )

    def __call__(
        self, frames: Sequence[Frame | Sample], *, missing: MissingPolicy | None = None, batch_size: int = 16
    ) -> list[Detections]:
        """Detections of each.

        Args:
            frames: frames or samples, with one number of cameras.
            missing: another policy than the detector's own.
            batch_size: samples at once.

        Raises:
            UserError: a frame cannot be read, or has no sensor that the detector can use.
        """
        samples = [frame if isinstance(frame, Sample) else self.read(frame) for frame in frames]
        device = self.detector.area.device
        found: list[Detections] = []
        for start in range(0, len(samples), batch_size):
            batch = testing_batch(samples[start : start + batch_size], self.pipeline, missing or self.missing)
            found += detect(self.detector, batch.sensors.to(device), most=self.most)
        return found


def extra_of(
    classes: Sequence[str], image_size: Sequence[int], sweeps: int, missing: MissingPolicy, **more: Any
) -> dict[str, Any]:
    """What a manifest holds beside the network's arguments."""
    return {"classes": list(classes), "image_size": list(image_size), "sweeps": sweeps, "missing": missing, **more}


def load_detector(folder: str | Path) -> tuple[CrossModalDetector, Manifest]:
    """Rebuild the detector of a run or model folder, in eval mode.

    Raises:
        UserError: the folder holds no detector of this system, or weights that are not its own.
    """
    manifest = load_manifest(folder, SYSTEM)
    if manifest.builder not in BUILDERS:
        raise UserError(f"{folder} holds a network {printable(manifest.builder)!r}, which is none of {SYSTEM}")
    build = BUILDERS[manifest.builder]
    plain_arguments(manifest.arguments, folder)
    known = inspect.signature(build).parameters
    unknown = [name for name in manifest.arguments if name not in known]
    if unknown:
        raise UserError(f"{folder}: the manifest's argument {printable(unknown[0])!r} is none of a detector's")
    try:
        with no_larger_than_its_files(folder, manifest.arguments):
            detector = build(**manifest.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: the manifest's arguments are not right: {error}") from error
    load_weights(detector, folder)
    return detector.eval(), manifest


def served(detector: CrossModalDetector, manifest: Manifest) -> ServedDetector:
    """The detector with what its manifest says of samples.

    Raises:
        UserError: the manifest does not say it.
    """
    extra = manifest.extra
    try:
        height, width = map(int, extra["image_size"])
        classes = tuple(map(str, extra["classes"]))
        sweeps, missing = int(extra["sweeps"]), extra["missing"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the manifest does not say how samples are prepared: {error}") from error
    if len(classes) != detector.classes or missing not in ("zero", "drop") or not 0 < height * width < 2**26:
        raise UserError("the manifest's classes, image size or policy are not a detector's")
    return ServedDetector(detector, classes, (height, width), sweeps, missing)


def load(folder: str | Path, *, factory: str | None = None) -> ServedDetector:
    """The served detector of a run or model folder, ready to call with frames.

    Args:
        folder: of the run or model.
        factory: detectors are built by name only; a factory is refused.

    Raises:
        UserError: the folder holds no detector of this system.
    """
    if factory is not None:
        raise UserError("detectors are built by name: --factory has no effect here")
    return served(*load_detector(folder))


def copy_weights(detector: nn.Module, start: CrossModalDetector, source: str) -> None:
    """Start a detector from another's weights, of the same shape.

    Raises:
        UserError: the shapes differ.
    """
    from tenfold.models.checkpoints import load_strictly

    with torch.no_grad():
        load_strictly(detector, start.state_dict(), source)
