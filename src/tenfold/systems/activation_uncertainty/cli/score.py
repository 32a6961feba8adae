"""Score rows with a model and its estimator."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.cli.input_data import open_data
from tenfold.systems.activation_uncertainty.cli.main_model import load_main_model
from tenfold.systems.activation_uncertainty.data.tables import write_scores
from tenfold.systems.activation_uncertainty.serving.saved_estimator import load_estimator


def score(
    model: str,
    data: str,
    *,
    estimator: str | None = None,
    out: str = "scores.csv",
    columns: list[str] | None = None,
    id_column: str | None = None,
    weights: str | None = None,
    factory: str | None = None,
) -> dict[str, Any]:
    """Score rows in one pass each: id, prediction, uncertainty, and whether the row is far from the auxiliary data.

    Args:
        model: as for label.
        data: as for label.
        estimator: folder of the estimator; that of the run where not given.
        out: .csv or .parquet file to write.
        columns: as for label.
        id_column: as for label.
        weights: as for label.
        factory: as for label.
    """
    network, manifest = load_main_model(model, factory=factory, weights=weights)
    if estimator is None and manifest is None:
        raise UserError("name the folder of the estimator with --estimator")
    served = load_estimator(estimator or model, network)
    batches = open_data(data, manifest, columns=columns, id_column=id_column)
    means: list[float] = []

    def parts() -> Iterator[dict[str, Any]]:
        for inputs, ids in batches():
            scores = served.score(inputs)
            told = served.target.prediction(scores.prediction.double())
            means.extend(scores.uncertainty.tolist())
            prediction = told.argmax(-1) if served.target.classes else told.flatten()
            columns: dict[str, Any] = {"id": ids.numpy(), "prediction": prediction.cpu().numpy()}
            if served.target.classes:
                columns["probability"] = told.amax(-1).cpu().numpy()
            columns |= {"uncertainty": scores.uncertainty.cpu().numpy(), "far": scores.far.cpu().numpy()}
            if scores.bucket is not None:
                columns["bucket"] = scores.bucket.cpu().numpy()
            yield columns

    rows = write_scores(out, parts())
    return {"scores": out, "rows": rows, "mean_uncertainty": round(float(np.mean(means)), 6)}
