"""Fit an estimator on labels."""

from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.systems.activation_uncertainty.cli.input_data import first_inputs
from tenfold.systems.activation_uncertainty.cli.options import MainModelChoice, RowChoice
from tenfold.systems.activation_uncertainty.labelling import learner_of_labels, read_labels
from tenfold.systems.activation_uncertainty.serving.saved_estimator import ESTIMATOR_MANIFEST


def fit(
    model: str,
    data: str,
    labels: str,
    rows: RowChoice,
    made: MainModelChoice,
    *,
    out: str = "estimator",
    loss: Literal["auto", "mse_std", "mse_var", "gamma"] = "auto",
    task: Literal["regression", "buckets"] = "regression",
    hidden: list[int] | None = None,
    select: bool = True,
    tolerance: float = 0.01,
) -> dict[str, Any]:
    """Fit the estimator on labels and write it: estimator.safetensors with estimator.json.

    Args:
        model: as for label.
        data: as for label; its first rows give shapes and the fingerprint.
        labels: folder of finished labels.
        rows: what the data hold.
        made: how the model is made.
        out: folder to write, which holds no estimator yet.
        loss: of the estimator.
        task: regression, or buckets of equal frequency.
        hidden: widths of the estimator.
        select: read only the cheapest layers that are almost as good as all.
        tolerance: how far below all layers' R2 they may be.
    """
    if (Path(out) / ESTIMATOR_MANIFEST).exists():
        raise UserError(f"{printable(out)} holds an estimator already; name another folder with --out")
    main = made.load(model)
    batches = rows.open(data, main)
    learner = learner_of_labels(main.network, first_inputs(batches, data), labels)
    learner.fit(
        read_labels(labels), loss=loss, task=task, hidden=tuple(hidden or (100, 50)), select=select, tolerance=tolerance
    )
    learner.save(out)
    return {
        "estimator": str(out),
        "layers": list(learner.serve().features.blocks),
        "validation_r2": round(learner.result.r2, 5),
        "multiply_adds": learner.result.estimator.multiply_adds,
    }
