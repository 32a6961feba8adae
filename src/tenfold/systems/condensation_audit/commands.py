"""What the command line does with runs, sets and models of condensation and its audit."""

import json
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.data import read_images
from tenfold.data.splits import ImageOptions
from tenfold.errors import UserError
from tenfold.export import export_onnx, load_manifest, save_model
from tenfold.run import read_config
from tenfold.systems.condensation_audit.audit_commands import audit, calibrate
from tenfold.systems.condensation_audit.condensing import condense as condense_images
from tenfold.systems.condensation_audit.data import Data, load_data
from tenfold.systems.condensation_audit.doorping import Doorping
from tenfold.systems.condensation_audit.file_commands import FILE_VERBS, import_set
from tenfold.systems.condensation_audit.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.official_files import Program
from tenfold.systems.condensation_audit.quality import evaluate_set, train_on
from tenfold.systems.condensation_audit.serving import load_served
from tenfold.systems.condensation_audit.set_files import load_set, save_set
from tenfold.systems.condensation_audit.sets import TrainingRecipe
from tenfold.systems.condensation_audit.triggers import Attack


def evaluate(
    run: str, *, data: str | None = None, root: str | None = None, factory: str | None = None
) -> dict[str, Any]:
    """Measure a run's network again on its test images.

    Args:
        run: folder of the run, or of a model.
        data: name of the data, where not those of the run.
        root: folder of the data, where not that of the run.
        factory: of a network of your own: it must be repeated, a file alone never runs code.
    """
    network, _ = load_served(run, factory)
    found = _data_of(run, data, root)
    _require_shape(found, load_manifest(run).arguments["image_shape"], run)
    with torch.inference_mode():
        parts = [network(part.float() / 255).argmax(1) for part in found.test.images.split(1024)]
    accuracy = float((torch.cat(parts) == found.test.labels).double().mean())
    return {"data": found.name, "images": len(found.test), "accuracy": round(100 * accuracy, 3)}


def _data_of(run: str, name: str | None, root: str | None) -> Data:
    options: dict[str, Any] = {}
    if (Path(run) / "config.yaml").exists():
        options = dict(read_config(run)["data"])
    options |= {key: value for key, value in {"name": name, "root": root}.items() if value is not None}
    if "name" not in options:
        raise UserError(f"{run} names no data: name them with --data")
    return load_data(ImageOptions(**options))


def _require_shape(data: Data, shape: list[int], what: str) -> None:
    if list(data.test.image_shape) != list(shape):
        raise UserError(f"{what} takes images {tuple(shape)}; those of {data.name} are {data.test.image_shape}")


def export(
    run: str, *, to: Literal["onnx", "safetensors"] = "onnx", out: str | None = None, factory: str | None = None
) -> dict[str, Any]:
    """Write a run's network for deployment, range guard and preprocessing inside; ONNX is checked against PyTorch.

    Args:
        run: folder of the run, or of a model.
        to: onnx: pixels in [0, 1] to logits; safetensors: the weights with their manifest.
        out: folder to write; RUN/export where not given.
        factory: of a network of your own.
    """
    network, extra = load_served(run, factory)
    manifest = load_manifest(run)
    folder = Path(out) if out else Path(run) / "export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    if to == "safetensors":
        if extra.get("zca"):
            save_set(folder / extra["set"], load_set(Path(run) / extra["set"]), overwrite=True)
        save_model(folder, network.network, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / "model.json")}
    example = torch.rand(2, *manifest.arguments["image_shape"], generator=torch.Generator().manual_seed(0))
    exported = export_onnx(
        network, [example], folder / "model.onnx", input_names=["pixels"], output_names=["logits"], batched=[True]
    )
    return {"onnx": str(exported.path), "largest_difference": exported.max_difference}


def predict(run: str, inputs: list[str], *, factory: str | None = None) -> str:
    """Predict with a run's network; one JSON line per image.

    Args:
        run: folder of the run, or of a model.
        inputs: image files; or .npy files of uint8, one image (height, width[, channels]) or several (n, channels,
            height, width).
        factory: of a network of your own.
    """
    network, extra = load_served(run, factory)
    lines = []
    for name, image in read_images(inputs, load_manifest(run).arguments["image_shape"]):
        with torch.inference_mode():
            probabilities = network(image[None].float() / 255)[0].softmax(0)
        label = int(probabilities.argmax())
        lines.append(
            {
                "input": name, "class": label, "label": extra["classes"][label],
                "confidence": round(float(probabilities[label]), 6),
            }
        )  # fmt: skip
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


