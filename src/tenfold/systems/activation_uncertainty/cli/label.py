"""Label rows by passes with dropout."""

from typing import Any

from tenfold.systems.activation_uncertainty.cli.input_data import first_inputs
from tenfold.systems.activation_uncertainty.cli.options import FeatureOptions, MainModelChoice, PassOptions, RowChoice
from tenfold.systems.activation_uncertainty.labelling import label_to_folder
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty


def label(
    model: str,
    data: str,
    passes: PassOptions,
    features: FeatureOptions,
    rows: RowChoice,
    made: MainModelChoice,
    *,
    out: str = "labels",
) -> dict[str, Any]:
    """Label rows by passes with dropout; the job resumes, and under torchrun processes share it.

    Args:
        model: folder of a run of any system, or package.module:function that makes a model.
        data: package.module:function that gives batches, or a .csv, .parquet or .npy file; rows that have not trained
            the model.
        passes: with dropout.
        features: activations that are read.
        rows: what the data hold.
        made: how the model is made.
        out: folder of the labels.
    """
    main = made.load(model)
    batches = rows.open(data, main)
    learner = ActivationUncertainty(
        main.network,
        first_inputs(batches, data),
        target=passes.target,
        taps=features.taps,
        form=features.form,
        pool=features.pool,
        places=passes.places,
        rate=passes.rate,
        add=passes.add or [],
        passes=passes.passes,
        seed=passes.seed,
    )
    folder = label_to_folder(
        learner, batches(), out, per_sample=passes.per_sample, memory_limit_mb=passes.memory_limit_mb
    )
    return {
        "labels": str(folder),
        "dropout": list(dict.fromkeys(site.path for site in learner.dropout.sites)),
        "features": learner.features.width,
    }
