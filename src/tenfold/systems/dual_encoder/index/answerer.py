"""A trained dual encoder that is asked in words: the served model of a run."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.data.reading import read_image
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.systems.dual_encoder.index.pair_head import PairHead
from tenfold.systems.dual_encoder.index.visual_index import VisualIndex
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.inputs.tokenizer import QuestionTokenizer
from tenfold.systems.dual_encoder.method import Task
from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder, require_answers

_CHUNK = 8192
"""Images of an index that are scored at once for one answer."""
_ANSWERED = 1024
"""Images that are scored at once for all answers."""


@dataclass(frozen=True)
class Answer:
    """An answer to a question about an image (or a pair of images).

    Attributes:
        question: the question.
        image: name of the image; of a pair, both.
        answer: from the model's list.
        probability: of the answer: of a ``multilabel`` task each answer has its own, they do not sum to 1.
    """

    question: str
    image: str | tuple[str, ...]
    answer: str
    probability: float


class VisualAnswerer:
    """Answers questions about images, each image and each question encoded once.

    Args:
        model: the dual encoder; put into eval mode.
        tokenizer: of its questions.
        preparation: of its images.
        answers: its closed list.
        task: see ``tenfold.systems.dual_encoder.method.Task``.

    Raises:
        UserError: the list has not as many answers as the model.
    """

    def __init__(
        self,
        model: DualEncoder,
        tokenizer: QuestionTokenizer,
        preparation: ImagePreparation,
        answers: Sequence[str],
        task: Task,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.preparation, self.task = tokenizer, preparation, task
        self.answers = require_answers(answers)
        if len(self.answers) != model.answers:
            raise UserError(f"the model scores {model.answers} answers; the list has {len(self.answers)}")
        self.head = PairHead(model)
        self.device = next(model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """What an index is tied to: a hash of all that makes an image's vector, and of its preparation."""
        digest = hashlib.sha256(json.dumps(self.preparation.to_dict(), sort_keys=True).encode())
        for name, value in self.model.image_tower.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def vector_shape(self) -> tuple[int, int]:
        """``(images per question, width)`` of what an image leaves: of a pair, one vector for each side."""
        return self.model.images, self.model.image_tower.width

    @torch.inference_mode()
    def encode_questions(self, questions: Sequence[str]) -> Tensor:
        """Vectors ``(m, width)`` of questions; those of equal length run together, so that none is padded.

        Args:
            questions: texts.

        Raises:
            UserError: a question is empty or longer than the model's limit, or there is none.
        """
        if not questions:
            raise UserError("there is no question")
        rows = [self.tokenizer.encode(question) for question in questions]
        found = torch.empty(len(rows), self.model.text_tower.width, device=self.device)
        for length in {len(row) for row in rows}:
            places = [place for place, row in enumerate(rows) if len(row) == length]
            text = torch.tensor([rows[place] for place in places], device=self.device)
            found[places] = self.model.encode_text(text, None).float()
        return found

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Tensor]) -> Tensor:
        """Vectors ``(n, images per question, width)`` of prepared images: of a pair, each as either side.

        Args:
            images: uint8 ``(3, height, width)`` each, see ``ImagePreparation.prepare``.
        """
        pixels, mask = self.preparation.batch(images)
        sides = self.model.images
        both = pixels.to(self.device)[:, None].expand(-1, sides, -1, -1, -1)
        masks = None if mask is None else mask.to(self.device)[:, None].expand(-1, sides, -1, -1)
        return self.model.encode_images(both, masks).float()

    def unknown_words(self, questions: Sequence[str]) -> list[str]:
        """Words of questions that the model has never seen: it reads them all alike, so that who asks should know."""
        return list(dict.fromkeys(word for question in questions for word in self.tokenizer.unknown_words(question)))

    def probabilities(self, scores: Tensor) -> Tensor:
        """Scores ``(..., answers)`` as probabilities."""
        return scores.sigmoid() if self.task == "multilabel" else scores.softmax(-1)

    def answer_number(self, answer: str) -> int:
        """Number of an answer.

        Raises:
            UserError: it is not in the model's list.
        """
        if answer not in self.answers:
            known = ", ".join(self.answers[:8]) + (" ..." if len(self.answers) > 8 else "")
            raise UserError(
                f"the answer {printable(answer, 60)!r} is not one of the model's {len(self.answers)}: {known}"
            )
        return self.answers.index(answer)

    def __call__(self, questions: str | Sequence[str], images: Any) -> list[Answer]:
        """Answer each question about its image, without an index.

        Args:
            questions: one for every image; or one for all.
            images: paths or PIL images; of a model of pairs, tuples of two.

        Raises:
            UserError: an image cannot be read, a question is too long, or their numbers differ.
        """
        images = [images] if isinstance(images, str | Path) else list(images)
        asked = [questions] * len(images) if isinstance(questions, str) else list(questions)
        if len(asked) != len(images) or not images:
            raise UserError(f"there are {len(asked)} questions for {len(images)} images")
        rows = [row if isinstance(row, tuple) else (row,) for row in images]
        if any(len(row) != self.model.images for row in rows):
            raise UserError(f"a question of this model is about {self.model.images} image(s)")
        flat = [self._prepared(image) for row in rows for image in row]
        vectors = torch.cat([self.encode_images(flat[n : n + 32]) for n in range(0, len(flat), 32)])
        chosen = self._sides(vectors.unflatten(0, (-1, self.model.images)))
        with torch.inference_mode():
            scores = self.head(self.encode_questions(asked), chosen)
        names = [tuple(_name(image, n) for image in row) for n, row in enumerate(rows)]
        return self._best(asked, names, scores)

    def _prepared(self, image: Any) -> Tensor:
        return self.preparation.prepare(read_image(image) if isinstance(image, str | Path) else image)

    def _sides(self, vectors: Tensor) -> Tensor:
        """``(n, images, sides, width)`` to ``(n, images, width)``: the k-th image as the k-th side."""
        return vectors.diagonal(dim1=1, dim2=2).transpose(1, 2)

    def _best(self, questions: Sequence[str], names: Sequence[tuple[str, ...]], scores: Tensor) -> list[Answer]:
        sure, numbers = self.probabilities(scores).max(-1)
        return [
            Answer(question, name if len(name) > 1 else name[0], self.answers[number], probability)
            for question, name, number, probability in zip(
                questions, names, numbers.tolist(), sure.tolist(), strict=True
            )
        ]

    @torch.inference_mode()
    def scores(self, questions: Sequence[str], index: VisualIndex, ids: Sequence[Any]) -> Tensor:
        """Scores ``(m, n, answers)`` of every question with every named image of an index.

        Args:
            questions: texts.
            index: of this model.
            ids: names of images; of a model of pairs, tuples of two.

        Raises:
            UserError: the index is another model's, or an image is not in it.
        """
        index.require(self.fingerprint)
        rows = [row if isinstance(row, tuple | list) else (row,) for row in ids]
        if not rows or any(len(row) != self.model.images for row in rows):
            raise UserError(f"a question of this model is about {self.model.images} image(s); name them by their ids")
        vectors = index.vectors([image for row in rows for image in row]).to(self.device)
        chosen = self._sides(vectors.unflatten(0, (-1, self.model.images)))
        return self.head.every_pair(self.encode_questions(questions), chosen)

    def answer(
        self, question: str, index: VisualIndex, ids: Sequence[Any] | None = None, top_k: int = 1
    ) -> list[list[Answer]]:
        """The likeliest answers to a question about each of some cached images.

        Args:
            question: the question.
            index: of this model.
            ids: names of images; all of the index where ``None``, one by one.
            top_k: answers for each image.

        Returns:
            For each image its answers, the likeliest first.

        Raises:
            UserError: see ``scores``.
        """
        names = list(index.ids()) if ids is None else list(ids)
        if not names:
            raise UserError("the index is empty" if ids is None else "no image is named")
        found = []
        for start in range(
            0, len(names), _ANSWERED
        ):  # all answers of all images at once could be more than memory holds
            part = [tuple(name) if isinstance(name, list) else name for name in names[start : start + _ANSWERED]]
            probability = self.probabilities(self.scores([question], index, part))[0]
            sure, numbers = probability.topk(min(top_k, len(self.answers)), -1)
            found += [
                [
                    Answer(question, name, self.answers[number], value)
                    for number, value in zip(few.tolist(), values.tolist(), strict=True)
                ]
                for name, few, values in zip(part, numbers, sure, strict=True)
            ]
        return found

    @torch.inference_mode()
    def search(
        self, questions: str | Sequence[str], index: VisualIndex, answer: str = "yes", top_k: int = 10
    ) -> list[list[Answer]]:
        """Rank the whole index by the probability of an answer; exact, a block of images at a time.

        Args:
            questions: one question or several.
            index: of this model, of single images.
            answer: from the model's list.
            top_k: images for each question.

        Returns:
            For each question its images, the likeliest first; of equal ones, the earlier in the index.

        Raises:
            UserError: the index is another model's or empty, the answer is not in the list, or the model is of pairs.
        """
        asked = [questions] if isinstance(questions, str) else list(questions)
        best = torch.empty(len(asked), 0, device=self.device)
        places = torch.empty(len(asked), 0, dtype=torch.long, device=self.device)
        for start, chance in self._chances(asked, index, answer):
            here = torch.arange(start, start + chance.shape[1], device=self.device).expand(len(asked), -1)
            best, places = torch.cat([best, chance], 1), torch.cat([places, here], 1)
            order = best.argsort(dim=1, descending=True, stable=True)[:, :top_k]
            best, places = best.gather(1, order), places.gather(1, order)
        return [
            [
                Answer(question, index.id_at(place), answer, value)
                for place, value in zip(row.tolist(), values.tolist(), strict=True)
                if value >= 0
            ]
            for question, row, values in zip(asked, places, best, strict=True)
        ]

    @torch.inference_mode()
    def chances(self, questions: Sequence[str], index: VisualIndex, answer: str = "yes") -> Tensor:
        """Probability ``(questions, images)`` of an answer to every question about every image of an index.

        Args:
            questions: texts.
            index: of this model, of single images.
            answer: from the model's list.

        Raises:
            UserError: see ``search``.
        """
        found = torch.cat([chance for _, chance in self._chances(questions, index, answer)], 1)
        return found[:, found[0] >= 0]

    def _chances(self, questions: Sequence[str], index: VisualIndex, answer: str) -> Iterator[tuple[int, Tensor]]:
        """Blocks of ``chances`` with the place of each one's first image; -1 for deleted images."""
        index.require(self.fingerprint)
        number = self.answer_number(answer)
        if self.model.images != 1:
            raise UserError("a model of pairs of images ranks no single images; use answer with pairs of ids")
        if not len(index):
            raise UserError("the index is empty")
        t = self.encode_questions(questions)
        multilabel = self.task == "multilabel"
        for start, vectors, kept in index.blocks(_CHUNK):
            # Of a closed choice all scores are needed; else the one answer's alone.
            scores = self.head.every_pair(t, vectors.to(self.device), [number] if multilabel else None)
            chance = scores[..., 0].sigmoid() if multilabel else scores.softmax(-1)[..., number]
            yield start, chance.masked_fill(~kept.to(self.device), -1.0)


def _name(image: Any, number: int) -> str:
    return str(image) if isinstance(image, str | Path) else getattr(image, "filename", "") or f"image {number}"
