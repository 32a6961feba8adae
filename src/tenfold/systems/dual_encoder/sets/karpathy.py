"""Captions of COCO and Flickr30k in Karpathy's splits, for retrieval and pre-training."""

from dataclasses import dataclass
from pathlib import Path

from tenfold.errors import UserError
from tenfold.files import inside, printable, read_json

_LARGEST = 2**30


@dataclass(frozen=True)
class Captions:
    """Images and their captions.

    Attributes:
        images: paths of the images.
        captions: texts.
        rows: for each caption the number of its image.
    """

    images: tuple[Path, ...]
    captions: tuple[str, ...]
    rows: tuple[int, ...]


def karpathy_captions(file: str | Path, images: str | Path, split: str = "test") -> Captions:
    """One split of ``dataset_coco.json`` or ``dataset_flickr30k.json``; of training with ``restval``.

    Args:
        file: the JSON file.
        images: folder of the images; of COCO it holds ``train2014`` and ``val2014``.
        split: ``train``, ``val`` or ``test``.

    Raises:
        UserError: the file is damaged, the split is empty, or an image is missing.
    """
    content = read_json(file, _LARGEST)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{printable(file)} is no file of Karpathy's splits: it has no list 'images'")
    wanted = ("train", "restval") if split == "train" else (split,)
    paths: list[Path] = []
    captions: list[str] = []
    rows: list[int] = []
    for number, row in enumerate(content["images"]):
        try:
            if row["split"] not in wanted:
                continue
            name = str(Path(row.get("filepath", "")) / row["filename"])
            texts = [str(sentence["raw"]) for sentence in row["sentences"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"{printable(file)}, image {number} is damaged: it lacks {printable(error)}") from error
        rows += [len(paths)] * len(texts)
        captions += texts
        paths.append(inside(images, name))
    if not captions:
        raise UserError(f"{printable(file)} has no captions of the split {printable(split, 40)!r}")
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise UserError(f"the image {printable(missing)} is missing")
    return Captions(tuple(paths), tuple(captions), tuple(rows))
