"""Pre-training of a dual encoder on images with captions, from a frozen fusion encoder: a reconstruction.

The paper's first version applies its attention distillation in pre-training, too, and reports a further gain; the
stage is not among the released code, and its details could not be read. What stands here is usual for the family
(ALBEF):

    ITC    e_t = norm(P_t t), e_v = norm(P_v v); symmetric cross-entropy of e_t e_v / tau over the batch of all
    processes ITM    fusion(t, v) -> matched or not; for each text a hard negative image, for each image a hard
    negative text,
           drawn by their similarities
    MLM    masked words from [h_i ; v], 15 % of them: 80 % [MASK], 10 % another word, 10 % unchanged
    soft   the teacher's matching scores for the same pairs
    CA     cross-modal attention, on matched pairs only: that of unmatched pairs says little

    L = L_ITC + L_ITM + L_MLM + L_soft + L_CA
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.dual_encoder.attention.readers import SingleStream, TwoTowers
from tenfold.systems.dual_encoder.method import CrossModalAttentionLoss, image_mask_of
from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder
from tenfold.systems.dual_encoder.networks.fusion_encoder import initialize
from tenfold.training.parallel import world_size

MATCHED = ("no", "yes")
"""Answers of the dual encoder that is pre-trained: is it the image's caption?"""


@dataclass(frozen=True)
class PretrainingWeights:
    """Weights of the parts of the loss; 0 leaves a part out, and what it needs uncomputed.

    Attributes:
        contrast: of ITC.
        match: of ITM.
        words: of MLM.
        soft: of the teacher's matching scores.
        attention: of the cross-modal attention.
    """

    contrast: float = 1.0
    match: float = 1.0
    words: float = 1.0
    soft: float = 1.0
    attention: float = 1.0


class Pretraining(nn.Module):
    """A dual encoder with the heads that pre-training alone needs.

    Args:
        model: with towers of ViLT's form and the two answers of ``MATCHED``.
        dim: width of the contrastive vectors.
        temperature: where tau starts; it is learnt.
    """

    def __init__(self, model: DualEncoder, dim: int = 256, temperature: float = 0.07) -> None:
        super().__init__()
        self.model = model
        text, image = model.text_tower.width, model.image_tower.width
        self.text_projection = nn.Linear(text, dim, bias=False)
        self.image_projection = nn.Linear(image, dim, bias=False)
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.word_fusion = nn.Sequential(nn.Linear(text + image, text), nn.GELU(), nn.LayerNorm(text))
        self.word_bias = nn.Parameter(torch.zeros(model.text_tower.sizes.vocabulary))
        for part in (self.text_projection, self.image_projection, self.word_fusion):
            initialize(part)

    def similarity(self, t: Tensor, v: Tensor) -> Tensor:
        """``(texts, images)`` contrastive scores of vectors ``(texts, width)`` and ``(images, width)``."""
        first, second = F.normalize(self.text_projection(t), dim=-1), F.normalize(self.image_projection(v), dim=-1)
        return first @ second.T / self.log_temperature.exp()

    def word_scores(self, hidden: Tensor, v: Tensor) -> Tensor:
        """``(words, vocabulary)`` scores of masked words.

        Args:
            hidden: ``(words, width)`` what the text tower makes of them.
            v: ``(words, width)`` vectors of their images.
        """
        found = self.word_fusion(torch.cat([hidden, v], -1))
        return found @ self.model.text_tower.text_embeddings.word_embeddings.weight.T + self.word_bias


def contrastive_loss(similarity: Tensor, place: int = 0) -> Tensor:
    """Symmetric cross-entropy: the k-th text belongs to the image ``place + k``.

    Args:
        similarity: ``(texts, images)``, of this process' texts with all images; square on one process.
        place: number of the first of this process' own images among all.
    """
    own = place + torch.arange(len(similarity), device=similarity.device)
    return F.cross_entropy(similarity, own)


