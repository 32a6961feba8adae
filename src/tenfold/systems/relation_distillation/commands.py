"""What the command line does with a finished run or a model folder of relation distillation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.cost import count_parameters
from tenfold.data import normalize, read_images
from tenfold.errors import UserError
from tenfold.export import Manifest, export_onnx, load_manifest, save_model
from tenfold.run import open_run, read_config, write_atomically
from tenfold.systems.relation_distillation.checkpoints import Kind, load_official, read_official, to_transformers
from tenfold.systems.relation_distillation.data import IMAGENET_STATISTICS, load_images
from tenfold.systems.relation_distillation.metrics import (
    accuracies,
    collect,
    knn_accuracy,
    linear_accuracy,
    patch_features,
)
from tenfold.systems.relation_distillation.networks import load_model_folder
from tenfold.systems.relation_distillation.robustness import evaluate_corruptions, evaluate_restricted
from tenfold.systems.relation_distillation.segmentation import segment
from tenfold.systems.relation_distillation.training_commands import chain, distil, finetune

CPU = torch.device("cpu")


def _classifier(folder: str) -> tuple[Any, Manifest]:
    model, manifest = load_model_folder(folder), load_manifest(folder)
    if not manifest.arguments.get("num_classes"):
        raise UserError(f"{folder} holds a pre-trained network without classes: fine-tune it first")
    return model, manifest


def _splits_of(run: str, manifest: Manifest, data: str | None, root: str | None) -> Any:
    options: dict[str, Any] = {}
    # RUN/pretrained is a folder within its run.
    of = next((folder for folder in (Path(run), Path(run).parent) if (folder / "config.yaml").exists()), None)
    if of is not None:
        saved = read_config(of)["data"]
        options = {name: saved[name] for name in ("name", "root", "validation", "workers")}
    options |= {name: value for name, value in {"name": data, "root": root}.items() if value is not None}
    if "name" not in options:
        raise UserError(f"{run} names no data: name them with --data")
    name = options.pop("name")
    splits = load_images(name, image_size=manifest.arguments["image_size"], **options)
    shape = (manifest.arguments["channels"], *(manifest.arguments["image_size"],) * 2)
    if splits.image_shape != shape:
        raise UserError(f"the network takes images {shape}, those of {splits.name} are {splits.image_shape}")
    return splits.prepared(mean=tuple(manifest.extra["mean"]), std=tuple(manifest.extra["std"]))


def evaluate(run: str, *, data: str | None = None, root: str | None = None, batch_size: int = 256) -> dict[str, Any]:
    """Measure a run's network again: fine-tuned ones by their accuracy, all by frozen features.

    Args:
        run: folder of the run, or of a model; RUN/pretrained is the student before fine-tuning.
        data: name of the data, where not those of the run; or imagenet-a, imagenet-r, imagenet-c.
        root: folder of the data, where not that of the run.
        batch_size: images at a time.
    """
    if data in ("imagenet-a", "imagenet-r", "imagenet-c"):
        model, manifest = _classifier(run)
        if root is None:
            raise UserError(f"name the folder of {data} with --root")
        measure = evaluate_corruptions if data == "imagenet-c" else evaluate_restricted
        size, extra = manifest.arguments["image_size"], manifest.extra
        return {"data": data} | measure(
            model, root, extra["classes"], size=size, mean=extra["mean"], std=extra["std"], batch_size=batch_size
        )
    model, manifest = load_model_folder(run), load_manifest(run)
    splits = _splits_of(run, manifest, data, root)
    answer: dict[str, Any] = {"data": splits.name, "images": len(splits.test)}
    if manifest.arguments.get("num_classes"):
        if manifest.arguments["num_classes"] != len(splits.classes):
            raise UserError(f"the network has {manifest.arguments['num_classes']} classes, {splits.name} has others")
        answer |= accuracies(*collect(model, model, splits.test_batches(batch_size), CPU))
        return answer
    parts = [
        collect(lambda images: patch_features(model, images), model, batches, CPU)
        for batches in (splits.plain_training_batches(batch_size), splits.test_batches(batch_size))
    ]
    return answer | {"knn": knn_accuracy(*parts[0], *parts[1]), "linear": linear_accuracy(*parts[0], *parts[1])}


def export(
    run: str, *, to: Literal["onnx", "safetensors", "transformers"] = "onnx", out: str | None = None
) -> dict[str, Any]:
    """Write a run's network for deployment; ONNX is checked against PyTorch before it is kept.

    Args:
        run: folder of the run, or of a model; RUN/pretrained is the student before fine-tuning.
        to: onnx; safetensors, with timm's names and the heads of each block in the manifest; or transformers, a folder
            for from_pretrained (pre-trained networks with uniform heads).
        out: folder to write; RUN/export where not given.
    """
    model, manifest = load_model_folder(run), load_manifest(run)
    folder = Path(out) if out else Path(run) / "export"
    if to == "transformers":
        converted = to_transformers(model)
        converted.save_pretrained(folder)
        return {"transformers": str(folder)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    if to == "safetensors":
        save_model(folder, model, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / "model.json")}
    size, channels = manifest.arguments["image_size"], manifest.arguments["channels"]
    name = "logits" if manifest.arguments.get("num_classes") else "tokens"
    example = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    exported = export_onnx(
        model, [example], folder / "model.onnx", input_names=["images"], output_names=[name], batched=[True]
    )
    return {"onnx": str(exported.path), "largest_difference": exported.max_difference}


def import_official(
    checkpoint: str, *, kind: Kind | None = None, heads: list[int] | None = None, out: str | None = None
) -> dict[str, Any]:
    """Turn a checkpoint of MAE or TinyMIM, or a timm ViT with the same names, into a model folder.

    Args:
        checkpoint: the .pth file or safetensors; nothing in it is executed.
        kind: what it is; told by its keys and its name where not given.
        heads: one number, or one per block; the published ones where not given.
        out: folder to write; the checkpoint's name without its suffix where not given.
    """
    folder = Path(out) if out else Path(Path(checkpoint).stem)
    if (folder / "model.json").exists():
        raise UserError(f"{folder} already holds a model; name another folder with --out")
    file = read_official(checkpoint, kind)
    if file.kind == "tinymim-star":
        raise UserError("TinyMIM* has a distillation token: load it in Python with load_official(checkpoint)")
    model = load_official(checkpoint, kind=kind, heads=heads)
    sizes = file.architecture
    sizes.pop("prefix_tokens")
    used = file.heads(heads)
    classes = sizes["num_classes"]
    mean, std = IMAGENET_STATISTICS
    save_model(
        folder, model, system="relation-distillation", builder="vit", arguments=sizes | {"heads": used},
        extra={"mean": list(mean), "std": list(std), "prefix_tokens": model.num_prefix_tokens, "kind": file.kind,
               "classes": [str(n) for n in range(classes)]},
    )  # fmt: skip
    return {"model": str(folder), "kind": file.kind, "parameters": count_parameters(model), "heads": used, **sizes}


def predict(run: str, inputs: list[str]) -> str:
    """Predict with a run's fine-tuned student; one JSON line per image.

    Args:
        run: folder of the run.
        inputs: image files; or .npy files of uint8, one image (height, width[, channels]) or several (n, channels,
            height, width).
    """
    model, manifest = _classifier(run)
    shape = [manifest.arguments["channels"], *[manifest.arguments["image_size"]] * 2]
    lines = []
    for name, image in read_images(inputs, shape):
        with torch.no_grad():
            probabilities = model(normalize(image[None], manifest.extra["mean"], manifest.extra["std"]))[0].softmax(-1)
        label = int(probabilities.argmax())
        lines.append(
            {
                "input": name,
                "class": label,
                "label": manifest.extra["classes"][label],
                "confidence": round(float(probabilities[label]), 6),
            }
        )
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


def sweep(
    axis: Literal["target", "pairs", "layer", "heads", "input", "droppath", "chain"],
    *,
    preset: str = "tiny",
    seeds: int | None = None,
    root: str | None = None,
    out: str | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> str:
    """Run one axis of the paper's ablations and print its table, with the paper's numbers beside it.

    Args:
        axis: target, pairs (with and without softmax), layer (every block of the teacher), heads, input, droppath or
            chain.
        preset: whose settings the rest has.
        seeds: number of seeds, where not the preset's.
        root: folder of the data.
        out: folder of the run; runs/relation-distillation/sweep-AXIS where not given.
        resume: continue the sweep in the folder.
        quiet: no progress on the console.
    """
    from tenfold.systems.relation_distillation.recipe import run as experiment
    from tenfold.systems.relation_distillation.settings import PRESETS, sweep_config

    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}")
    config = sweep_config(PRESETS[preset], axis)
    config = replace(config, seeds=seeds or config.seeds, data=replace(config.data, root=root or config.data.root))
    folder = Path(out) if out else Path("runs/relation-distillation") / f"sweep-{axis}"
    run = open_run(config, system="relation-distillation", out=folder, resume=resume, quiet=quiet)
    try:
        results = run.finish(experiment(config, run))
    except UserError:
        run.discard_if_nothing_was_done()
        raise
    table = next(found for found in results.tables if found.id == "accuracy")
    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in table.rows]
    text = "\n".join(lines)
    write_atomically(folder / "sweep.md", text + "\n")
    return text


def convert(checkpoint: str, *, to: Literal["transformers", "timm"] = "timm", out: str | None = None) -> dict[str, Any]:
    """Convert a pre-trained ViT between the official layout (timm's) and transformers'.

    Args:
        checkpoint: an official file or a model folder of ours (to transformers), or a transformers folder (to timm).
        to: transformers: a folder for from_pretrained; timm: safetensors with the official names.
        out: folder or file to write; the checkpoint's name with a suffix where not given.
    """
    from safetensors.torch import save_file

    from tenfold.systems.relation_distillation.checkpoints import from_transformers
    from tenfold.systems.relation_distillation.networks import load_transformers

    source = Path(checkpoint)
    if to == "transformers":
        model = load_model_folder(source) if (source / "model.json").exists() else load_official(source)
        folder = Path(out) if out else source.with_name(f"{source.stem}-transformers")
        to_transformers(model).save_pretrained(folder)
        return {"transformers": str(folder)}
    model = from_transformers(load_transformers(checkpoint))
    file = Path(out) if out else source.with_name(f"{source.name}-timm.safetensors")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    return {"timm": str(file), "heads": model.blocks[0].attn.num_heads}


def bench(*, tokens: int = 197, batch: int = 4, heads: int = 12, width_s: int = 48, width_t: int = 64) -> str:
    """Time the forms of the loss on this machine against the direct form, with their extra memory.

    Args:
        tokens: number of tokens N.
        batch: samples.
        heads: heads.
        width_s: the student's head width.
        width_t: the teacher's head width.
    """
    from tenfold.systems.relation_distillation.bench import compare_forms

    rows = compare_forms(tokens=tokens, batch=batch, heads=heads, width_s=width_s, width_t=width_t)
    lines = [f"{'form':<10} {'ms':>9} {'speed':>7} {'MiB':>9} {'memory':>7}"]
    lines += [
        f"{row['form']:<10} {row['milliseconds']:>9.1f} {row['speedup']:>6.2f}x {row['mebibytes']:>9.1f} "
        f"{row['memory_ratio']:>6.2f}x"
        for row in rows
    ]
    return "\n".join(lines)


VERBS = {
    "distil": distil,
    "chain": chain,
    "finetune": finetune,
    "sweep": sweep,
    "segment": segment,
    "convert": convert,
    "bench": bench,
}