def condense(
    out: str,
    *,
    data: str = "digits",
    root: str | None = None,
    resize: int | None = None,
    validation: int = 300,
    method: str = "dm",
    images_per_class: int = 10,
    network: str = "convnet",
    arguments: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    networks: int = 5,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Condense a data set into a small synthetic one, and measure what networks trained on it reach.

    Args:
        out: the set to write: a folder NAME.cset, or one .safetensors file.
        data: name of the data: digits, fashion-mnist, cifar10, svhn, stl10, folder ...
        root: their folder; TENFOLD_DATA where not given.
        resize: side to which images in memory are brought.
        validation: images kept out for the audit.
        method: dm, dc, dsa, mtt, dd; random, herding, k-center, k-means, class-means.
        images_per_class: of each class (dd: and of each step).
        network: convnet, mlp, lenet, alexnet, vgg11, resnet18, convnet_baadd, alexnet_baadd, torchvision/NAME,
            timm/NAME, or factory.
        arguments: of the network, such as '{"width": 16, "depth": 2}'.
        settings: of the method, such as '{"iterations": 200}'.
        recipe: how networks are trained on the set, such as '{"epochs": 200}'.
        networks: trained to measure it; none where 0.
        seed: of everything random.
        device: cpu, cuda.
    """
    return _condense(
        out, None, data, root, resize, validation, method, images_per_class, network, arguments, settings, recipe,
        networks, seed, device,
    )  # fmt: skip


def redteam(
    out: str,
    *,
    attack: Literal["naive", "doorping"] = "naive",
    portion: float = 0.01,
    target: int = 0,
    size: int = 2,
    clamp: Literal["none", "valid", "uint8"] = "uint8",
    attack_settings: dict[str, Any] | None = None,
    data: str = "digits",
    root: str | None = None,
    resize: int | None = None,
    validation: int = 300,
    method: str = "dm",
    images_per_class: int = 10,
    network: str = "convnet",
    arguments: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    networks: int = 5,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Condense under attack, to measure defences with; the set is always marked as poisoned.

    Args:
        out: the set to write.
        attack: naive (fixed white square) or doorping (the trigger is updated all along).
        portion: share of the images that is poisoned.
        target: class that the trigger gives.
        size: side of the trigger in pixels.
        clamp: of doorping: none as published (leaves the pixel range), valid, or uint8.
        attack_settings: further ones, such as '{"mapping": "all-to-all"}', and of doorping '{"alpha": 5, "topk": 3}'.
        data: see condense.
        root: see condense.
        resize: see condense.
        validation: see condense.
        method: see condense.
        images_per_class: see condense.
        network: see condense.
        arguments: see condense.
        settings: see condense.
        recipe: see condense.
        networks: see condense.
        seed: see condense.
        device: see condense.
    """
    more = attack_settings or {}
    try:
        chosen: Attack = (
            NaiveAttack(portion, target, size, **more)
            if attack == "naive"
            else Doorping(portion, target, size, **{"clamp": clamp, **more})
        )
    except TypeError as error:
        raise UserError(f"the attack's settings cannot be read: {error}") from error
    return _condense(
        out, chosen, data, root, resize, validation, method, images_per_class, network, arguments, settings, recipe,
        networks, seed, device,
    )  # fmt: skip


def _condense(
    out: str, attack: Attack | None, data: str, root: str | None, resize: int | None, validation: int, method: str,
    images_per_class: int, network: str, arguments: dict[str, Any] | None, settings: dict[str, Any] | None,
    recipe: dict[str, Any] | None, networks: int, seed: int, device: str,
) -> dict[str, Any]:  # fmt: skip
    if Path(out).exists():
        raise UserError(f"{out} already exists; name another place")
    found = load_data(_options(data, root, resize, validation))
    try:
        plan = TrainingRecipe(network=network, arguments=arguments or {}, **(recipe or {}))
    except TypeError as error:
        raise UserError(f"the recipe cannot be read: {error}") from error
    made = condense_images(
        found.real, method, images_per_class, network, network_arguments=arguments, recipe=plan, attack=attack,
        seed=seed, device=device, **(settings or {}),
    )  # fmt: skip
    answer: dict[str, Any] = {"set": out, "images": len(made), "method": method}
    if networks:
        accuracies = train_on(made, seeds=range(networks), device=device).accuracy(*found.test_images())
        made.results["accuracy"] = round(float(accuracies.mean()), 6)
        answer["accuracy"] = round(100 * float(accuracies.mean()), 2)
        answer["deviation"] = round(100 * float(accuracies.std()), 2) if networks > 1 else None
    answer["hash"] = save_set(out, made)
    if attack is not None:
        answer["poisoned"] = True
    return answer


def _options(data: str, root: str | None, resize: int | None, validation: int) -> ImageOptions:
    known = ImageOptions.__annotations__["name"].__args__
    if data not in known:
        raise UserError(f"there are no data {data!r}; there are: {', '.join(known)}")
    options: dict[str, Any] = {"name": data, "root": root, "validation": validation}
    options["image_size" if data in ("folder", "imagenet") and resize else "resize"] = resize
    return ImageOptions(**options)


def quality(
    set: str,
    *,
    data: str = "digits",
    root: str | None = None,
    validation: int = 300,
    networks: dict[str, Any] | None = None,
    seeds: int = 5,
    device: str = "cpu",
    allow_poisoned: bool = False,
) -> dict[str, Any]:
    """Accuracy of several networks trained from scratch on a set, with the set's recipe and preprocessing.

    Args:
        set: a condensed set.
        data: whose test images measure it.
        root: their folder; TENFOLD_DATA where not given.
        validation: images kept out of training and test.
        networks: by name with their arguments, such as '{"mlp": {}, "lenet": {}}'; the recipe's own where not given.
        seeds: networks of each kind.
        device: cpu, cuda.
        allow_poisoned: measure a set that is marked as poisoned, too.
    """
    found = load_set(set, allow_poisoned=allow_poisoned)
    side = found.preprocessing.image_shape[1]
    loaded = load_data(_options(data, root, None if data == "digits" and side == 8 else side, validation))
    _require_shape(loaded, list(found.preprocessing.image_shape), set)
    if len(loaded.real.classes) != len(found.classes):
        raise UserError(f"{set} has {len(found.classes)} classes, {data} has {len(loaded.real.classes)}")
    images = found.preprocessing.normalize(loaded.test.images)
    measured = evaluate_set(found, images, loaded.test.labels, networks=networks, seeds=range(seeds), device=device)
    return {
        name: {"accuracy": round(100 * sum(values) / len(values), 2), "all": [round(100 * v, 2) for v in values]}
        for name, values in measured.items()
    }


def import_official(
    checkpoint: str, *, out: str | None = None, program: Program | None = None, data: str | None = None,
    experiment: int | None = None, mean: list[float] | None = None, std: list[float] | None = None,
    zca: str | None = None, root: str | None = None, network: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Turn a published file of condensed images (DC, DSA, DM, MTT, DD, KIP, baadd, DD-Ranking) into a checked set.

    Args:
        checkpoint: the file; tensors are read, nothing in it is executed.
        out: set to write; the file's name with .cset where not given.
        program: which program wrote it, where name and content do not tell.
        data: data set that was condensed, where the name does not tell; decides the normalization.
        experiment: which of the file's experiments; the last where not given.
        mean: of pixels in [0, 1], one number per channel.
        std: of pixels in [0, 1], one number per channel.
        zca: whitening of the images: none, a set that carries it, or fit.
        root: folder of the data for --zca fit.
        network: network that is trained on the set; the program's own where not given. The verb import-set has more.
    """
    return import_set(
        checkpoint, out or f"{Path(checkpoint).stem}.cset", program=program, data=data, experiment=experiment,
        mean=mean, std=std, zca=zca, root=root, network=network,
    )  # fmt: skip


VERBS = {
    "condense": condense,
    "quality": quality,
    "audit": audit,
    "redteam": redteam,
    "calibrate": calibrate,
    **FILE_VERBS,
}
