"""``tenfold export`` and ``tenfold import``: for deployment, and from official checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.data import Preprocessing
from tenfold.data.splits import STATISTICS
from tenfold.errors import UserError
from tenfold.files import make_folder
from tenfold.models.folder import MANIFEST, WEIGHTS, save_model
from tenfold.systems.boosted_exits.builders import stages_of
from tenfold.systems.boosted_exits.networks.msdnet import MSDNet
from tenfold.systems.boosted_exits.networks.official_arguments import parse_official_arguments, read_official_arguments
from tenfold.systems.boosted_exits.networks.official_checkpoints import load_official
from tenfold.systems.boosted_exits.policies.metrics import exit_costs
from tenfold.systems.boosted_exits.serving.onnx_graphs import export_branching, export_staged
from tenfold.systems.boosted_exits.serving.served_model import SYSTEM, load_network, policy_of, preprocessing_of

_SET_BY_BUILDER = ("num_classes", "image_channels", "reweight", "rescale")


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
    _refuse_foreign(folder)
    make_folder(folder)
    if to == "safetensors":
        save_model(folder, network, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / "model.json")}
    shape = manifest.arguments["image_shape"]
    stages = stages_of(network, torch.zeros(2, *shape))
    thresholds = policy_of(manifest, run).thresholds
    extra = manifest.extra
    metadata = {
        "system": SYSTEM,
        "classes": json.dumps(extra.get("classes")),
        "preprocessing": json.dumps(preprocessing_of(manifest).to_dict()),
        "costs": json.dumps(extra["costs"]),
    }
    path = folder / "model.onnx"
    branching = export_branching(stages, torch.zeros(1, *shape), thresholds, path, metadata=metadata)
    staged = export_staged(stages, torch.zeros(2, *shape), thresholds, folder / "stages", costs=manifest.extra["costs"])
    return {
        "branching": str(branching.path),
        "staged": str(folder / "stages"),
        "largest_difference": max(branching.max_difference, staged.max_difference),
    }


def _refuse_foreign(folder: Path) -> None:
    """Refuse to write over a model that was not exported here."""
    ours = (folder / "stages" / "stages.json").exists() or (folder / MANIFEST).exists()
    if not ours and any((folder / name).exists() for name in ("model.onnx", WEIGHTS, "stages")):
        raise UserError(f"{folder} holds a model that was not exported here; name another folder with --out")


def import_official(
    checkpoint: str, *, network: str | None = None, settings: str | None = None, out: str | None = None
) -> dict[str, Any]:
    """Turn a checkpoint of MSDNet-PyTorch, RANet-pytorch or BoostNet into a model folder.

    Args:
        checkpoint: the .pth or .pth.tar file, or latest.txt, which names one; nothing in it is executed.
        network: published network that it holds; found by the shapes of the weights where neither this nor settings
            is given.
        settings: for any other network, what it was trained with: args.pth, args.txt, log.txt, or the script.
        out: folder to write; the checkpoint's name without its suffixes where not given.
    """
    folder = Path(out) if out else Path(Path(checkpoint).name.split(".")[0])
    if (folder / MANIFEST).exists() or (folder / WEIGHTS).exists():
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
        extra={
            "costs": list(counted),
            "cost_convention": "msdnet",
            "policy": None,
            "preprocessing": _official_preprocessing(own["num_classes"], shape).to_dict(),
        },
    )
    return {"model": str(folder), "exits": model.exits, "num_classes": own["num_classes"], "costs": list(counted)}


def _official_preprocessing(classes: int, image_shape: Sequence[int]) -> Preprocessing:
    """What the official programs do to the images of the data set with so many classes."""
    if image_shape[-1] == 224:
        return Preprocessing.cropped(224, *STATISTICS["imagenet"])
    return Preprocessing.squeezed(image_shape, *STATISTICS["cifar10" if classes == 10 else "cifar100"])
