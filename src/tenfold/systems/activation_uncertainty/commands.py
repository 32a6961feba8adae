"""What the command line does with activation uncertainty: with a finished run, or with a main model of the user's."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tenfold.errors import UserError
from tenfold.export import export_onnx, save_model
from tenfold.run import read_config, read_json, write_atomically
from tenfold.systems.activation_uncertainty.calls import call
from tenfold.systems.activation_uncertainty.data import load_task
from tenfold.systems.activation_uncertainty.features import ActivationFeatures
from tenfold.systems.activation_uncertainty.fingerprint import fingerprint
from tenfold.systems.activation_uncertainty.labelling import MANIFEST as LABELS_MANIFEST
from tenfold.systems.activation_uncertainty.labelling import label_to_folder, read_labels
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.metrics import quality
from tenfold.systems.activation_uncertainty.serving import (
    ESTIMATOR_MANIFEST,
    ESTIMATOR_WEIGHTS,
    UncertainModel,
    load_estimator,
    load_estimator_manifest,
)
from tenfold.systems.activation_uncertainty.sources import (
    first_batch,
    load_main_model,
    named_inputs,
    open_data,
)
from tenfold.systems.activation_uncertainty.tables import write_scores


def _learner(model: torch.nn.Module, run: str, example: Any, seed: int) -> ActivationUncertainty:
    """A learner with the dropout and target of the estimator in a folder."""
    manifest = load_estimator_manifest(run)
    own = [site for site in manifest.dropout if site["kind"] != "added"]
    rates = {site["rate"] for site in manifest.dropout}
    return ActivationUncertainty(
        model, example, target=manifest.target, passes=manifest.passes, seed=seed,
        places=[site["path"] for site in own] if own else "all",
        add=[site["path"] for site in manifest.dropout if site["kind"] == "added"],
        rate=rates.pop() if len(rates) == 1 else None,
    )  # fmt: skip


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
    model, _ = load_main_model(run, factory=factory)
    served = load_estimator(run, model)
    options = dict(read_config(run)["data"]) | ({} if root is None else {"root": root})
    data = load_task(**options)
    learner = _learner(model, run, data.example, seed)
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
    model, manifest = load_main_model(run, factory=factory)
    served = load_estimator(run, model)
    folder = Path(out) if out else Path(run) / "export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    if to == "safetensors":
        assert manifest is not None
        save_model(folder, model, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        for name in (ESTIMATOR_WEIGHTS, ESTIMATOR_MANIFEST):
            write_atomically(folder / name, (Path(run) / name).read_bytes())
        return {"model": str(folder / "model.safetensors"), "estimator": str(folder / ESTIMATOR_WEIGHTS)}
    assert manifest is not None
    facts: dict[str, Any] = manifest.extra["example"]
    example = {name: torch.zeros(2, *fact["shape"], dtype=getattr(torch, fact["type"])) for name, fact in facts.items()}
    made = export_uncertain(served, example, folder / "model.onnx")
    return {"onnx": str(made), "inputs": list(example), "outputs": ["prediction", "uncertainty"]}


class _Positional(torch.nn.Module):
    """A served model with its inputs by position, as an export wants them."""

    def __init__(self, served: UncertainModel, names: list[str]) -> None:
        super().__init__()
        self.served, self.names = served, names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        named = dict(zip(self.names, inputs, strict=True))
        return call(self.served, inputs[0] if list(named) == ["x"] else named)


def export_uncertain(served: UncertainModel, example: dict[str, torch.Tensor], path: str | Path) -> Path:
    """Write a served model as one ONNX graph with the outputs ``prediction`` and ``uncertainty``.

    Args:
        served: main model and estimator.
        example: a batch of two rows by input name; ``x`` alone is given by position.
        path: the file.

    Raises:
        UserError: it cannot be exported, or onnxruntime answers differently.
    """
    module = _Positional(served, list(example)).eval()
    made = export_onnx(
        module, list(example.values()), path, input_names=list(example),
        output_names=["prediction", "uncertainty"], batched=[True] * len(example),
    )  # fmt: skip
    return made.path


def import_official(predictions: str, *, passes: int, out: str = "predictions.csv") -> dict[str, Any]:
    """Turn Monte-Carlo predictions of torch-uncertainty or lightning-uq-box into scores by this system's definition.

    There are no official checkpoints. Predictions are taken as their authors lay them out: samples outer, one after the
    other.

    Args:
        predictions: .npy or .safetensors file with one array (passes * rows, classes) of probabilities, or (passes *
            rows,) of values.
        passes: how many passes it holds.
        out: .csv or .parquet file to write: id, prediction, uncertainty.
    """
    array = _one_array(predictions)
    if passes < 2 or len(array) % passes:
        raise UserError(f"{predictions} holds {len(array)} rows, which are not {passes} passes of the same inputs")
    if not np.isfinite(array).all():
        raise UserError(f"{predictions} holds NaN or infinite values")
    values = array.reshape(passes, len(array) // passes, -1)
    mean, spread = values.mean(0), values.std(0, ddof=1)
    best = mean.argmax(1)
    rows = np.arange(len(mean))
    columns = {
        "id": rows,
        "prediction": best if mean.shape[1] > 1 else mean[:, 0],
        "uncertainty": spread[rows, best],
    }
    return {"rows": write_scores(out, [columns]), "scores": out}


def _one_array(path: str) -> np.ndarray:
    if path.endswith(".safetensors"):
        from tenfold.export import read_checkpoint

        tensors = list(read_checkpoint(path).values())
        if len(tensors) != 1:
            raise UserError(f"{path} holds {len(tensors)} arrays; give one")
        return tensors[0].double().numpy()
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read the array {path}: {error}") from error
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.number) or len(array) == 0:
        raise UserError(f"{path} holds {array.dtype} of shape {array.shape}; give (passes * rows[, classes])")
    return array.astype(np.float64)


def predict(run: str, inputs: list[str], *, factory: str | None = None) -> str:
    """Predict with a run's model and say how unsure it is; one JSON line per input.

    Args:
        run: folder of the run.
        inputs: image files (or .npy files of uint8 images) for a run on images, tables for a run on tables.
        factory: of a network of your own, which the run names.
    """
    model, manifest = load_main_model(run, factory=factory)
    served = load_estimator(run, model)
    assert manifest is not None
    lines = []
    for names, rows in named_inputs(inputs, manifest):
        scores = served.score(rows)
        told = served.target.prediction(scores.prediction.double())
        for n, name in enumerate(names):
            line: dict[str, Any] = {"input": name}
            if served.target.classes:
                label = int(told[n].argmax())
                line |= {
                    "class": label,
                    "label": manifest.extra["classes"][label],
                    "probability": float(told[n, label]),
                }
            else:
                line |= {"prediction": float(told.flatten()[n])}
            line |= {"uncertainty": float(scores.uncertainty[n]), "far": bool(scores.far[n])}
            lines.append({key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()})
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


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
    weights: str | None = None,
    factory: str | None = None,
    seed: int = 0,
    per_sample: bool = False,
    memory_limit_mb: float = 64.0,
) -> dict[str, Any]:
    """Label rows by passes with dropout; the job resumes, and under torchrun processes share it.

    Args:
        model: folder of a run, or package.module:function that makes a model.
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
        id_column: of a table.
        weights: checkpoint of a model that a function makes.
        factory: of a network of your own, which the run names.
        seed: of the masks.
        per_sample: masks by id: the same in any batch; slower.
        memory_limit_mb: MiB that the passes run together may take.
    """
    network, manifest = load_main_model(model, factory=factory, weights=weights)
    batches = open_data(data, manifest, columns=columns, id_column=id_column)
    learner = ActivationUncertainty(
        network, first_batch(batches, data), target=target, taps=taps, form=form, pool=pool, places=places, rate=rate,
        add=add or [], passes=passes, seed=seed,
    )  # fmt: skip
    folder = label_to_folder(learner, batches(), out, per_sample=per_sample, memory_limit_mb=memory_limit_mb)
    return {"labels": str(folder), "dropout": [site.path for site in learner.dropout.sites],
            "features": learner.features.width}  # fmt: skip


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
        model, example, target=found["target"], passes=found["passes"], seed=found["seed"],
        places=own or "all", add=[path for path, kind, _ in sites if kind == "added"],
        rate=rates.pop() if len(rates) == 1 else None,
    )  # fmt: skip
    learner.features = ActivationFeatures.from_dict(model, found["features"])
    return learner


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


VERBS = {"label": label, "fit": fit, "score": score}
