"""Predictions as SimKGC's JSON, and metrics of such files."""

from pathlib import Path
from typing import Any, Literal

from tenfold.systems.graph_fusion.serve.student import Student


def rescore(tails: str, heads: str) -> dict[str, Any]:
    """Compute metrics from two prediction files in SimKGC's JSON, ours or others'.

    Args:
        tails: predictions of tails.
        heads: predictions of heads.
    """
    from tenfold.systems.graph_fusion.serve.simkgc_json import metrics_of_predictions

    return metrics_of_predictions(tails, heads)


def predictions(
    run: str, out: str, *, split: Literal["train", "valid"] = "valid", factory: str | None = None
) -> dict[str, Any]:
    """Write a split's predictions as SimKGC's JSON, a file per direction; rescore reads them.

    Args:
        run: folder of the run, or of one of its students.
        out: folder to write.
        split: what is predicted.
        factory: of an encoder of your own.
    """
    from tenfold.systems.graph_fusion.serve.simkgc_json import write_predictions

    student = Student.load(run, factory)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"tail": folder / "predictions_forward.json", "head": folder / "predictions_backward.json"}
    for direction, path in files.items():
        write_predictions(student, path, split=split, direction=direction)  # type: ignore[arg-type]
    return {direction: str(path) for direction, path in files.items()}
