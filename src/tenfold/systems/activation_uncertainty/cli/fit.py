"""Fit an estimator on labels."""

from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.errors import UserError
from tenfold.run import read_json
from tenfold.systems.activation_uncertainty.cli.input_data import first_batch, open_data
from tenfold.systems.activation_uncertainty.cli.main_model import load_main_model
from tenfold.systems.activation_uncertainty.labelling import MANIFEST as LABELS_MANIFEST
from tenfold.systems.activation_uncertainty.labelling import read_labels
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.network.features import ActivationFeatures
from tenfold.systems.activation_uncertainty.network.fingerprint import fingerprint


def fit(
    model: str,
    data: str,
    labels: str,
    *,
    out: str = "estimator",
    loss: Literal["auto", "mse_std", "mse_var", "gamma"] = "auto",
    task: Literal["regression", "buckets"] = "regression",
    hidden: list[int] | None = None,
    select: bool = True,
    tolerance: float = 0.01,
    columns: list[str] | None = None,
    id_column: str | None = None,
    weights: str | None = None,
    factory: str | None = None,
) -> dict[str, Any]:
    """Fit the estimator on labels and write it: estimator.safetensors with estimator.json.

    Args:
        model: as for label.
        data: as for label; its first rows give shapes and the fingerprint.
        labels: folder of finished labels.
        out: folder to write.
        loss: of the estimator.
        task: regression, or buckets of equal frequency.
        hidden: widths of the estimator.
        select: read only the cheapest layers that are almost as good as all.
        tolerance: how far below all layers' R2 they may be.
        columns: as for label.
        id_column: as for label.
        weights: as for label.
        factory: as for label.
    """
    network, manifest = load_main_model(model, factory=factory, weights=weights)
    batches = open_data(data, manifest, columns=columns, id_column=id_column)
    learner = learner_of_labels(network, first_batch(batches, data), labels)
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


def learner_of_labels(model: torch.nn.Module, example: Any, labels: str) -> ActivationUncertainty:
    """The learner that made labels: the same dropout, target and taps.

    Raises:
        UserError: the labels are of another model.
    """
    found = read_json(Path(labels) / LABELS_MANIFEST)
    if fingerprint(model, example)["values"] != found["model"]:
        raise UserError(f"the labels in {labels} are of another model; label again")
    sites = found["dropout"]
    own = [path for path, kind, _ in sites if kind != "added"]
    rates = {rate for *_, rate in sites}
    learner = ActivationUncertainty(
        model,
        example,
        target=found["target"],
        passes=found["passes"],
        seed=found["seed"],
        places=own or "all",
        add=[path for path, kind, _ in sites if kind == "added"],
        rate=rates.pop() if len(rates) == 1 else None,
    )
    learner.features = ActivationFeatures.from_dict(model, found["features"])
    return learner
