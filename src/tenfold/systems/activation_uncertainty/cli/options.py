"""Groups of options that several verbs share: the fields of each are options of the verb itself."""

from dataclasses import dataclass
from typing import Literal

from tenfold.settings import PositiveFloat, PositiveInt, Seed
from tenfold.systems.activation_uncertainty.cli.input_data import Rows, open_data
from tenfold.systems.activation_uncertainty.cli.main_model import load_main_model
from tenfold.systems.activation_uncertainty.data.tables import TableColumns
from tenfold.systems.activation_uncertainty.serving.loading import MainModel


@dataclass
class MainModelChoice:
    """How the main model is made, where a folder alone does not say it.

    Attributes:
        weights: checkpoint of a model that a function makes.
        factory: of a network of your own, which the run names.
    """

    weights: str | None = None
    factory: str | None = None

    def load(self, source: str) -> MainModel:
        """The main model of a source, in eval mode; see ``load_main_model``."""
        return load_main_model(source, factory=self.factory, weights=self.weights)


@dataclass
class RowChoice:
    """What the data hold.

    Attributes:
        columns: of a table, in the order of the model's inputs.
        id_column: of a table; whole numbers or texts.
        parts: what a function's batches hold, by place or by name: inputs, ids, labels.
    """

    columns: list[str] | None = None
    id_column: str | None = None
    parts: list[str] | dict[str, str] | None = None

    def open(self, data: str, model: MainModel) -> Rows:
        """The data of a name, for a model; see ``open_data``."""
        return open_data(data, model, columns=TableColumns(self.columns, self.id_column), parts=self.parts)


@dataclass
class PassOptions:
    """Passes with dropout.

    Attributes:
        passes: their number, T.
        rate: of all dropout; the model's own where not given.
        places: all, first, last, or modules.
        add: modules after which units are dropped although the model has no dropout there; needs a rate.
        target: auto, regression, binary, binary-logit, class, mean-class, mutual-information or kl.
        seed: of the masks.
        per_sample: masks by id: the same in any batch; slower.
        memory_limit_mb: MiB that the passes run together may take.
    """

    passes: PositiveInt = 100
    rate: float | None = None
    places: str | list[str] = "all"
    add: list[str] | None = None
    target: str = "auto"
    seed: Seed = 0
    per_sample: bool = False
    memory_limit_mb: PositiveFloat = 64.0


@dataclass
class FeatureOptions:
    """Which activations are read, and in which form.

    Attributes:
        taps: auto, or modules whose activations are read.
        form: of the features.
        pool: of token activations.
    """

    taps: str | list[str] = "auto"
    form: Literal["value", "on-off", "both"] = "value"
    pool: Literal["auto", "class-token", "tokens"] = "auto"
