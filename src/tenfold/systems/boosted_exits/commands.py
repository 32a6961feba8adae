"""What the command line does with a finished run or a model folder of boosted exits."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from tenfold.cost import Convention, count_parameters, measure_latency
from tenfold.data import Splits, load_splits, normalize, read_images
from tenfold.errors import UserError
from tenfold.export import Manifest, load_manifest, load_weights, save_model
from tenfold.run import read_config, write_atomically
from tenfold.systems.boosted_exits.builders import ExitNetwork, build_network, stages_of
from tenfold.systems.boosted_exits.checkpoints import (
    load_official,
    parse_official_arguments,
    read_official_arguments,
)
from tenfold.systems.boosted_exits.metrics import calibration_errors, exit_accuracies, exit_costs
from tenfold.systems.boosted_exits.metrics import predict as predict_images
from tenfold.systems.boosted_exits.msdnet import MSDNet
from tenfold.systems.boosted_exits.onnx import export_branching, export_staged
from tenfold.systems.boosted_exits.serving import EarlyExitRunner
from tenfold.systems.boosted_exits.thresholds import (
    ExitPolicy,
    ExitRecords,
    evaluate_policy,
    record_exits,
    solve_thresholds,
)

CPU = torch.device("cpu")
_SET_BY_BUILDER = ("num_classes", "image_channels", "reweight", "rescale")


def load_network(folder: str | Path, factory: str | None = None) -> tuple[ExitNetwork, Manifest]:
    """Rebuild the network of a run or model folder, in eval mode.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        factory: must repeat the factory of a network of the user's own: a manifest alone never runs code.

    Raises:
        UserError: the folder holds no such network, the weights are damaged or do not fit.
    """
    manifest = load_manifest(folder)
    if manifest.system != "boosted-exits":
        raise UserError(f"{folder} holds a model of {manifest.system!r}, not of boosted-exits")
    if manifest.builder == "factory" and factory != manifest.arguments.get("factory"):
        raise UserError(
            f"the network of {folder} is made by {manifest.arguments.get('factory')!r}: allow it with --factory"
        )
    network = build_network(manifest.builder, **manifest.arguments)
    load_weights(network, folder)
    return network.eval(), manifest


def evaluate(
    run: str, *, data: str | None = None, root: str | None = None, batch_size: int = 256, factory: str | None = None
) -> dict[str, Any]:
    """Measure a run's network again on its test split: every exit, and the thresholds it was delivered with.

    Args:
        run: folder of the run, or of an imported model.
        data: name of the data, where not those of the run.
        root: folder of the data, where not that of the run.
        batch_size: images at a time.
        factory: of a network of your own, see load_network.
    """
    network, manifest = load_network(run, factory)
    options: dict[str, Any] = dict(read_config(run)["data"]) if (Path(run) / "config.yaml").exists() else {}
    options |= {name: value for name, value in {"name": data, "root": root}.items() if value is not None}
    if "name" not in options:
        raise UserError(f"{run} names no data: name them with --data")
    splits = load_splits(**options)
    _require_shape(splits, manifest)
    extra = manifest.extra
    test = record_exits(*predict_images(network, splits.test_batches(batch_size), CPU), extra["costs"])
    answer: dict[str, Any] = {
        "data": splits.name,
        "images": test.samples,
        "accuracy": [round(100 * value, 3) for value in exit_accuracies(test).tolist()],
        "calibration_error": [round(value, 5) for value in calibration_errors(test).tolist()],
        "costs": extra["costs"],
    }
    if extra.get("policy"):
        outcome = evaluate_policy(test, ExitPolicy.from_dict(extra["policy"]).thresholds)
        answer["served"] = {
            "accuracy": round(100 * outcome.accuracy, 3),
            "cost": outcome.cost,
            "exit_shares": list(outcome.exit_shares),
        }
    return answer


def export(
    run: str, *, to: Literal["onnx", "safetensors"] = "onnx", out: str | None = None, factory: str | None = None
) -> dict[str, Any]:
    """Write a run's network for deployment; ONNX is checked against PyTorch before it is kept.

    Args:
        run: folder of the run, or of an imported model.
        to: onnx: model.onnx (one input at a time, really branches) and stages/ (a file per stage, for batches);
            safetensors: the weights with their manifest.
        out: folder to write; RUN/export where not given.
        factory: of a network of your own, see load_network.
    """
    network, manifest = load_network(run, factory)
    folder = Path(out) if out else Path(run) / "export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    if to == "safetensors":
        save_model(folder, network, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / "model.json")}
    shape = manifest.arguments["image_shape"]
    stages = stages_of(network, torch.zeros(2, *shape))
    thresholds = _policy(manifest, run).thresholds
    branching = export_branching(stages, torch.zeros(1, *shape), thresholds, folder / "model.onnx")
    staged = export_staged(stages, torch.zeros(2, *shape), thresholds, folder / "stages", costs=manifest.extra["costs"])
    return {
        "branching": str(branching.path),
        "staged": str(folder / "stages"),
        "largest_difference": max(branching.max_difference, staged.max_difference),
    }


def import_official(
    checkpoint: str, *, network: str | None = None, settings: str | None = None, out: str | None = None
) -> dict[str, Any]:
    """Turn a checkpoint of MSDNet-PyTorch, RANet-pytorch or BoostNet into a model folder.

    Args:
        checkpoint: the .pth or .pth.tar file, or latest.txt, which names one; nothing in it is executed.
        network: published network that it holds; found by the shapes of the weights where neither this nor settings
            is given.
        settings: the args.pth that the official program wrote beside it, for any other network.
        out: folder to write; the checkpoint's name without its suffixes where not given.
    """
    folder = Path(out) if out else Path(Path(checkpoint).name.split(".")[0])
    if (folder / "model.json").exists():
        raise UserError(f"{folder} already holds a model; name another folder with --out")
    target = parse_official_arguments(read_official_arguments(settings)) if settings else network
    model = load_official(checkpoint, target).eval()
    own = model.settings
    side = 224 if own["stem"] == "imagenet" else 32
    shape = [own["image_channels"], side, side]
    counted = exit_costs(model, torch.zeros(1, *shape), "msdnet")
    save_model(
        folder,
        model,
        system="boosted-exits",
        builder="msdnet" if isinstance(model, MSDNet) else "ranet",
        arguments={
            "num_classes": own["num_classes"],
            "image_shape": shape,
            "arguments": {name: value for name, value in own.items() if name not in _SET_BY_BUILDER},
            "reweight": list(model.reweight),
            "rescale": model.rescale,
        },
        extra={"costs": list(counted), "cost_convention": "msdnet", "policy": None},
    )
    return {"model": str(folder), "exits": model.exits, "num_classes": own["num_classes"], "costs": list(counted)}


def predict(run: str, inputs: list[str], *, factory: str | None = None) -> str:
    """Predict with a run's network, which stops at the first exit that is sure enough; one JSON line per image.

    Args:
        run: folder of the run.
        inputs: image files; or .npy files of uint8, one image (height, width[, channels]) or several (n, channels,
            height, width).
        factory: of a network of your own, see load_network.
    """
    network, manifest = load_network(run, factory)
    extra, shape = manifest.extra, manifest.arguments["image_shape"]
    runner = EarlyExitRunner(stages_of(network, torch.zeros(2, *shape)), _policy(manifest, run).thresholds)
    lines = []
    for name, image in read_images(inputs, shape):
        output = runner(normalize(image[None], extra["mean"], extra["std"]))
        probabilities = output.logits[0].softmax(-1)
        label, leaving = int(probabilities.argmax()), int(output.exits[0])
        lines.append(
            {
                "input": name,
                "class": label,
                "label": extra["classes"][label],
                "confidence": round(float(probabilities[label]), 6),
                "exit": leaving + 1,
                "cost": extra["costs"][leaving],
            }
        )
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


def _policy(manifest: Manifest, run: str) -> ExitPolicy:
    if not manifest.extra.get("policy"):
        raise UserError(
            f"{run} has no thresholds yet: solve them with tenfold boosted-exits thresholds RUN --save true"
        )
    return ExitPolicy.from_dict(manifest.extra["policy"])


def thresholds(
    run: str,
    *,
    method: Literal["search", "geometric", "risk"] = "search",
    budget: float | None = None,
    epsilon: float = 0.01,
    delta: float = 0.05,
    data: str | None = None,
    root: str | None = None,
    save: bool = False,
    factory: str | None = None,
) -> dict[str, Any]:
    """Solve exit thresholds on a validation split, for a budget or for a tolerated loss of accuracy.

    Args:
        run: folder of the run, or of an imported model.
        method: search (best accuracy within the budget), geometric (the official family) or risk.
        budget: mean cost of an image as a share of the whole network's; for search and geometric.
        epsilon: for risk, tolerated loss of accuracy against the last exit.
        delta: for risk, probability with which it may be exceeded.
        data: name of the data whose validation split decides; needed for an imported model, else the run's own.
        root: folder of these data.
        save: keep the thresholds in model.json, for predict and export.
        factory: of a network of your own, see load_network.
    """
    manifest = load_manifest(run)
    extra = dict(manifest.extra)
    kept = Path(run) / "validation.safetensors"
    if data is None and kept.exists():
        saved = load_file(kept)
        records = ExitRecords(saved["confidences"], saved["correct"], tuple(extra["costs"]))
    elif data is None:
        raise UserError(f"{run} keeps no validation confidences: name data with --data (and --root)")
    else:
        network, _ = load_network(run, factory)
        splits = load_splits(data, root=root)
        _require_shape(splits, manifest)
        records = record_exits(*predict_images(network, splits.validation_batches(), CPU), extra["costs"])
        extra |= {"classes": list(splits.classes), "mean": list(splits.mean), "std": list(splits.std)}
    limit = None if budget is None else budget * records.costs[-1]
    policy = solve_thresholds(records, method, budget=limit, epsilon=epsilon, delta=delta)
    if save:
        updated = manifest.model_copy(update={"extra": extra | {"policy": policy.to_dict()}})
        write_atomically(Path(run) / "model.json", updated.model_dump_json(indent=1) + "\n")
    return policy.to_dict()


def _require_shape(splits: Splits, manifest: Manifest) -> None:
    wanted = tuple(manifest.arguments["image_shape"])
    if tuple(splits.image_shape) != wanted:
        raise UserError(f"the network takes images {wanted}; those of {splits.name} are {tuple(splits.image_shape)}")


def costs(
    network: str,
    *,
    num_classes: int = 10,
    image_shape: list[int] | None = None,
    arguments: dict[str, Any] | None = None,
    taps: list[str] | None = None,
    convention: Convention = "multiply-adds",
) -> str:
    """Count a network's parameters and the cost of each exit, and time its stages on this machine.

    Args:
        network: small-cnn, msdnet, ranet, torchvision/NAME or timm/NAME.
        num_classes: number of classes.
        image_shape: (channels, height, width); 3 x 32 x 32 where not given.
        arguments: of the network, such as {published: cifar-anytime}.
        taps: modules that get an exit, for networks without exits.
        convention: multiply-adds, torch (two per multiply-add) or msdnet (the official counter).
    """
    shape = image_shape or [3, 32, 32]
    built = build_network(network, num_classes=num_classes, image_shape=shape, arguments=arguments, taps=taps or ())
    stages = stages_of(built.eval(), torch.zeros(2, *shape)).eval()
    example = torch.zeros(1, *shape)
    counted = exit_costs(stages, example, convention)
    lines = [f"parameters: {count_parameters(built):,}", f"{'exit':>4}  {convention:>16}  {'stage + head, ms':>16}"]
    state: Any = example
    with torch.inference_mode():
        for n, cost in enumerate(counted):
            before = state
            latency = measure_latency(lambda n=n, before=before: stages.run_stage(n, before))  # type: ignore[misc]
            state, _ = stages.run_stage(n, before)
            lines.append(f"{n + 1:>4}  {cost:>16,}  {latency.median_ms:>16.3f}")
    return "\n".join(lines)


VERBS = {"thresholds": thresholds, "costs": costs}
