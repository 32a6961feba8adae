"""The data of a task: rows that train the main model, held-out rows for the estimator, and rows that only measure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.data import (
    LabelledImages,
    Preprocessing,
    RowBatches,
    Splits,
    TensorBatches,
    evaluation_batches,
    find_data,
    load_splits,
    split_indices,
)
from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.data.criteo import Clicks, CriteoEncoder, load_criteo
from tenfold.systems.activation_uncertainty.data.movielens import Ratings, load_movielens
from tenfold.systems.activation_uncertainty.data.synthetic_movielens import synthetic_movielens
from tenfold.systems.activation_uncertainty.network.batches import Batch
from tenfold.systems.activation_uncertainty.network.calling import Inputs

Part = Literal["train", "auxiliary", "test"]
TABLES = ("ratings", "movielens-100k", "movielens-1m", "movielens-25m", "criteo")
FEWEST_AUXILIARY = 50
"""Rows below which an estimator is not worth fitting."""
_AUXILIARY = {
    "digits": 500,
    "fashion-mnist": 3000,
    "emnist-balanced": 12_800,
    "ratings": 6500,
    "movielens-1m": 100_000,
    "criteo": 200_000,
}
"""Rows kept for the estimator where none are named: what the presets were measured with. Of other data, a fifth."""


@dataclass(frozen=True)
class TaskData:
    """Three parts of a data set, disjoint.

    Attributes:
        name: of the data set.
        kind: what the main model predicts: ``classes``, ``value`` or ``binary``.
        example: two rows of inputs.
        outputs: number of classes; 1 for the others.
        sizes: of each part.
        model_facts: what a network for these data must know: ``image_shape``, or ``sizes`` of columns.
        notes: what a reader must know to judge the numbers.
        preprocessing: from an image to the network's input; none for tables.
    """

    name: str
    kind: Literal["classes", "value", "binary"]
    example: Inputs
    outputs: int
    sizes: dict[str, int]
    model_facts: dict[str, Any]
    train: Callable[[int, int], Any]
    parts: Callable[[Part, int], Iterator[tuple[Inputs, Tensor, Tensor]]]
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None

    @property
    def target(self) -> Literal["class", "regression", "binary"]:
        """The uncertainty that is meant where none is named."""
        kinds: dict[str, Any] = {"classes": "class", "value": "regression", "binary": "binary"}
        return kinds[self.kind]

    def training_batches(self, batch_size: int, *, seed: int) -> TensorBatches | RowBatches:
        """Shuffled training batches that resume."""
        return self.train(batch_size, seed)

    def batches(self, part: Part, batch_size: int = 512) -> Iterator[tuple[Inputs, Tensor, Tensor]]:
        """``(inputs, labels, indices)`` in order, all of them on every rank: estimators are fitted on all rows."""
        return self.parts(part, batch_size)

    def numbered(self, part: Part, batch_size: int = 512) -> Iterator[Batch]:
        """Inputs with their indices, in order."""
        return (Batch(inputs, indices) for inputs, _, indices in self.batches(part, batch_size))

    def labels(self, part: Part) -> Tensor:
        """What the main model should have said on a part."""
        return torch.cat([labels for _, labels, _ in self.batches(part)])


def load_task(
    name: str,
    *,
    root: str | None = None,
    auxiliary: int | None = None,
    rows: int | None = None,
    threshold: float | None = None,
    hashed: int | None = None,
    image_size: int | None = None,
    unreadable: str = "refuse",
    workers: int = 0,
    augment: str = "none",
) -> TaskData:
    """Read a data set and split it; arguments as in
    ``DataOptions``.

    Raises:
        UserError: the data are missing or damaged, or a part would be empty.
    """
    if name not in TABLES:
        if rows is not None or threshold is not None or hashed is not None:
            raise UserError(f"data.rows, data.threshold and data.hashed are for tables, not for {name!r}")
        load = partial(
            load_splits, name, root=root, augment=augment, image_size=image_size, unreadable=unreadable, workers=workers
        )
        held = _AUXILIARY.get(name) if auxiliary is None else auxiliary
        splits = load(validation=held)
        if held is None:  # a fifth, once it is known of how many
            splits = load(validation=max((len(splits.train) + len(splits.validation)) // 5, 1))
        return _large_enough(_images(splits))
    if name == "criteo":
        return _large_enough(_clicks(root, auxiliary, rows, hashed))
    if name == "ratings":
        ratings = synthetic_movielens(rows=rows or 30_000).ratings_table()
        notes: tuple[str, ...] = ("The ratings are generated: users and movies with hidden tastes, no real people.",)
    else:
        ratings, notes = load_movielens(root, name.removeprefix("movielens-"), rows=rows), ()
    return _large_enough(_ratings(name, ratings, auxiliary, threshold, notes))


def _large_enough(data: TaskData) -> TaskData:
    """The data, if there is enough to fit an estimator and to measure it."""
    for part in ("auxiliary", "test"):
        if data.sizes[part] < FEWEST_AUXILIARY:
            raise UserError(
                f"{data.sizes[part]} {part} rows of {data.name} are too few to judge an estimator by; it takes at "
                f"least {FEWEST_AUXILIARY}: give more rows, or more to the estimator with --data.auxiliary"
            )
    return data


def _images(splits: Splits) -> TaskData:
    def parts(part: Part, batch_size: int) -> Iterator[tuple[Inputs, Tensor, Tensor]]:
        images = {"train": splits.train, "auxiliary": splits.validation, "test": splits.test}[part]
        return evaluation_batches(
            images,
            batch_size,
            mean=splits.mean,
            std=splits.std,
            transform=None if isinstance(images, LabelledImages) else splits.preprocessing.prepare,
            workers=splits.workers,
            whole=True,
        )

    first = next(parts("test", 2))[0]
    return TaskData(
        name=splits.name,
        kind="classes",
        example=first,
        outputs=len(splits.classes),
        sizes={"train": len(splits.train), "auxiliary": len(splits.validation), "test": len(splits.test)},
        model_facts={"num_classes": len(splits.classes), "image_shape": list(splits.image_shape)},
        train=lambda batch_size, seed: splits.training_batches(batch_size, seed=seed),
        parts=parts,
        notes=splits.notes,
        classes=splits.classes,
        preprocessing=splits.preprocessing,
    )


def _ratings(
    name: str, ratings: Ratings, auxiliary: int | None, threshold: float | None, notes: tuple[str, ...]
) -> TaskData:
    label = ratings.rating if threshold is None else (ratings.rating >= threshold).float()
    return _table(
        name,
        "value" if threshold is None else "binary",
        ratings.columns,
        label,
        auxiliary,
        {"sizes": ratings.sizes},
        (*notes, "A ninth of the ratings, drawn at random once, is the test."),
    )


def _clicks(root: str | None, auxiliary: int | None, rows: int | None, hashed: int | None) -> TaskData:
    path = Path(root) if root and Path(root).is_file() else _criteo_file(find_data(root))
    encoder = CriteoEncoder(hashed=hashed).fit(path, rows=rows)
    clicks: Clicks = load_criteo(path, encoder, rows=rows)
    if clicks.label is None:
        raise UserError(f"{path} has no labels, so that nothing can be learnt from it; use train.txt")
    columns = {"counts": clicks.counts, "categories": clicks.categories}
    return _table("criteo", "binary", columns, clicks.label, auxiliary, {"sizes": list(clicks.sizes)}, ())


def _criteo_file(folder: Path) -> Path:
    for name in ("train.txt", "train.csv", "dac/train.txt", "criteo/train.txt", "Criteo_x1/train.csv", "day_0.gz"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} holds no Criteo log: put train.txt of the Display Advertising Challenge, train.csv of Criteo_x1 or "
        "day_0.gz of the terabyte there, as Criteo publishes them"
    )


def _table(
    name: str,
    kind: Literal["value", "binary"],
    columns: dict[str, Tensor],
    label: Tensor,
    auxiliary: int | None,
    facts: dict[str, Any],
    notes: tuple[str, ...],
) -> TaskData:
    count = len(label)
    held = count // 9
    own = _AUXILIARY.get(name, count)
    auxiliary = auxiliary or (own if own <= count // 3 else count // 5)
    if auxiliary + held >= count:
        raise UserError(
            f"data.auxiliary {auxiliary} and a test of {held} leave none of the {count} rows to train on; leave it "
            f"out, or take fewer, as with --data.auxiliary {max(count // 5, 1)}"
        )
    names = ("test", "auxiliary", "train")
    rows = dict(zip(names, split_indices(count, [held, auxiliary, count - held - auxiliary], seed=0), strict=True))

    def parts(part: Part, batch_size: int) -> Iterator[tuple[Inputs, Tensor, Tensor]]:
        for indices in torch.arange(len(rows[part])).split(batch_size):
            chosen = rows[part][indices]
            yield {column: values[chosen] for column, values in columns.items()}, label[chosen], indices

    def train(batch_size: int, seed: int) -> RowBatches:
        chosen = rows["train"]
        return RowBatches(
            {column: values[chosen] for column, values in columns.items()}, label[chosen], batch_size, seed=seed
        )

    return TaskData(
        name=name,
        kind=kind,
        example={column: values[rows["train"][:2]] for column, values in columns.items()},
        outputs=1,
        sizes={part: len(found) for part, found in rows.items()},
        model_facts=facts,
        train=train,
        parts=parts,
        notes=(
            *notes,
            f"{len(rows['train']):,} rows train, {len(rows['auxiliary']):,} are kept for the estimator, "
            f"{len(rows['test']):,} are the test.",
        ),
    )
