"""Questions as tensors: tokens once, images batch by batch."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tenfold.data.batches import ResumableBatches
from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.inputs.tokenizer import QuestionTokenizer
from tenfold.systems.dual_encoder.sets.questions import VisualQuestions

Batch = dict[str, Tensor]
Augment = Callable[[Any, torch.Generator], Any]
"""Changes a PIL image, drawing from the generator."""
_CHANGES = 1


class QuestionTensors:
    """Questions with their tokens; gives any rows of them as a batch.

    Args:
        data: the questions.
        tokenizer: of the model.
        preparation: of the model's images.
        length: tokens that all questions are padded to; the longest question's where ``None``.
        teacher_tokenizer: of the teacher, where it is another.

    Raises:
        UserError: a question is empty or too long; the line names its id.
    """

    def __init__(
        self,
        data: VisualQuestions,
        tokenizer: QuestionTokenizer,
        preparation: ImagePreparation,
        *,
        length: int | None = None,
        teacher_tokenizer: QuestionTokenizer | None = None,
    ) -> None:
        self.data, self.preparation = data, preparation
        self.texts = {"": _encode(data, tokenizer, length)}
        if teacher_tokenizer is not None:
            self.texts["teacher_"] = _encode(data, teacher_tokenizer, length)

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, rows: Tensor, augment: Augment | None = None, seed: int = 0) -> Batch:
        """The batch of some questions, as the readers take it, with ``targets`` ``(batch, answers)`` and ``rows``.

        Args:
            rows: numbers of questions.
            augment: changes each image before it is prepared.
            seed: of the changes; with the image's number it decides them.
        """
        numbers = self.data.rows[rows]
        if augment is None:
            images = self.data.images.prepared(numbers.flatten().tolist(), self.preparation)
        else:
            images = []
            for number in numbers.flatten().tolist():
                generator = torch.Generator().manual_seed(derived_seed(seed, number))
                images.append(self.preparation.prepare(augment(self.data.images.picture(number), generator)))
        pixels, mask = self.preparation.batch(images)
        found = {"pixels": pixels.unflatten(0, numbers.shape), "targets": self.data.targets(rows), "rows": rows}
        if mask is not None:
            found["patch_mask"] = mask.unflatten(0, numbers.shape)
        for prefix, (text, real) in self.texts.items():
            found |= {f"{prefix}text": text[rows], f"{prefix}text_mask": real[rows]}
        return found

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Batch]]:
        """All questions, batch by batch, with their numbers."""
        for rows in torch.arange(len(self)).split(batch_size):
            yield rows, self.batch(rows)


def _encode(data: VisualQuestions, tokenizer: QuestionTokenizer, length: int | None) -> tuple[Tensor, Tensor]:
    known: dict[str, list[int]] = {}
    for question, name in zip(data.questions, data.ids, strict=True):
        if question not in known:
            try:
                known[question] = tokenizer.encode(question)
            except UserError as error:
                raise UserError(f"question {name!r}: {error}") from error
    length = length or max(map(len, known.values()))
    text = torch.full((len(data), length), tokenizer.pad)
    rows = {question: torch.tensor(tokens) for question, tokens in known.items()}
    for place, question in enumerate(data.questions):
        text[place, : len(rows[question])] = rows[question]
    return text, text != tokenizer.pad


class QuestionBatches(ResumableBatches):
    """Shuffled training batches of questions.

    Args:
        tensors: see ``QuestionTensors``.
        batch_size: questions of a step, over all processes together.
        seed: of order and changes.
        augment: changes the images; teacher and student see the same.
        epoch_batches: batches of an epoch at most, drawn anew from all questions in each; as many as there are where
            ``None``.
    """

    def __init__(
        self,
        tensors: QuestionTensors,
        batch_size: int,
        *,
        seed: int,
        augment: Augment | None = None,
        epoch_batches: int | None = None,
    ) -> None:
        super().__init__(len(tensors), batch_size, seed)
        self.tensors, self.augment, self.epoch_batches = tensors, augment, epoch_batches

    def __len__(self) -> int:
        """Batches of an epoch."""
        return min(super().__len__(), self.epoch_batches or super().__len__())

    def __iter__(self) -> Iterator[Batch]:
        share = self._share()
        for rows in self._rows():
            seed = derived_seed(self.seed, _CHANGES, self.epoch)
            self._advance()
            yield self.tensors.batch(rows[share], self.augment, seed)
