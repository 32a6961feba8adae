"""Score rows with a model and its estimator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold.errors import UserError
from tenfold.files import printable, refuse_overwriting
from tenfold.model_folder import MANIFEST, WEIGHTS
from tenfold.systems.activation_uncertainty.cli.input_data import open_data
from tenfold.systems.activation_uncertainty.cli.main_model import load_main_model
from tenfold.systems.activation_uncertainty.data.tables import TableColumns, check_scores_file, write_scores
from tenfold.systems.activation_uncertainty.serving.saved_estimator import load_estimator


def score(
    model: str,
    data: str,
    *,
    estimator: str | None = None,
    out: str = "scores.csv",
    columns: list[str] | None = None,
    id_column: str | None = None,
    parts: list[str] | dict[str, str] | None = None,
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
        parts: as for label.
        weights: as for label.
        factory: as for label.
    """
    check_scores_file(out)
    refuse_overwriting(out, data, weights or data, Path(model) / MANIFEST, Path(model) / WEIGHTS)
    main = load_main_model(model, factory=factory, weights=weights)
    if estimator is None and main.facts is None:
        raise UserError("name the folder of the estimator with --estimator")
    served = load_estimator(estimator or model, main.network)
    batches = open_data(data, main, columns=TableColumns(columns, id_column), parts=parts)
    means: list[float] = []

    def scored() -> Iterator[dict[str, Any]]:
        for inputs, ids in batches():
            scores = served.score(inputs)
            told = served.target.prediction(scores.prediction.double())
            if not torch.isfinite(scores.uncertainty).all() or not torch.isfinite(told).all():
                raise UserError(f"{printable(data)}: the network gives NaN or infinite outputs; look for bad inputs")
            means.extend(scores.uncertainty.tolist())
            prediction = told.argmax(-1) if served.target.classes else told.flatten()
            found: dict[str, Any] = {"id": np.asarray(ids), "prediction": prediction.cpu().numpy()}
            if served.target.classes:
                found["probability"] = told.amax(-1).cpu().numpy()
            found |= {"uncertainty": scores.uncertainty.cpu().numpy(), "far": scores.far.cpu().numpy()}
            if scores.bucket is not None:
                found["bucket"] = scores.bucket.cpu().numpy()
            yield found

    rows = write_scores(out, scored())
    if not rows:
        raise UserError(f"{printable(data)} holds no rows")
    return {"scores": out, "rows": rows, "mean_uncertainty": round(float(np.mean(means)), 6)}
