"""The command ``import``."""

from pathlib import Path
from typing import Any

from tenfold.cost import count_parameters
from tenfold.data import Preprocessing
from tenfold.errors import UserError
from tenfold.models.folder import save_model
from tenfold.systems.relation_distillation.vit.official_files import Kind, load_official, read_official
from tenfold.systems.relation_distillation.vit.preprocessing import IMAGENET_STATISTICS


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
    for name in ("model.json", "model.safetensors"):
        if (folder / name).exists():
            raise UserError(f"{folder} already holds {name}; name another folder with --out")
    file = read_official(checkpoint, kind)
    if file.kind == "tinymim-star":
        raise UserError("TinyMIM* has a distillation token: load it in Python with load_official(checkpoint)")
    model = load_official(checkpoint, kind=kind, heads=heads)
    sizes = file.architecture
    sizes.pop("prefix_tokens")
    used = file.heads(heads)
    classes = sizes["num_classes"]
    save_model(
        folder,
        model,
        system="relation-distillation",
        builder="vit",
        arguments=sizes | {"heads": used},
        extra={
            "preprocessing": Preprocessing.cropped(
                sizes["image_size"], *IMAGENET_STATISTICS, interpolation="bicubic"
            ).to_dict(),
            "prefix_tokens": model.num_prefix_tokens,
            "kind": file.kind,
            "classes": [str(n) for n in range(classes)],
        },
    )
    return {"model": str(folder), "kind": file.kind, "parameters": count_parameters(model), "heads": used, **sizes}
