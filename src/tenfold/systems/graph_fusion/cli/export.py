"""Write a run's encoder for deployment."""

from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.models.folder import MANIFEST
from tenfold.systems.graph_fusion.serve.student import Student


def export(
    run: str,
    *,
    to: Literal["onnx", "safetensors"] = "safetensors",
    side: Literal["structure", "text"] | None = None,
    out: str | None = None,
    factory: str | None = None,
) -> dict[str, Any]:
    """Write a run's encoder for deployment: safetensors with all that rebuilds it, or ONNX that scores all entities.

    Args:
        run: folder of the run.
        to: safetensors: a folder that Student.load reads; onnx: (heads, relations) to scores, checked against PyTorch.
        side: which student; the delivered one where not given.
        out: folder to write; RUN/export where not given.
        factory: of an encoder of your own.
    """
    source = Path(run) / "students" / side if side else Path(run)
    student = Student.load(source, factory)
    folder = Path(out) if out else Path(run) / "export"
    refuse_others_folder(folder)
    if to == "safetensors":
        student.save(folder, **({"side": side} if side else {}))
        return {"student": str(folder)}
    from tenfold.systems.graph_fusion.serve.export_scores import export_scores

    folder.mkdir(parents=True, exist_ok=True)
    made = export_scores(student.scorer, folder / "model.onnx")
    return {"onnx": str(made.path), "largest_difference": made.max_difference}


def refuse_others_folder(folder: Path) -> None:
    """Refuse to write a model among files that are none of ours.

    Raises:
        UserError: the folder holds something, but neither a model nor an export.
    """
    ours = (MANIFEST, "model.onnx")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in ours):
        raise UserError(f"{folder} holds other files; name a new folder with --out")
