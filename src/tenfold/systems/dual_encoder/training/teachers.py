"""Teachers that are trained already: a model folder, an official checkpoint, a folder of transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.folder import MANIFEST, read_weights
from tenfold.systems.dual_encoder.checkpoints.official import encoder_state, fusion_from_official, read_official
from tenfold.systems.dual_encoder.checkpoints.transformers_vilt import (
    from_transformers_state,
    fusion_from_transformers,
    is_transformers_folder,
    read_transformers_weights,
)
from tenfold.systems.dual_encoder.load import describe, load_network
from tenfold.systems.dual_encoder.networks.embeddings import Sizes
from tenfold.systems.dual_encoder.networks.fusion_encoder import FusionEncoder

_COMPARED = ("vocabulary", "width", "layers", "heads", "patch", "max_tokens", "images")


def load_teacher(source: str | Path, sizes: Sizes, answers: tuple[str, ...]) -> FusionEncoder:
    """A fine-tuned fusion encoder, in eval mode, its scores in the order of the student's answers.

    Args:
        source: a model folder of a fusion encoder, an official ViLT checkpoint, or a folder of transformers' ViLT.
        sizes: that the run expects; the grid of positions may differ.
        answers: that the student scores. A checkpoint without names must score as many, in this order.

    Raises:
        UserError: it cannot be loaded, is of other sizes, or scores other answers.
    """
    path = Path(source)
    names: tuple[str, ...] | None = None
    if (path / MANIFEST).exists():
        model, manifest = load_network(path)
        if not isinstance(model, FusionEncoder):
            raise UserError(f"{printable(source)} holds a dual encoder; a teacher is a fusion encoder")
        names = describe(manifest)[2]
    elif path.is_dir():
        if not is_transformers_folder(path):
            raise UserError(f"{printable(source)} holds no model: neither model.json nor config.json")
        model, names = fusion_from_transformers(path)
    else:
        model = fusion_from_official(read_official(path), sizes.heads, printable(source))
    for name in _COMPARED:
        ours, theirs = getattr(sizes, name), getattr(model.sizes, name)
        if ours != theirs:
            raise UserError(f"the teacher {printable(source)} has {name} {theirs}, the run {ours}: set model.{name}")
    return with_answers(model, names, answers, printable(source))


def with_answers(
    model: FusionEncoder, names: tuple[str, ...] | None, answers: tuple[str, ...], source: str
) -> FusionEncoder:
    """A fusion encoder whose head scores the given answers in their order.

    Args:
        model: its head is changed in place.
        names: what its head scores; taken for ``answers`` where ``None``.
        answers: what it shall score.
        source: for messages.

    Raises:
        UserError: it does not score one of them.
    """
    last: Any = model.classifier[-1]
    names = names or (answers if last.out_features == len(answers) else ())
    missing = [answer for answer in answers if answer not in names]
    if missing:
        raise UserError(
            f"the teacher {source} does not score the answer {printable(missing[0], 60)!r} (its head has "
            f"{last.out_features}): it must be fine-tuned on this task"
        )
    if names != answers:
        rows = [names.index(answer) for answer in answers]
        head = torch.nn.Linear(last.in_features, len(rows))
        head.load_state_dict({"weight": last.weight[rows].detach(), "bias": last.bias[rows].detach()})
        model.classifier[-1] = head
    return model.eval()


def fusion_state(source: str | Path) -> dict[str, Tensor]:
    """The encoder's tensors of any checkpoint in ViLT's form, for students to start from.

    Args:
        source: see ``load_teacher``; it needs no head.

    Raises:
        UserError: it cannot be read, or is of another form.
    """
    path = Path(source)
    if (path / MANIFEST).exists():
        return encoder_state(read_weights(path))
    if path.is_dir():
        return encoder_state(from_transformers_state(read_transformers_weights(path)))
    return encoder_state(read_official(path))
