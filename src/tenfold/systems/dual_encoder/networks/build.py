"""Networks from plain arguments, as a model's manifest keeps them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from torch import nn

from tenfold.errors import UserError
from tenfold.files import first_line, printable
from tenfold.models.builders import network_from_factory
from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder
from tenfold.systems.dual_encoder.networks.embeddings import Sizes
from tenfold.systems.dual_encoder.networks.fusion_encoder import FusionEncoder
from tenfold.systems.dual_encoder.networks.module_towers import tower_from_description

SYSTEM = "dual-encoder"
Builder = Literal["dual", "fusion", "towers", "factory"]
"""``dual``: towers in ViLT's form; ``fusion``: the teacher; ``towers``: of transformers; ``factory``: the reader's."""


def sizes_of(arguments: Mapping[str, Any]) -> Sizes:
    """Sizes of an encoder from a manifest.

    Raises:
        UserError: one is unknown or out of range.
    """
    try:
        return Sizes(**arguments)
    except TypeError as error:
        raise UserError(f"the sizes of the model are damaged: {first_line(error)}") from error


def build_model(builder: str, arguments: Mapping[str, Any]) -> Any:
    """The network that a manifest describes, with random weights; nothing is fetched.

    Args:
        builder: see ``Builder``.
        arguments: of ``dual`` and ``fusion``, ``sizes`` and ``answers``; of ``towers``, two descriptions (see
            ``module_towers.description_of``), ``answers``, ``images`` and ``width``; of ``factory``, the function's
            name and arguments.

    Raises:
        UserError: the builder is unknown, or the arguments are damaged.
    """
    given = dict(arguments)
    try:
        if builder in ("dual", "fusion"):
            make: Any = DualEncoder.from_sizes if builder == "dual" else FusionEncoder
            return make(sizes_of(given["sizes"]), int(given["answers"]))
        if builder == "towers":
            text, image = (tower_from_description(given[name], name) for name in ("text", "image"))
            return DualEncoder(
                text, image, int(given["answers"]), images=int(given["images"]), width=int(given["width"])
            )
        if builder == "factory":
            made = network_from_factory(given.pop("factory"), "model.factory", **given)
            if not isinstance(made, DualEncoder):
                raise UserError(f"the factory gave a {type(made).__name__}, not a DualEncoder")
            return made
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the description of the model is damaged: {first_line(error)}") from error
    raise UserError(f"there is no dual encoder of the kind {printable(builder)!r}")


def arguments_of(model: nn.Module) -> tuple[Builder, dict[str, Any]]:
    """Builder and arguments that make a model again.

    Args:
        model: a ``FusionEncoder``, or a ``DualEncoder`` of towers in ViLT's form or of transformers.

    Raises:
        UserError: a tower is of another kind: save the model with ``factory``.
    """
    if isinstance(model, FusionEncoder):
        return "fusion", {"sizes": asdict(model.sizes), "answers": model.classifier[-1].out_features}
    assert isinstance(model, DualEncoder)
    described = [getattr(tower, "description", None) for tower in (model.text_tower, model.image_tower)]
    if all(one is not None for one in described):
        width = model.fusion[-1].out_features
        rest = {"answers": model.answers, "images": model.images, "width": width}
        return "towers", {"text": described[0], "image": described[1], **rest}
    sizes = [getattr(tower, "sizes", None) for tower in (model.text_tower, model.image_tower)]
    if sizes[0] is None or sizes[0] != sizes[1]:
        raise UserError(
            "towers of one's own are saved with a factory that makes them: save_dual_encoder(..., factory=)"
        )
    return "dual", {"sizes": asdict(sizes[0]), "answers": model.answers}
