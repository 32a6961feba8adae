"""SNLI-VE (Xie et al. 2019): does a photograph entail a sentence; in its files, or made again from SNLI."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tenfold.errors import UserError
from tenfold.files import inside, printable, read_json, write_atomically
from tenfold.systems.dual_encoder.sets.images import FileImages
from tenfold.systems.dual_encoder.sets.nlvr import read_json_lines
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits, VisualQuestions

LABELS = ("contradiction", "entailment", "neutral")
_DEVELOPMENT = 1000


def snli_ve_rows(path: str | Path) -> Iterator[dict[str, str]]:
    """Rows of a file: ``image`` (its number of Flickr30k), ``sentence``, ``label``, ``id``.

    Args:
        path: the published JSON lines (``Flickr30K_ID``, also spelt ``Flikr30kID``, ``sentence2``, ``gold_label``), or
            a JSON list of ``image``, ``sentence``, ``label``.

    Raises:
        UserError: the file is damaged, or a label is none of the three.
    """
    as_list = Path(path).suffix == ".json"
    rows: Iterable[Any] = read_json(path, 2**31) if as_list else read_json_lines(path)
    for number, row in enumerate(rows):
        image = row.get("image") or row.get("Flickr30K_ID") or row.get("Flikr30kID")
        sentence, label = row.get("sentence2") or row.get("sentence"), row.get("gold_label") or row.get("label")
        if not image or not sentence or label not in LABELS:
            raise UserError(
                f"{printable(path)}, example {number} is damaged: it needs image, sentence and one of {LABELS}"
            )
        stem = str(image).rpartition("/")[2].removesuffix(".jpg")
        yield {"image": stem, "sentence": str(sentence), "label": label, "id": str(row.get("pairID", number))}


def snli_ve_from_snli(rows: Iterable[Mapping[str, Any]], images: Iterable[str]) -> list[dict[str, str]]:
    """SNLI-VE made from SNLI: its premises are captions of Flickr30k, whose photographs take their place.

    Pairs without a gold label, and those of other photographs (``vg_``), are left out.

    Args:
        rows: of ``snli_1.0_*.jsonl``.
        images: numbers of Flickr30k's photographs of this part.
    """
    known = {str(image).removesuffix(".jpg") for image in images}
    found = []
    for row in rows:
        stem = str(row.get("captionID", row.get("pairID", ""))).split(".jpg")[0]
        if row.get("gold_label") in LABELS and stem in known and not stem.startswith("vg_"):
            found.append(
                {
                    "Flickr30K_ID": stem,
                    "gold_label": str(row["gold_label"]),
                    "pairID": str(row["pairID"]),
                    "sentence1": str(row.get("sentence1", "")),
                    "sentence2": str(row["sentence2"]),
                }
            )
    return found


def split_images(train_and_development: list[str]) -> tuple[list[str], list[str]]:
    """The published list of training and development photographs as two; the last 1,000 are development.

    Args:
        train_and_development: numbers, in the order of the list.
    """
    return train_and_development[:-_DEVELOPMENT], train_and_development[-_DEVELOPMENT:]


def write_rows(path: str | Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows as the published files are: JSON lines with sorted keys."""
    write_atomically(path, "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows))


def snli_ve_questions(path: str | Path, images: str | Path) -> VisualQuestions:
    """The sentences of one file with their photographs.

    Args:
        path: see ``snli_ve_rows``.
        images: folder of Flickr30k's images.

    Raises:
        UserError: the file is damaged, or an image is missing.
    """
    rows = list(snli_ve_rows(path))
    if not rows:
        raise UserError(f"{printable(path)} holds no examples")
    order = {name: number for number, name in enumerate(dict.fromkeys(row["image"] for row in rows))}
    paths = [inside(images, f"{name}.jpg") for name in order]
    missing = next((file for file in paths if not file.exists()), None)
    if missing is not None:
        raise UserError(f"the image {printable(missing)} is missing: SNLI-VE uses the photographs of Flickr30k")
    return VisualQuestions(
        images=FileImages(paths),
        questions=tuple(row["sentence"] for row in rows),
        rows=torch.tensor([order[row["image"]] for row in rows])[:, None],
        labels=tuple({row["label"]: 1.0} for row in rows),
        answers=LABELS,
        task="classes",
        ids=tuple(row["id"] for row in rows),
        kinds=tuple(row["label"] for row in rows),
    )


def snli_ve(root: str | Path, *, questions: int = 0, test: int = 0) -> QuestionSplits:
    """The three published parts.

    Args:
        root: folder with ``snli_ve_train.jsonl``, ``_dev``, ``_test`` (or ``train.json`` ...) and ``flickr30k_images``.
        questions: training questions at most, 0 for all.
        test: test questions at most, 0 for all.

    Raises:
        UserError: files are missing or damaged.
    """
    parts = []
    for split in ("train", "dev", "test"):
        known = [Path(root) / name for name in (f"snli_ve_{split}.jsonl", f"{split}.json")]
        path = next((file for file in known if file.exists()), None)
        if path is None:
            raise UserError(f"{printable(root)} holds no {known[0].name}: it is published at necla-ml/SNLI-VE")
        parts.append(snli_ve_questions(path, Path(root) / "flickr30k_images"))
    train, development, tested = parts
    return QuestionSplits(
        "snli-ve",
        train.subset(range(min(questions or len(train), len(train)))),
        development,
        tested.subset(range(min(test or len(tested), len(tested)))),
    )
