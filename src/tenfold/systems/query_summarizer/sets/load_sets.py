"""The three sets of an experiment: a large one, the target's training topics, the target's test topics."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenfold.errors import UserError
from tenfold.files import inside
from tenfold.systems.query_summarizer.sets.generated import generate_topics
from tenfold.systems.query_summarizer.sets.qmsum import read_qmsum
from tenfold.systems.query_summarizer.sets.rows import read_rows
from tenfold.systems.query_summarizer.sets.squality import read_squality
from tenfold.systems.query_summarizer.sets.topic import Topic, require_references


@dataclass(frozen=True)
class Sets:
    """What is trained and tested on; no group is in two of them.

    Attributes:
        name: of the data.
        stage1: topics of the large set; may be empty.
        train: the target's training topics.
        held_back: the target's topics on which rates and epochs are chosen.
        test: the target's test topics.
        notes: what was left out, with numbers.
    """

    name: str
    stage1: Sequence[Topic]
    train: Sequence[Topic]
    held_back: Sequence[Topic]
    test: Sequence[Topic]
    notes: tuple[str, ...] = ()


def load_sets(
    name: str,
    *,
    root: str | None = None,
    stage1: str | None = None,
    train: str | None = None,
    test: str | None = None,
    fields: Mapping[str, str] | None = None,
    stage1_groups: int | None = None,
    train_groups: int | None = None,
    held_back_groups: int | None = None,
    test_groups: int | None = None,
) -> Sets:
    """Read the sets of an experiment; see the settings of the experiment for the arguments.

    Numbers of groups that are ``None`` stand for all; a fifth of the training groups is held back.

    Raises:
        UserError: a file is missing or damaged, a topic has no reference, or there are too few groups.
    """
    if name == "generated":
        sizes = [stage1_groups or 60, (train_groups or 24) + (held_back_groups or 12), test_groups or 40]
        large, target, tested = (generate_topics(size, seed) for size, seed in zip(sizes, (101, 102, 103), strict=True))
        title = "generated topics"
    elif name == "squality":
        folder = Path(root) if root else _data_folder()
        large, target, tested = (
            read_qmsum(folder / "qmsum", "train"),
            read_squality(folder / "squality", "train"),
            read_squality(folder / "squality", "dev"),
        )
        title = "QMSum train, SQuALITY train and dev"
    else:
        base = Path(root or ".")
        large = list(read_rows(inside(base, stage1), fields)) if stage1 else []
        target, tested = (list(read_rows(inside(base, file or ""), fields)) for file in (train, test))
        title = f"{train} and {test}"
    require_references([*large, *target, *tested])
    shared = {topic.group for topic in target} & {topic.group for topic in tested} if name != "jsonl" else set()
    if shared:
        raise UserError(f"group {sorted(shared)[0]!r} is in training and in test")
    groups = list(dict.fromkeys(topic.group for topic in target))
    held_back_groups = held_back_groups or max(1, len(groups) // 5)
    if len(groups) <= held_back_groups:
        raise UserError(
            f"the target has {len(groups)} groups of topics and {held_back_groups} are held back: none is left to "
            "train on; lower --data.held_back_groups"
        )
    trained = groups[: train_groups or len(groups) - held_back_groups]
    held = [group for group in groups if group not in trained][:held_back_groups]
    if len(held) < held_back_groups:
        raise UserError(
            f"{len(groups)} groups are too few for {train_groups} to train on and {held_back_groups} held back"
        )
    parts = {
        "stage 1": (large, _first_groups(large, stage1_groups or 0)),
        "test": (tested, _first_groups(tested, test_groups or 0)),
    }
    notes = [
        f"{part}: the first {len({t.group for t in kept})} of {len({t.group for t in whole})} groups are used."
        for part, (whole, kept) in parts.items()
        if len(kept) < len(whole)
    ]
    if len(trained) + len(held) < len(groups):
        notes.append(f"training: {len(trained)} groups train, {len(held)} are held back, of {len(groups)}.")
    return Sets(
        name=title,
        stage1=parts["stage 1"][1],
        train=[topic for topic in target if topic.group in set(trained)],
        held_back=[topic for topic in target if topic.group in set(held)],
        test=parts["test"][1],
        notes=tuple(notes),
    )


def _first_groups(topics: Sequence[Topic], count: int) -> list[Topic]:
    groups = list(dict.fromkeys(topic.group for topic in topics))
    kept = set(groups[:count] if count else groups)
    return [topic for topic in topics if topic.group in kept]


def _data_folder() -> Path:
    place = os.environ.get("TENFOLD_DATA")
    folder = Path(place) / "query-summaries" if place else None
    if folder is None or not folder.is_dir():
        raise UserError(
            "name the folder that holds squality/ and qmsum/ with --data.root, or set TENFOLD_DATA to the folder above "
            "query-summaries (published at github.com/nyu-mll/SQuALITY and github.com/Yale-LILY/QMSum)"
        )
    return folder
