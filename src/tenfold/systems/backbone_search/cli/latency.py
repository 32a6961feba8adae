"""``tenfold backbone-search latency``."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tenfold.errors import UserError
from tenfold.systems.backbone_search.objectives.latency import command_latency, facts, measure_onnx
from tenfold.systems.backbone_search.serving import export_detector, load


def latency(run: str, *, threads: int = 1, command: str | None = None, runs: int = 50) -> dict[str, Any]:
    """Time a run's detector on one picture: onnxruntime here, suppression included, or a command on a device.

    Args:
        run: folder of the run, or of an imported model.
        threads: of onnxruntime.
        command: command with {onnx} whose last line of output is milliseconds.
        runs: timed runs at least.
    """
    if threads < 1 or runs < 2:
        raise UserError(f"threads must be at least 1 and runs at least 2; got {threads}, {runs}")
    ask = command_latency(command) if command is not None else None
    detector = load(run)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_detector(detector.model, path, detector.extra)
        if ask is not None:
            return {"milliseconds": ask(str(path)), "command": command}
        return facts(measure_onnx(path, threads=threads, runs=runs))
