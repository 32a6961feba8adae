"""Label rows by passes with dropout."""

from typing import Any, Literal

from tenfold.systems.activation_uncertainty.cli.input_data import first_inputs, open_data
from tenfold.systems.activation_uncertainty.cli.main_model import load_main_model
from tenfold.systems.activation_uncertainty.data.tables import TableColumns
from tenfold.systems.activation_uncertainty.labelling import label_to_folder
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty


def label(
    model: str,
    data: str,
    *,
    out: str = "labels",
    passes: int = 100,
    rate: float | None = None,
    places: str | list[str] = "all",
    add: list[str] | None = None,
    target: str = "auto",
    taps: str | list[str] = "auto",
    form: Literal["value", "on-off", "both"] = "value",
    pool: Literal["auto", "class-token", "tokens"] = "auto",
    columns: list[str] | None = None,
    id_column: str | None = None,
    parts: list[str] | dict[str, str] | None = None,
    weights: str | None = None,
    factory: str | None = None,
    seed: int = 0,
    per_sample: bool = False,
    memory_limit_mb: float = 64.0,
) -> dict[str, Any]:
    """Label rows by passes with dropout; the job resumes, and under torchrun processes share it.

    Args:
        model: folder of a run of any system, or package.module:function that makes a model.
        data: package.module:function that gives batches, or a .csv, .parquet or .npy file; rows that have not trained
            the model.
        out: folder of the labels.
        passes: passes with dropout, T.
        rate: of all dropout; the model's own where not given.
        places: all, first, last, or modules.
        add: modules after which units are dropped although the model has no dropout there; needs a rate.
        target: auto, regression, binary, binary-logit, class, mean-class, mutual-information or kl.
        taps: auto, or modules whose activations are read.
        form: of the features.
        pool: of token activations.
        columns: of a table, in the order of the model's inputs.
        id_column: of a table; whole numbers or texts.
        parts: what a function's batches hold, by place or by name: inputs, ids, labels.
        weights: checkpoint of a model that a function makes.
        factory: of a network of your own, which the run names.
        seed: of the masks.
        per_sample: masks by id: the same in any batch; slower.
        memory_limit_mb: MiB that the passes run together may take.
    """
    main = load_main_model(model, factory=factory, weights=weights)
    batches = open_data(data, main, columns=TableColumns(columns, id_column), parts=parts)
    learner = ActivationUncertainty(
        main.network,
        first_inputs(batches, data),
        target=target,
        taps=taps,
        form=form,
        pool=pool,
        places=places,
        rate=rate,
        add=add or [],
        passes=passes,
        seed=seed,
    )
    folder = label_to_folder(learner, batches(), out, per_sample=per_sample, memory_limit_mb=memory_limit_mb)
    return {
        "labels": str(folder),
        "dropout": list(dict.fromkeys(site.path for site in learner.dropout.sites)),
        "features": learner.features.width,
    }