def gathered(x: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, with gradients to each, and the place of this one's own."""
    if world_size() == 1:
        return x, 0
    from torch.distributed.nn.functional import all_gather

    parts = all_gather(x)
    return torch.cat(tuple(parts)), torch.distributed.get_rank() * len(x)


def hard_negatives(similarity: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """For each row another column, drawn by its similarity; the row's own never is.

    Args:
        similarity: ``(n, n)``, n at least 2.
        generator: of the draw; torch's own where ``None``.
    """
    weights = similarity.detach().float().softmax(1).clamp(min=1e-6)
    weights = weights.masked_fill(torch.eye(len(weights), dtype=torch.bool, device=weights.device), 0.0)
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def mask_words(
    text: Tensor, text_mask: Tensor, special: tuple[int, ...], mask: int, vocabulary: int, share: float = 0.15
) -> tuple[Tensor, Tensor]:
    """Text with some words masked, and which ones they are.

    Args:
        text: ``(batch, n)`` token numbers.
        text_mask: ``(batch, n)`` booleans, true for words.
        special: numbers that are never masked: ``[CLS]``, ``[SEP]`` ...
        mask: number of ``[MASK]``.
        vocabulary: number of pieces.
        share: of the words; of a batch at least one.

    Returns:
        ``(batch, n)`` the text with 80 % of the chosen masked and 10 % replaced; ``(batch, n)`` booleans of all chosen.
    """
    free = text_mask & ~torch.isin(text, torch.tensor(special, device=text.device))
    drawn = torch.rand(text.shape, device=text.device).masked_fill(~free, 2.0)
    chosen = free & ((drawn < share) | (drawn == drawn.min()))
    how = torch.rand(text.shape, device=text.device)
    other = torch.randint(0, vocabulary, text.shape, device=text.device)
    found = torch.where(chosen & (how < 0.8), mask, text)
    return torch.where(chosen & (how >= 0.8) & (how < 0.9), other, found), chosen


class PretrainingObjective:
    """The loss of a pre-training step, as ``fit`` takes it, of a ``Pretraining`` and a batch of matched pairs.

    Args:
        teacher: a fusion encoder with the two scores of ``MATCHED``, or ``None`` without soft labels and attention.
        special: numbers of pieces that are never masked.
        mask: number of ``[MASK]``.
        weights: see ``PretrainingWeights``.
        attention: see ``CrossModalAttentionLoss``.
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        special: tuple[int, ...],
        mask: int,
        weights: PretrainingWeights | None = None,
        attention: CrossModalAttentionLoss | None = None,
    ) -> None:
        self.weights = weights or PretrainingWeights()
        self.student, self.attention = TwoTowers(), attention or CrossModalAttentionLoss()
        self.teacher = None if teacher is None else SingleStream(teacher)
        self.special, self.mask = special, mask

    def __call__(self, stage: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts.

        Args:
            stage: a ``Pretraining``.
            batch: ``text``, ``text_mask``, ``pixels`` ``(batch, 1, ...)``, of matched pairs, at least two.
        """
        model, weights = stage.model, self.weights
        pixels, patch_mask = batch["pixels"], batch.get("patch_mask")
        t = model.encode_text(batch["text"], batch["text_mask"])
        v = model.encode_images(pixels, patch_mask)[:, 0]
        parts: dict[str, Tensor] = {}
        (all_t, place), (all_v, _) = gathered(t), gathered(v)
        if weights.contrast:
            parts["contrast"] = (
                contrastive_loss(stage.similarity(t, all_v), place)
                + contrastive_loss(stage.similarity(all_t, v).T, place)
            ) / 2
        if weights.match or (weights.soft and self.teacher):
            self._match(stage, batch, t, v, parts)
        if weights.attention and self.teacher:
            _, ours = self.student(model, batch)
            with torch.no_grad():
                _, theirs = self.teacher(batch)
            mask = image_mask_of(batch, 0, ours[0][0], theirs[0][0])
            parts["attention"] = self.attention(ours[0][0], theirs[0][0], batch["text_mask"], mask)
        if weights.words:
            parts["words"] = self._words(stage, batch, v)
        loss = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def _match(self, stage: Any, batch: Mapping[str, Tensor], t: Tensor, v: Tensor, parts: dict[str, Tensor]) -> None:
        """Matched pairs, each text with another image, each image with another text."""
        n = len(t)
        similarity = stage.similarity(t, v).detach()
        images, texts = hard_negatives(similarity), hard_negatives(similarity.T)
        own = torch.arange(n, device=t.device)
        of_text, of_image = torch.cat([own, own, texts]), torch.cat([own, images, own])
        scores = stage.model.combine(t[of_text], v[of_image][:, None])
        labels = torch.cat([torch.ones(n), torch.zeros(2 * n)]).long().to(t.device)
        if self.weights.match:
            parts["match"] = F.cross_entropy(scores.float(), labels)
        if self.weights.soft and self.teacher:
            asked = {
                "text": batch["text"][of_text],
                "text_mask": batch["text_mask"][of_text],
                "pixels": batch["pixels"][of_image],
            }
            if "patch_mask" in batch:
                asked["patch_mask"] = batch["patch_mask"][of_image]
            with torch.no_grad():
                target, _ = self.teacher(asked, maps=False)
            parts["soft"] = F.kl_div(
                scores.float().log_softmax(-1), target.float().log_softmax(-1), reduction="batchmean", log_target=True
            )

    def _words(self, stage: Any, batch: Mapping[str, Tensor], v: Tensor) -> Tensor:
        tower = stage.model.text_tower
        text, chosen = mask_words(batch["text"], batch["text_mask"], self.special, self.mask, tower.sizes.vocabulary)
        hidden = tower.tokens(text, batch["text_mask"])
        rows = chosen.nonzero()[:, 0]
        return F.cross_entropy(stage.word_scores(hidden[chosen], v[rows]).float(), batch["text"][chosen])
