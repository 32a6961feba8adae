"""KITTI: raw drives with annotated depth by the Eigen lists, and the depth prediction benchmark's test images."""

from pathlib import Path

from tenfold.errors import UserError
from tenfold.systems.full_skip_depth.sets.pairs import Pair, pairs_of_list, read_lines

LAYOUT = (
    "ROOT/2011_09_26/<drive>_sync/image_02/data/*.png (raw data, cvlibs.net/datasets/kitti) and "
    "ROOT/{train,val}/<drive>_sync/proj_depth/groundtruth/image_02/*.png (annotated depth)"
)


def kitti_pairs(root: str | Path, split: str | Path, *, right: bool = False) -> list[Pair]:
    """Pairs of an Eigen list. Depth is annotated depth (value / 256), never the raw LiDAR of older protocols.

    Args:
        root: see ``LAYOUT``; ``raw/`` and ``data_depth_annotated/`` within it are looked into, too.
        split: the list: ``<image> <depth or None> <focal>`` a line.
        right: also take the right camera's frames of five-column lists.

    Raises:
        UserError: a file is missing.
    """
    root = Path(root)
    images = [path for path in (root, root / "raw") if path.is_dir()]
    annotated = root / "data_depth_annotated"
    depths = [root, root / "train", root / "val", annotated, annotated / "train", annotated / "val"]
    depths = [path for path in depths if path.is_dir()]
    if not images:
        raise UserError(f"there is no KITTI in {root}; the layout is {LAYOUT}")
    return pairs_of_list(split, images, depths, right=right)


def benchmark_images(root: str | Path, split: str | Path | None = None) -> list[Pair]:
    """The 500 test images of the depth prediction benchmark, which have no public truth, with focal lengths.

    Args:
        root: holds ``depth_selection/test_depth_prediction_anonymous/{image,intrinsics}``, or is that folder.
        split: a list of their names; all where ``None``.

    Raises:
        UserError: the folder or an image is missing.
    """
    root = Path(root)
    inner = root / "depth_selection" / "test_depth_prediction_anonymous"
    folder = inner if inner.is_dir() else root
    if not (folder / "image").is_dir():
        raise UserError(f"{root} holds no depth_selection/test_depth_prediction_anonymous/image")
    if split is None:
        names = [path.stem for path in sorted((folder / "image").glob("*.png"))]
    else:
        names = [Path(line.split()[0]).stem for line in read_lines(split)]
    pairs = []
    for name in names:
        image, intrinsics = folder / "image" / f"{name}.png", folder / "intrinsics" / f"{name}.txt"
        if not image.is_file():
            raise UserError(f"the benchmark's image {image} is missing")
        focal = float("nan")
        if intrinsics.is_file():
            try:
                focal = float(intrinsics.read_text(encoding="utf-8").split()[0])
            except (ValueError, IndexError, OSError) as error:
                raise UserError(f"{intrinsics} does not begin with a focal length") from error
        pairs.append(Pair(name, image, None, focal))
    return pairs
