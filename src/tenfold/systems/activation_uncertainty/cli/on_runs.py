"""Commands on a finished run: evaluate, export, predict."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.errors import UserError
from tenfold.files import first_line, make_folder, printable, refuse_overwriting, write_atomically
from tenfold.models.folder import save_model
from tenfold.run import read_config
from tenfold.settings import check_settings
from tenfold.systems.activation_uncertainty.cli.input_data import named_inputs
from tenfold.systems.activation_uncertainty.data.task_data import load_task
from tenfold.systems.activation_uncertainty.estimator.metrics import quality
from tenfold.systems.activation_uncertainty.experiment.settings import DataOptions
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.network.dropout import DropoutController
from tenfold.systems.activation_uncertainty.serving.loading import load_own
from tenfold.systems.activation_uncertainty.serving.onnx_graph import export_uncertain
from tenfold.systems.activation_uncertainty.serving.saved_estimator import (
    ESTIMATOR_MANIFEST,
    ESTIMATOR_WEIGHTS,
    load_estimator,
    load_estimator_manifest,
)


def evaluate(
    run: str, *, passes: int = 100, root: str | None = None, seed: int = 1, factory: str | None = None
) -> dict[str, Any]:
    """Measure a run's estimator again, against new passes with dropout over its test split.

    Args:
        run: folder of the run.
        passes: T of the labels.
        root: folder of the data, where not that of the run.
        seed: of the masks.
        factory: of a network of your own, which the run names.
    """
    model = load_own(run, factory).network
    served = load_estimator(run, model)
    found = load_estimator_manifest(run)
    data = load_task(**_data_options(run, root))
    learner = ActivationUncertainty(
        model,
        data.example,
        target=found.target,
        passes=found.passes,
        seed=seed,
        dropout=DropoutController(model, data.example, sites=found.dropout),
    )
    labels = learner.label(data.numbered("test"), passes=passes, seed=seed)
    scores = [served.score(inputs) for inputs, _ in data.numbered("test")]
    measured = quality(labels.uncertainty, torch.cat([score.uncertainty for score in scores]))
    far = torch.cat([score.far for score in scores]).float().mean()
    return {
        "data": data.name,
        "rows": len(labels),
        "passes": passes,
        **{name: round(value, 5) for name, value in asdict(measured).items()},
        "far": round(float(far), 5),
    }


def _data_options(run: str, root: str | None) -> dict[str, Any]:
    """The data of a run, checked, with another folder where one is given."""
    try:
        options = DataOptions(**(read_config(run).get("data") or {}))
    except TypeError as error:
        raise UserError(f"{printable(run)}/config.yaml names other data settings: {first_line(error)}") from error
    check_settings(options)
    return asdict(options) | ({} if root is None else {"root": root})


def export(
    run: str, *, to: Literal["onnx", "safetensors"] = "onnx", out: str | None = None, factory: str | None = None
) -> dict[str, Any]:
    """Write a run's model with its estimator: one ONNX graph with two outputs, or safetensors.

    Args:
        run: folder of the run.
        to: onnx: model.onnx, outputs prediction and uncertainty, checked against PyTorch; safetensors: both models with
            their manifests.
        out: folder to write; RUN/export where not given.
        factory: of a network of your own, which the run names.
    """
    main = load_own(run, factory)
    served = load_estimator(run, main.network)
    assert main.manifest is not None and main.facts is not None
    folder = make_folder(out or Path(run) / "export")
    refuse_overwriting(folder, run)
    if to == "safetensors":
        save_model(
            folder, main.network, **main.manifest.model_dump(include={"system", "builder", "arguments", "extra"})
        )
        for name in (ESTIMATOR_WEIGHTS, ESTIMATOR_MANIFEST):
            write_atomically(folder / name, (Path(run) / name).read_bytes())
        return {"model": str(folder / "model.safetensors"), "estimator": str(folder / ESTIMATOR_WEIGHTS)}
    example = {
        name: torch.zeros(2, *fact.shape, dtype=getattr(torch, fact.type)) for name, fact in main.facts.example.items()
    }
    made = export_uncertain(served, example, folder / "model.onnx")
    return {"onnx": str(made), "inputs": list(example), "outputs": ["prediction", "uncertainty"]}


def predict(run: str, inputs: list[str], *, factory: str | None = None) -> str:
    """Predict with a run's model and say how unsure it is; one JSON line per input.

    Args:
        run: folder of the run.
        inputs: image files (or .npy files of uint8 images) for a run on images, tables for a run on tables.
        factory: of a network of your own, which the run names.
    """
    main = load_own(run, factory)
    served = load_estimator(run, main.network)
    assert main.facts is not None
    lines = []
    for names, rows in named_inputs(inputs, main):
        scores = served.score(rows)
        told = served.target.prediction(scores.prediction.double())
        for n, name in enumerate(names):
            line: dict[str, Any] = {"input": name}
            if served.target.classes:
                label = int(told[n].argmax())
                line |= {
                    "class": label,
                    "label": main.facts.classes[label],
                    "probability": float(told[n, label]),
                }
            else:
                line |= {"prediction": float(told.flatten()[n])}
            line |= {"uncertainty": float(scores.uncertainty[n]), "far": bool(scores.far[n])}
            lines.append({key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()})
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
