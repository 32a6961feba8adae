"""``load`` and ``save_dual_encoder``: a model on disk with all that it takes to ask it."""

from pathlib import Path
from typing import Any, get_args

from torch import nn

from tenfold.errors import UserError
from tenfold.models.folder import (
    Manifest,
    load_manifest,
    load_weights,
    no_larger_than_its_files,
    refuse_code,
    save_model,
)
from tenfold.systems.dual_encoder.index.answerer import VisualAnswerer
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.inputs.tokenizer import QuestionTokenizer
from tenfold.systems.dual_encoder.method import Task
from tenfold.systems.dual_encoder.networks.build import SYSTEM, arguments_of, build_model


def save_dual_encoder(
    folder: str | Path,
    model: nn.Module,
    tokenizer: QuestionTokenizer,
    preparation: ImagePreparation,
    answers: tuple[str, ...],
    task: Task,
    *,
    factory: str | None = None,
    arguments: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Manifest:
    """Write a dual encoder, or a fusion encoder, with its tokenizer, image preparation and answers.

    Args:
        folder: made if need be.
        model: the network.
        tokenizer: of its questions.
        preparation: of its images.
        answers: its closed list.
        task: see ``tenfold.systems.dual_encoder.method.Task``.
        factory: ``package.module:function`` that makes the ``DualEncoder`` again, for towers of one's own.
        arguments: what that function is called with; plain values.
        extra: further plain values for the manifest.

    Raises:
        UserError: the folder cannot be written, or towers of one's own come without a factory.
    """
    if factory is None:
        builder, found = arguments_of(model)
    else:
        builder, found = "factory", {"factory": factory, **(arguments or {})}
    described = {
        "tokenizer": tokenizer.to_dict(),
        "preparation": preparation.to_dict(),
        "answers": list(answers),
        "task": task,
        **(extra or {}),
    }
    return save_model(folder, model, system=SYSTEM, builder=builder, arguments=found, extra=described)


def load_network(folder: str | Path, *, factory: str | None = None) -> tuple[Any, Manifest]:
    """The network of a run or model folder, in eval mode, and its manifest.

    Args:
        folder: of a run, of an import, or of a model.
        factory: see ``tenfold.load``.

    Raises:
        UserError: the folder holds none, it is damaged, or it is made by code that was not allowed.
    """
    manifest = load_manifest(folder, SYSTEM)
    refuse_code(manifest, factory)
    with no_larger_than_its_files(folder, manifest.arguments):
        network = build_model(manifest.builder, manifest.arguments)
    load_weights(network, folder)
    return network.eval(), manifest


def describe(manifest: Manifest) -> tuple[QuestionTokenizer, ImagePreparation, tuple[str, ...], Task]:
    """Tokenizer, image preparation, answers and task of a model.

    Raises:
        UserError: one is missing or damaged.
    """
    extra = manifest.extra
    answers = extra.get("answers")
    task: Any = extra.get("task")
    if not isinstance(answers, list) or task not in get_args(Task):
        raise UserError("the model's answers or task are damaged (model.json)")
    preparation = ImagePreparation.from_dict(extra.get("preparation"))
    return QuestionTokenizer.from_dict(extra.get("tokenizer")), preparation, tuple(map(str, answers)), task


def load(folder: str | Path, *, factory: str | None = None) -> VisualAnswerer:
    """A run's or model folder's dual encoder, ready to be asked.

    Args:
        folder: of a run, of an import, or of a model.
        factory: ``package.module:function`` that may make the model, where it is one of the reader's own.

    Raises:
        UserError: the folder holds no dual encoder, or it is damaged.
    """
    network, manifest = load_network(folder, factory=factory)
    if manifest.builder == "fusion":
        raise UserError(f"{folder} holds a fusion encoder: it teaches; distil it into a dual encoder first")
    tokenizer, preparation, answers, task = describe(manifest)
    return VisualAnswerer(network, tokenizer, preparation, answers, task)
