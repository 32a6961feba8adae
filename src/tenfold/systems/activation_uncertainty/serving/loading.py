"""Main models and served models from folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from tenfold.data import Preprocessing
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.folder import (
    MANIFEST,
    Manifest,
    load_manifest,
    load_weights,
    no_larger_than_its_files,
    refuse_code,
)
from tenfold.systems.activation_uncertainty.main_models.build import build_model
from tenfold.systems.activation_uncertainty.network.fingerprint import DTYPES, Shape
from tenfold.systems.activation_uncertainty.serving.saved_estimator import load_estimator
from tenfold.systems.activation_uncertainty.serving.uncertain_model import UncertainModel

SYSTEM = "activation-uncertainty"
_Size = Annotated[int, Field(ge=1, le=2**31)]


class InputFacts(BaseModel):
    """Shape of one row of an input, and the type of its numbers, by torch's name."""

    model_config = ConfigDict(extra="forbid")

    shape: Shape
    type: str = Field(pattern=DTYPES)


class ServingFacts(BaseModel):
    """What a model folder says beside the weights.

    Attributes:
        kind: what the main model predicts.
        classes: names of the classes; empty for values.
        preprocessing: of images; none for tables.
        example: inputs by name; an only one that is given by position is called ``x``.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["classes", "value", "binary"]
    classes: list[str] = []
    preprocessing: dict[str, Any] | None = None
    example: dict[str, InputFacts]


class _Building(BaseModel):
    """Arguments of ``build_model``, as a file may give them."""

    model_config = ConfigDict(extra="forbid")

    num_classes: _Size | None = None
    image_shape: Annotated[list[_Size], Field(min_length=3, max_length=3)] | None = None
    sizes: dict[str, _Size] | list[_Size] | None = None
    rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    arguments: dict[str, Any] = {}
    factory: str | None = None


@dataclass(frozen=True)
class MainModel:
    """A main model in eval mode, and what is known about it.

    Attributes:
        network: the model.
        manifest: of its folder; none for one that a function makes, and for those of other systems.
        facts: what it is served with, likewise.
        preprocessing: of images, where its folder says it.
    """

    network: nn.Module
    manifest: Manifest | None = None
    facts: ServingFacts | None = None
    preprocessing: Preprocessing | None = None


def load_own(folder: str | Path, factory: str | None = None) -> MainModel:
    """The main model of a run or model folder of this system.

    Args:
        folder: of the run.
        factory: must repeat the factory of a network of the user's own: a manifest alone never runs code.

    Raises:
        UserError: the folder holds no such model, or it is damaged.
    """
    manifest = load_manifest(folder, SYSTEM)
    refuse_code(manifest, factory)
    try:
        building = _Building.model_validate(manifest.arguments)
        facts = ServingFacts.model_validate(manifest.extra)
    except ValidationError as error:
        first = error.errors()[0]
        place = printable(".".join(map(str, first["loc"])))
        raise UserError(f"the manifest in {printable(folder)} is damaged at {place}: {first['msg']}") from error
    with no_larger_than_its_files(folder, manifest.arguments):
        network = build_model(manifest.builder, **building.model_dump(), from_file=Path(folder) / MANIFEST)
    load_weights(network, folder)
    preprocessing = None if facts.preprocessing is None else Preprocessing.from_dict(facts.preprocessing)
    return MainModel(network.eval(), manifest, facts, preprocessing)


def load(run: str | Path, *, factory: str | None = None) -> UncertainModel:
    """The served model of a run or model folder: ``(prediction, uncertainty)`` from one pass.

    Args:
        run: folder of a finished run, or of an export.
        factory: of a network of the user's own, which the folder names: a file alone never runs code.

    Raises:
        UserError: the folder holds no such model, or it is damaged.
    """
    return load_estimator(run, load_own(run, factory).network)
