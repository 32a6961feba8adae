"""Questions about images with their answers, whatever set they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.method import Task
from tenfold.systems.dual_encoder.sets.images import FileImages, ImageStore

Label = Mapping[str, float]
"""Scores in (0, 1] of the right answers of a question; empty where they are not known."""


@dataclass(frozen=True)
class VisualQuestions:
    """Questions, their images, and scored answers from a closed list.

    Attributes:
        images: the images.
        questions: ``n`` texts.
        rows: ``(n, images per question)`` numbers of each question's images.
        labels: ``n`` mappings of right answers to scores.
        answers: the closed list.
        task: see ``tenfold.systems.dual_encoder.method.Task``.
        kinds: a kind for each question, for numbers by kind.
        ids: an id for each question.
        annotations: the answers of ten people for each question, where there are any (VQA's accuracy).
        groups: which questions must all be right to count in the consistency (NLVR2); empty without.

    Raises:
        UserError: there are no questions, sizes differ, or a label is outside the list.
    """

    images: ImageStore
    questions: tuple[str, ...]
    rows: Tensor
    labels: tuple[Label, ...]
    answers: tuple[str, ...]
    task: Task
    kinds: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    annotations: tuple[tuple[str, ...], ...] = ()
    groups: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n = len(self.questions)
        if n == 0:
            raise UserError("there are no questions")
        if self.rows.ndim != 2 or len(self.rows) != n or len(self.labels) != n:
            raise UserError(f"{n} questions need image rows (n, images) and {n} labels; got {tuple(self.rows.shape)}")
        object.__setattr__(self, "numbers", {answer: number for number, answer in enumerate(self.answers)})
        object.__setattr__(self, "kinds", self.kinds or ("all",) * n)
        object.__setattr__(self, "ids", self.ids or tuple(map(str, range(n))))
        for place, label in enumerate(self.labels):
            unknown = [answer for answer in label if answer not in self.numbers]
            if unknown:
                raise UserError(
                    f"question {self.ids[place]!r} has the answer {unknown[0]!r}, which is not in the list of answers"
                )

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def images_per_question(self) -> int:
        """1, or 2 for pairs."""
        return self.rows.shape[1]

    def targets(self, rows: Sequence[int] | Tensor) -> Tensor:
        """``(len(rows), answers)`` scores of the answers of some questions, float32."""
        numbers = torch.as_tensor(rows).tolist()
        found = torch.zeros(len(numbers), len(self.answers))
        for place, row in enumerate(numbers):
            for answer, score in self.labels[row].items():
                found[place, self.numbers[answer]] = score
        return found

    def subset(self, rows: Sequence[int] | Tensor) -> "VisualQuestions":
        """Some of the questions, with the same images and answers."""
        numbers = torch.as_tensor(rows).tolist()

        def of(values: tuple) -> tuple:
            return tuple(values[n] for n in numbers) if values else ()

        return replace(
            self,
            questions=of(self.questions),
            rows=self.rows[numbers],
            labels=of(self.labels),
            kinds=of(self.kinds),
            ids=of(self.ids),
            annotations=of(self.annotations),
            groups=of(self.groups),
        )


def hold_images(splits: "QuestionSplits", preparation: ImagePreparation, limit: int = 2**29) -> "QuestionSplits":
    """The same splits with image files prepared once and held in memory, where they are few and of one size.

    Args:
        splits: the splits.
        preparation: of the model.
        limit: bytes that may be held.
    """
    held: dict[int, ImageStore] = {}

    def of(part: VisualQuestions) -> VisualQuestions:
        store = part.images
        if not isinstance(store, FileImages) or not preparation.square:
            return part
        if len(store) * 3 * preparation.shorter**2 > limit:
            return part
        if id(store) not in held:
            held[id(store)] = store.in_memory(preparation)
        return replace(part, images=held[id(store)])

    return replace(splits, train=of(splits.train), validation=of(splits.validation), test=of(splits.test))


def every_question(
    images: ImageStore, questions: Sequence[str], answers: Sequence[str], task: Task = "multilabel"
) -> VisualQuestions:
    """Every question about every image, without labels: what a teacher is asked when it is distilled.

    Args:
        images: the images.
        questions: the texts.
        answers: the teacher's closed list.
        task: see ``tenfold.systems.dual_encoder.method.Task``.

    Raises:
        UserError: there is no image or no question.
    """
    count = len(images.names) * len(questions)
    return VisualQuestions(
        images=images,
        questions=tuple(questions) * len(images.names),
        rows=torch.arange(len(images.names)).repeat_interleave(len(questions))[:, None],
        labels=({},) * count,
        answers=tuple(answers),
        task=task,
    )


def majority_answers(train: VisualQuestions, test: VisualQuestions) -> np.ndarray:
    """For each test question the commonest answer to it in training, of its kind where it was never asked there.

    Args:
        train: what may be counted.
        test: what is answered without looking at an image.

    Returns:
        ``(n,)`` numbers of answers.
    """
    sums: dict[str, np.ndarray] = {}
    for question, kind, label in zip(train.questions, train.kinds, train.labels, strict=True):
        for key in (f"q {question}", f"k {kind}", "all"):
            total = sums.setdefault(key, np.zeros(len(train.answers)))
            for answer, score in label.items():
                total[train.numbers[answer]] += score
    keys = zip(test.questions, test.kinds, strict=True)
    chosen = [next(k for k in (f"q {q}", f"k {kind}", "all") if k in sums) for q, kind in keys]
    return np.asarray([sums[key].argmax() for key in chosen])


@dataclass(frozen=True)
class QuestionSplits:
    """What an experiment learns from and is tested on.

    Attributes:
        name: of the set.
        train: for training.
        validation: for choices.
        test: only measured.
        notes: what a reader must know of the set.
    """

    name: str
    train: VisualQuestions
    validation: VisualQuestions
    test: VisualQuestions
    notes: tuple[str, ...] = ()
