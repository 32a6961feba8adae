"""Average precision of the run's detectors, and what one test set alone says of their differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tenfold.arms import PairedDifference
from tenfold.systems.backbone_search.data.average_precision import average_precision, detect_all
from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages
from tenfold.systems.backbone_search.data.resampling import Matches, match, resampled_difference
from tenfold.systems.backbone_search.detector.yolox_lite import YOLOXLite
from tenfold.systems.backbone_search.experiment.problem import Problem
from tenfold.systems.backbone_search.mapping.batch_statistics import reestimate_batch_norm
from tenfold.systems.backbone_search.method import STATISTICS_BATCH, STATISTICS_IMAGES

_MATCHES = "matches.safetensors"


def reestimate(model: YOLOXLite, images: LetterboxedImages) -> None:
    """Batch statistics on training images as they are."""
    count = min(len(images), STATISTICS_IMAGES)
    batch = min(STATISTICS_BATCH, count)
    reestimate_batch_norm(
        model, (images[list(range(start, start + batch))].float() for start in range(0, count - batch + 1, batch))
    )


def measure(
    problem: Problem, model: YOLOXLite, images: LetterboxedImages, folder: Path | None = None
) -> dict[str, Any]:
    """Average precision of a detector on some images.

    Args:
        problem: of the run.
        model: the detector.
        images: of a split.
        folder: where what the detections hit is kept for ``differences``; it is not where ``None``.
    """
    most = problem.config.data.most_detections
    found = detect_all(model, images, most=most)
    if folder is not None:
        save_file({k: v.contiguous() for k, v in vars(match(found, images.data, most)).items()}, folder / _MATCHES)
    return dict(average_precision(found, images.data, most))


def differences(run_folder: Path, seed: int, arms: Sequence[str]) -> dict[str, PairedDifference]:
    """Of the found network to each arm, with one seed: a paired bootstrap over the test images.

    Args:
        run_folder: of the run.
        seed: its seed.
        arms: names.
    """

    def of(arm: str) -> Matches:
        return Matches(**load_file(run_folder / f"steps/final/{arm}/{seed}" / _MATCHES))

    found = of("found")
    return {arm: resampled_difference(found, of(arm)) for arm in arms}
