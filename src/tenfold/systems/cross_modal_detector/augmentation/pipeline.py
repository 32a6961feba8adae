"""The order in which a sample is changed, and samples as a batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tenfold.data.batches import ResumableBatches
from tenfold.seeds import derived_seed
from tenfold.systems.cross_modal_detector.augmentation.images import ImageAugmentation, grid_mask
from tenfold.systems.cross_modal_detector.augmentation.masking import MissingPolicy, ModalMasking, fill_missing
from tenfold.systems.cross_modal_detector.augmentation.scene import SceneAugmentation, keep_range
from tenfold.systems.cross_modal_detector.method import LabelledBatch
from tenfold.systems.cross_modal_detector.networks.detector import BGR_MEAN, SensorBatch
from tenfold.systems.cross_modal_detector.sets.frames import Sample

_CHANGES = 1  # what a derived seed is for, see ``tenfold.data.batches``
_MASK = 2


@dataclass(frozen=True)
class Pipeline:
    """The changes of training, in the official order.

    Attributes:
        area: the range.
        images: to which size images are brought.
        paste: adds sampled objects (see ``ObjectSampling``), first of all.
        masking: hides sensors.
        scene: turns, scales, moves and mirrors.
        shuffle: whether points are shuffled, on which the cut of full voxels depends.
        grid_mask: probability of GridMask, one mask for a whole batch.
    """

    area: tuple[float, ...]
    images: ImageAugmentation
    paste: Callable[[Sample, np.random.Generator], Sample] | None = None
    masking: ModalMasking | None = None
    scene: SceneAugmentation | None = None
    shuffle: bool = True
    grid_mask: float = 0.0

    def train(self, sample: Sample, draw: np.random.Generator) -> Sample:
        """A sample of training."""
        if self.paste is not None:
            sample = self.paste(sample, draw)
        if self.masking is not None:
            sample = self.masking(sample, draw)
        if self.scene is not None:
            sample = self.scene(sample, draw)
        sample = keep_range(sample, self.area)
        if self.shuffle and sample.points is not None:
            sample = replace(sample, points=draw.permutation(sample.points))
        return self.images(sample, draw)

    def test(self, sample: Sample) -> Sample:
        """A sample of testing."""
        return self.images(keep_range(sample, self.area, boxes=False))


def collate(samples: Sequence[Sample], size: tuple[int, int]) -> LabelledBatch:
    """Samples, all with the same cameras, as one batch; missing sensors are marked.

    Args:
        samples: images float32 or uint8 of ``size``.
        size: height and width of the images.
    """
    views = len(samples[0].images)
    images = cameras = matrices = None
    if views:
        pixels = np.zeros((len(samples), views, *size, 3), dtype=np.float32)
        there = np.zeros((len(samples), views), dtype=bool)
        for row, sample in enumerate(samples):
            for view, image in enumerate(sample.images):
                if image is not None:
                    pixels[row, view], there[row, view] = image, True
        images = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)
        cameras = torch.from_numpy(there)
        matrices = torch.from_numpy(np.stack([sample.lidar2img for sample in samples])).float()
    empty = np.zeros((0, 5), dtype=np.float32)
    return LabelledBatch(
        SensorBatch(
            points=[torch.from_numpy(empty if s.points is None else np.ascontiguousarray(s.points)) for s in samples],
            lidar=torch.tensor([sample.points is not None for sample in samples]),
            images=images,
            cameras=cameras,
            lidar_to_image=matrices,
        ),
        boxes=[torch.from_numpy(sample.boxes).float() for sample in samples],
        labels=[torch.from_numpy(sample.labels) for sample in samples],
    )


class TrainingBatches(ResumableBatches):
    """Shuffled training batches; what is random depends on the seed, the epoch and the batch alone.

    Args:
        samples: read samples, or anything with a length that gives one by number.
        pipeline: see ``Pipeline``.
        batch_size: samples of a step, over all processes together.
        seed: of order and changes.
        order: numbers of the samples of an epoch, such as ``balanced_order`` draws; each once where ``None``.
        fading: epochs at the end without pasted objects, of ``epochs``.
        epochs: of the whole training.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        pipeline: Pipeline,
        batch_size: int,
        *,
        seed: int,
        order: Sequence[int] | None = None,
        fading: int = 0,
        epochs: int = 0,
    ) -> None:
        self.order = list(range(len(samples))) if order is None else list(order)
        super().__init__(len(self.order), batch_size, seed)
        self.data, self.pipeline, self.fading, self.epochs = samples, pipeline, fading, epochs

    def __iter__(self) -> Iterator[LabelledBatch]:
        share = self._share()
        for rows in self._rows():
            pipeline = self.pipeline
            if self.fading and self.epoch >= self.epochs - self.fading:
                pipeline = replace(pipeline, paste=None)
            changed = []
            for place, row in list(enumerate(rows.tolist()))[share]:
                seed = derived_seed(self.seed, _CHANGES, self.epoch, self.given, place)
                changed.append(pipeline.train(self.data[self.order[row]], np.random.default_rng(seed)))
            batch = collate(changed, pipeline.images.size)
            draw = np.random.default_rng(derived_seed(self.seed, _MASK, self.epoch, self.given))
            if pipeline.grid_mask and draw.random() < pipeline.grid_mask and batch.sensors.images is not None:
                mask = grid_mask(pipeline.images.size, draw)
                # Masked pixels are zero after normalization, which is the mean before it.
                batch.sensors.images = batch.sensors.images * mask + torch.tensor(BGR_MEAN[::-1])[:, None, None] * (
                    1 - mask
                )
            self._advance()
            yield batch


def testing_batch(samples: Sequence[Sample], pipeline: Pipeline, policy: MissingPolicy = "drop") -> LabelledBatch:
    """Samples as a batch of testing, with missing sensors as the policy wants them."""
    size = pipeline.images.size
    return collate([fill_missing(pipeline.test(sample), policy, size) for sample in samples], size)
