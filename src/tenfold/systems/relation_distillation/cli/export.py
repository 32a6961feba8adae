"""The command ``export``."""

from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.models.folder import load_manifest, save_model
from tenfold.models.onnx import export_onnx
from tenfold.systems.relation_distillation.cli.loading import new_files
from tenfold.systems.relation_distillation.vit.build import load_model_folder
from tenfold.systems.relation_distillation.vit.transformers_vit import to_transformers


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
        converted.save_pretrained(new_files(folder, "config.json", "model.safetensors"))
        return {"transformers": str(folder)}
    if to == "safetensors":
        new_files(folder, "model.safetensors", "model.json")
        save_model(folder, model, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / "model.json")}
    new_files(folder, "model.onnx")
    size, channels = manifest.arguments["image_size"], manifest.arguments["channels"]
    name = "logits" if manifest.arguments.get("num_classes") else "tokens"
    example = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    exported = export_onnx(
        model, [example], folder / "model.onnx", input_names=["images"], output_names=[name], batched=[True]
    )
    return {"onnx": str(exported.path), "largest_difference": exported.max_difference}
