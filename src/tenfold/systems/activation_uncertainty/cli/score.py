"""Score rows with a model and its estimator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold.errors import UserError
from tenfold.files import printable, refuse_overwriting
from tenfold.models.folder import MANIFEST, WEIGHTS
from tenfold.systems.activation_uncertainty.cli.options import MainModelChoice, RowChoice
from tenfold.systems.activation_uncertainty.data.tables import check_scores_file, write_scores
from tenfold.systems.activation_uncertainty.serving.saved_estimator import load_estimator


def score(
    model: str,
    data: str,
    rows: RowChoice,
    made: MainModelChoice,
    *,
    estimator: str | None = None,
    out: str = "scores.csv",
) -> dict[str, Any]:
    """Score rows in one pass each: id, prediction, uncertainty, and whether the row is far from the auxiliary data.

    Args:
        model: as for label.
        data: as for label.
        rows: what the data hold.
        made: how the model is made.
        estimator: folder of the estimator; that of the run where not given.
        out: .csv or .parquet file to write.
    """
    check_scores_file(out)
    refuse_overwriting(out, data, made.weights or data, Path(model) / MANIFEST, Path(model) / WEIGHTS)
    main = made.load(model)
    if estimator is None and main.facts is None:
        raise UserError("name the folder of the estimator with --estimator")
    served = load_estimator(estimator or model, main.network)
    batches = rows.open(data, main)
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

    written = write_scores(out, scored())
    if not written:
        raise UserError(f"{printable(data)} holds no rows")
    return {"scores": out, "rows": written, "mean_uncertainty": round(float(np.mean(means)), 6)}
