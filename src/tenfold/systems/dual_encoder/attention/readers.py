"""Readers: a network's scores for a batch, and the queries and keys of its layers by modality.

They see the projections of attention layers whatever the attention is computed with (eager, ``sdpa``, flash), since the
maps themselves are never asked for: ``tenfold.attention.taps``.

A batch is a mapping: ``text`` ``(batch, n)`` token numbers, ``text_mask`` ``(batch, n)`` booleans, ``pixels``
``(batch, images, 3, height, width)``, and where some patches are padding ``patch_mask`` ``(batch, images, rows,
columns)``. A reader gives, for every layer that it was asked for, a ``Projections`` for every image of a question.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from tenfold.attention.layers import Tap
from tenfold.attention.taps import tap_layers
from tenfold.errors import UserError
from tenfold.models.taps import find_module
from tenfold.systems.dual_encoder.method import Projections

Seen = tuple[Tensor, list[list[Projections]]]
INPUTS = ("text", "text_mask", "pixels", "patch_mask")
_QUERIES, _KEYS = ("query", "q_proj", "q_lin", "to_q", "q"), ("key", "k_proj", "k_lin", "to_k", "k")


def inputs_of(batch: Mapping[str, Tensor], *, teacher: bool = False) -> dict[str, Tensor]:
    """What a model takes of a batch: the teacher the words by its own tokenizer, where the batch has them."""
    found = {name: batch[name] for name in INPUTS if name in batch}
    if teacher and "teacher_text" in batch:
        found |= {"text": batch["teacher_text"], "text_mask": batch["teacher_text_mask"]}
    return found


class TwoTowers:
    """Reads a dual encoder: its text tower's and its image tower's layers.

    Args:
        layers: of both towers, counted from 1 or, with -1, from the end.
    """

    def __init__(self, layers: Sequence[int] = (-1,)) -> None:
        self.layers = list(layers)

    def __call__(self, model: Any, batch: Mapping[str, Tensor], maps: bool = True) -> Seen:
        """Scores ``(batch, answers)`` and projections of the student, with gradients as the surrounding code has it.

        Args:
            model: a ``DualEncoder``.
            batch: see the module.
            maps: whether projections are wanted.

        Raises:
            UserError: a tower has no such layer, or nothing of it can be seen, or teacher and student split words
                differently, so that their attention has no tokens in common.
        """
        inputs = inputs_of(batch)
        if not maps:
            return model(**inputs), []
        if "teacher_text" in batch:
            raise UserError(
                "teacher and student have different tokenizers, so that their attention has no words in common: use "
                "one tokenizer, or learn from soft labels alone (attention weight 0)"
            )
        text = {name: inputs[name] for name in ("text", "text_mask") if name in inputs}
        words, t = tap_layers(model.text_tower, self.layers, text, qk="raw", stop=False)
        patches, v = tap_layers(model.image_tower, self.layers, model.image_inputs(**inputs), qk="raw", stop=False)
        images = inputs["pixels"].shape[1]
        scores = model.combine(t, v.unflatten(0, (-1, images)))
        prefix = getattr(model.image_tower, "prefix", 1)
        return scores, [
            [_two(word, patch, side, images, prefix) for side in range(images)]
            for word, patch in zip(words, patches, strict=True)
        ]


def _two(words: Tap, patches: Tap, side: int, images: int, prefix: int) -> Projections:
    queries, keys = (x.unflatten(0, (-1, images))[:, side] for x in (patches.q, patches.k))
    return Projections(words.q, words.k, queries, keys, prefix)


class SingleStream:
    """Reads a fusion encoder that runs ``[text ; image]`` through one transformer, such as ViLT.

    Args:
        teacher: called with a batch's inputs, gives scores ``(batch, answers)``; it is put into eval mode and stays so.
        layers: counted from 1 or, with -1, from the end.
        prefix: leading image tokens that are no patches.
    """

    def __init__(self, teacher: nn.Module, layers: Sequence[int] = (-1,), *, prefix: int = 1) -> None:
        self.teacher, self.layers, self.prefix = teacher.eval(), list(layers), prefix

    def __call__(self, batch: Mapping[str, Tensor], maps: bool = True) -> Seen:
        """Scores and projections of the teacher; its joint queries and keys are cut after the text.

        Args:
            batch: see the module.
            maps: whether projections are wanted.

        Raises:
            UserError: there is no such layer, or nothing of it can be seen.
        """
        self.teacher.eval()
        inputs = inputs_of(batch, teacher=True)
        if not maps:
            return self.teacher(**inputs), []
        taps, scores = tap_layers(self.teacher, self.layers, inputs, qk="raw", stop=False)
        text, images = inputs["text"].shape[1], inputs["pixels"].shape[1]
        return scores, [[_cut(found, text, side, images, self.prefix) for side in range(images)] for found in taps]


def _cut(found: Tap, text: int, side: int, images: int, prefix: int) -> Projections:
    queries, keys = (x.unflatten(0, (-1, images))[:, side] for x in (found.q, found.k))
    return Projections(queries[:, :, :text], keys[:, :, :text], queries[:, :, text:], keys[:, :, text:], prefix)


class CrossAttention:
    """Reads a teacher whose modalities meet in cross-attention modules, such as METER, LXMERT, ALBEF or BLIP.

    Args:
        teacher: called with a batch's inputs, gives scores ``(batch, answers)``; one image per question.
        text_to_image: name of the module whose queries are words and whose keys are patches; it has projections named
            ``query`` and ``key``, ``q_proj`` and ``k_proj``, or the like.
        image_to_text: name of the one the other way round; ``None`` where there is none, as in ALBEF and BLIP.
        heads: number of heads of these modules; read off them where ``None``.
        prefix: leading image tokens that are no patches.

    Raises:
        UserError: there is no such module, or it has no such projections.
    """

    def __init__(
        self,
        teacher: nn.Module,
        text_to_image: str,
        image_to_text: str | None = None,
        *,
        heads: int | None = None,
        prefix: int = 1,
    ) -> None:
        self.teacher, self.prefix = teacher.eval(), prefix
        self.parts: dict[str, tuple[nn.Module, int]] = {}
        sides = ((text_to_image, "text_queries", "image_keys"), (image_to_text, "image_queries", "text_keys"))
        for name, queries, keys in sides:
            if name is None:
                continue
            module = find_module(teacher, name)
            count = heads or next(
                (getattr(module, n) for n in ("num_heads", "num_attention_heads", "n_heads") if hasattr(module, n)),
                None,
            )
            if count is None:
                raise UserError(f"{name} does not say its number of heads: give heads=")
            for kind, known in ((queries, _QUERIES), (keys, _KEYS)):
                part = next((n for n in known if isinstance(getattr(module, n, None), nn.Linear)), None)
                if part is None:
                    raise UserError(f"{name} has no projection under one of the names {', '.join(known)}")
                self.parts[kind] = (getattr(module, part), count)

    def __call__(self, batch: Mapping[str, Tensor], maps: bool = True) -> Seen:
        """Scores and the projections of the cross-attention modules; see ``SingleStream``."""
        self.teacher.eval()
        inputs = inputs_of(batch, teacher=True)
        if not maps:
            return self.teacher(**inputs), []
        seen: dict[str, Tensor] = {}

        def keep(kind: str, heads: int, module: nn.Module, given: Any, output: Tensor) -> None:
            seen[kind] = output.unflatten(-1, (heads, -1)).transpose(1, 2)

        with ExitStack() as hooks:
            for kind, (module, heads) in self.parts.items():
                hooks.callback(module.register_forward_hook(partial(keep, kind, heads)).remove)
            scores = self.teacher(**inputs)
        missing = [kind for kind in self.parts if kind not in seen]
        if missing:
            raise UserError(f"the teacher did not run the module that gives {missing[0]}: name another")
        return scores, [[Projections(**seen, prefix=self.prefix)]]
