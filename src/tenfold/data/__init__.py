"""Field formats that systems share, and batches that resume."""

from tenfold.data.archive import load_image_archive
from tenfold.data.augment import Augmentation, color_jitter, random_crop, random_flip, random_resized_crop
from tenfold.data.batches import FileBatches, RowBatches, TensorBatches, evaluation_batches, normalize
from tenfold.data.cifar import load_cifar
from tenfold.data.emnist import load_emnist
from tenfold.data.folder import (
    ImageFiles,
    find_image_files,
    find_imagenet,
    imagenet_transforms,
    load_image_array,
    read_image,
)
from tenfold.data.idx import FASHION_CLASSES, has_idx, load_idx, read_idx
from tenfold.data.images import (
    LabelledImages,
    channel_statistics,
    digits,
    find_data,
    images_from_arrays,
    resize_images,
    split_indices,
)
from tenfold.data.inputs import read_images
from tenfold.data.splits import Batches, ImageOptions, Splits, load_splits
from tenfold.data.stl10 import load_stl10
from tenfold.data.svhn import load_svhn
from tenfold.data.tiny_imagenet import load_tiny_imagenet

__all__ = [
    "FASHION_CLASSES",
    "Augmentation",
    "Batches",
    "FileBatches",
    "ImageFiles",
    "ImageOptions",
    "LabelledImages",
    "RowBatches",
    "Splits",
    "TensorBatches",
    "channel_statistics",
    "color_jitter",
    "digits",
    "evaluation_batches",
    "find_data",
    "find_image_files",
    "find_imagenet",
    "has_idx",
    "imagenet_transforms",
    "images_from_arrays",
    "load_cifar",
    "load_emnist",
    "load_idx",
    "load_image_archive",
    "load_image_array",
    "load_splits",
    "load_stl10",
    "load_svhn",
    "load_tiny_imagenet",
    "normalize",
    "random_crop",
    "random_flip",
    "random_resized_crop",
    "read_idx",
    "read_image",
    "read_images",
    "resize_images",
    "split_indices",
]
