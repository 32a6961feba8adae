"""The verb ``convert``."""

from pathlib import Path
from typing import Any, Literal

from tenfold.systems.relation_distillation.cli.loading import new_files
from tenfold.systems.relation_distillation.vit.build import load_model_folder
from tenfold.systems.relation_distillation.vit.official_files import load_official
from tenfold.systems.relation_distillation.vit.transformers_vit import to_transformers


def convert(checkpoint: str, *, to: Literal["transformers", "timm"] = "timm", out: str | None = None) -> dict[str, Any]:
    """Convert a pre-trained ViT between the official layout (timm's) and transformers'.

    Args:
        checkpoint: an official file or a model folder of ours (to transformers), or a transformers folder (to timm).
        to: transformers: a folder for from_pretrained; timm: safetensors with the official names.
        out: folder or file to write; the checkpoint's name with a suffix where not given.
    """
    from safetensors.torch import save_file

    from tenfold.systems.relation_distillation.vit.teachers import load_transformers
    from tenfold.systems.relation_distillation.vit.transformers_vit import from_transformers

    source = Path(checkpoint)
    if to == "transformers":
        model = load_model_folder(source) if (source / "model.json").exists() else load_official(source)
        folder = Path(out) if out else source.with_name(f"{source.stem}-transformers")
        to_transformers(model).save_pretrained(new_files(folder, "config.json", "model.safetensors"))
        return {"transformers": str(folder)}
    model = from_transformers(load_transformers(checkpoint))
    file = Path(out) if out else source.with_name(f"{source.name}-timm.safetensors")
    new_files(file.parent, file.name)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    return {"timm": str(file), "heads": model.blocks[0].attn.num_heads}
