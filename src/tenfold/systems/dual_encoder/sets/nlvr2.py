"""NLVR2 (Suhr et al. 2019): true or false sentences about pairs of photographs."""

from pathlib import Path

import torch

from tenfold.errors import UserError
from tenfold.files import inside, printable
from tenfold.systems.dual_encoder.sets.images import FileImages
from tenfold.systems.dual_encoder.sets.nlvr import read_json_lines
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits, VisualQuestions

_BUCKETS = 100
_HELD_BACK = 5


def nlvr2_questions(file: str | Path, images: str | Path) -> tuple[VisualQuestions, list[int]]:
    """The sentences of one file, and the ``directory`` of each (-1 where it has none).

    Args:
        file: ``train.json``, ``dev.json``, ``test1.json``; JSON lines, plain or gzipped.
        images: folder of the images, ``IMAGES/<directory>/...-img0.png`` of training and ``IMAGES/...-img0.png`` of
            others. Some of these files are JPEG, whatever their names say; they are read by what they hold.

    Raises:
        UserError: the file is damaged, or an image is missing.
    """
    rows, paths, buckets = [], [], []
    for row in read_json_lines(file):
        identifier = str(row.get("identifier", ""))
        parts = identifier.split("-")
        label = str(row.get("label", ""))
        if len(parts) < 4 or label.lower() not in ("true", "false") or not row.get("sentence"):
            raise UserError(f"{printable(file)}: example {printable(identifier or '?')!r} is damaged")
        bucket = int(row["directory"]) if "directory" in row else -1
        base = Path(str(bucket)) if bucket >= 0 else Path()
        stem = "-".join(parts[:3])
        paths.append([inside(images, str(base / f"{stem}-img{side}.png")) for side in (0, 1)])
        rows.append((str(row["sentence"]), label.capitalize(), identifier))
        buckets.append(bucket)
    if not rows:
        raise UserError(f"{printable(file)} holds no examples")
    order = {path: number for number, path in enumerate(dict.fromkeys(p for pair in paths for p in pair))}
    missing = next((path for path in order if not path.exists()), None)
    if missing is not None:
        raise UserError(f"the image {printable(missing)} is missing: NLVR2's images are given out by its authors")
    return (
        VisualQuestions(
            images=FileImages(list(order)),
            questions=tuple(sentence for sentence, *_ in rows),
            rows=torch.tensor([[order[path] for path in pair] for pair in paths]),
            labels=tuple({label: 1.0} for _, label, _ in rows),
            answers=("False", "True"),
            task="classes",
            ids=tuple(identifier for *_, identifier in rows),
            groups=tuple(group_of(identifier) for *_, identifier in rows),
        ),
        buckets,
    )


def group_of(identifier: str) -> str:
    """The sentence of an example ``split-set-pair-sentence``, whichever pair it is asked about."""
    split, group, _, sentence = identifier.split("-")[:4]
    return f"{split}-{group}-{sentence}"


def nlvr2(root: str | Path, *, questions: int = 0, test: int = 0) -> QuestionSplits:
    """Training without the last five buckets, which validate; development tests.

    Args:
        root: folder with ``nlvr2/data/*.json`` or ``*.json``, and ``images/train``, ``dev``, ``test1`` (or these
            folders themselves).
        questions: training questions at most, 0 for all.
        test: test questions at most, 0 for all.

    Raises:
        UserError: files are missing or damaged.
    """
    base = Path(root)
    folder = next((f for f in (base, base / "nlvr2/data", base / "data") if (f / "dev.json").exists()), None)
    if folder is None:
        raise UserError(f"{printable(base)} holds no NLVR2 (nlvr2/data/dev.json): it is published at lil-lab/nlvr")
    pictures = base / "images" if (base / "images").is_dir() else base
    whole, buckets = nlvr2_questions(folder / "train.json", pictures / "train")
    held = [place for place, bucket in enumerate(buckets) if bucket >= _BUCKETS - _HELD_BACK]
    kept = [place for place, bucket in enumerate(buckets) if bucket < _BUCKETS - _HELD_BACK]
    if not held or not kept:
        raise UserError(f"{printable(folder)}/train.json has no 'directory' of 0 to 99, by which it is split")
    tested, _ = nlvr2_questions(folder / "dev.json", pictures / "dev")
    return QuestionSplits(
        "nlvr2",
        whole.subset(kept[: questions or None]),
        whole.subset(held),
        tested.subset(range(min(test or len(tested), len(tested)))),
        (f"training directories {_BUCKETS - _HELD_BACK} to {_BUCKETS - 1} validate; development tests",),
    )
