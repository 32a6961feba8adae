"""Latency: the exported network on a CPU with fixed threads, suppression included; or a command that asks a device."""

import platform
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from tenfold.errors import UserError, require
from tenfold.models.onnx import export_onnx, onnx_session
from tenfold.systems.backbone_search.detector.postprocess import postprocess
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite

NOISE, ATTEMPTS = 1.5, 3
"""Largest 95th percentile over the median of a timing that is believed, and how often a noisy one is repeated."""


@dataclass(frozen=True)
class OnnxLatency:
    """Time of one image.

    Attributes:
        median_ms: median.
        p95_ms: 95th percentile.
        runs: timed runs.
        threads: of onnxruntime.
        machine: processor and library, to which the numbers belong.
        steady: whether the 95th percentile is at most 1.5 times the median.
    """

    median_ms: float
    p95_ms: float
    runs: int
    threads: int
    machine: str
    steady: bool


def measure_onnx(
    path: str | Path, *, threads: int = 1, warmup: int = 10, runs: int = 50, seconds: float = 2.0, nms: bool = True
) -> OnnxLatency:
    """Time an exported detector on one image.

    With one thread it is the time that the processor spent on it, which other programs on the machine lengthen little;
    with more it is the clock's.

    Args:
        path: the ONNX file.
        threads: of onnxruntime.
        warmup: runs before timing.
        runs: timed runs at least.
        seconds: of timing at least.
        nms: time suppression, too.
    """
    session = onnx_session(path, threads)
    entry = session.get_inputs()[0]
    shape = [1 if not isinstance(side, int) else side for side in entry.shape]
    image = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)

    def once() -> None:
        output = session.run(None, {entry.name: image})[0]
        if nms:
            postprocess(torch.from_numpy(output))

    for _ in range(warmup):
        once()
    times: list[float] = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    clock = clock_of(threads)
    try:
        started = time.perf_counter()
        while len(times) < runs or time.perf_counter() - started < seconds:
            start = clock()
            once()
            times.append((clock() - start) * 1000)
    finally:
        torch.set_num_threads(before)
    median, p95 = statistics.median(times), float(np.percentile(times, 95))
    version = require("onnxruntime", "onnx").__version__
    machine = f"{platform.processor() or platform.machine()}, onnxruntime {version}"
    return OnnxLatency(median, p95, len(times), threads, machine, p95 <= NOISE * median)


def clock_of(threads: int) -> Callable[[], float]:
    """Seconds of this thread's work where it works alone, else those of the clock."""
    return time.thread_time if threads == 1 else time.perf_counter


class Detecting(torch.nn.Module):
    """A detector whose output is decoded, as it is exported: boxes in pixels, probabilities."""

    def __init__(self, model: YOLOXLite) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``(batch, 3, height, width)`` to ``(batch, cells, 5 + classes)``."""
        return self.model.detect(images)


def latency_of(model: YOLOXLite, height: int, width: int, threads: int = 1) -> OnnxLatency:
    """Export a detector to a temporary file and time it.

    Raises:
        UserError: the timing stays noisy however often it is repeated.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(
            Detecting(model).eval(), [torch.full((1, 3, height, width), 114.0)], path, input_names=["images"],
            output_names=["output"], tolerance=1e-3,
        )  # fmt: skip
        for _ in range(ATTEMPTS):
            found = measure_onnx(path, threads=threads)
            if found.steady:
                return found
    raise UserError(
        f"latency cannot be measured here: the 95th percentile is {found.p95_ms:.3g} ms beside a median of "
        f"{found.median_ms:.3g} ms, {ATTEMPTS} times over; end other programs, or measure on another machine"
    )


def command_latency(command: str, seconds: float = 600.0) -> Callable[[str], float]:
    """A command of the reader's own that times a network on a device.

    Args:
        command: with ``{onnx}`` for the file, such as ``"./bench.sh {onnx}"``; its last line of output is milliseconds.
        seconds: that it may take.

    Returns:
        A function of a file's path.

    Raises:
        UserError: the command has no ``{onnx}``; later: it fails, takes too long, or prints no number.
    """
    if "{onnx}" not in command:
        raise UserError(f"the latency command must hold {{onnx}} for the network's file; got {command!r}")

    def measure(path: str) -> float:
        words = [word.replace("{onnx}", path) for word in shlex.split(command)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
        except OSError as error:
            raise UserError(f"the latency command cannot run: {error.strerror or error}: {words[0]}") from error
        except subprocess.TimeoutExpired as error:
            raise UserError(f"the latency command did not end within {seconds:g} s: {command}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise UserError(f"the latency command ended with {done.returncode}: {said[-1] if said else 'no message'}")
        lines = done.stdout.strip().splitlines()
        try:
            value = float(lines[-1])
        except (IndexError, ValueError):
            printed = f"printed {lines[-1]!r}" if lines else "printed nothing"
            raise UserError(f"the latency command {printed}; its last line must be milliseconds") from None
        if not 0 < value < float("inf"):
            raise UserError(f"the latency command said {value} ms")
        return value

    return measure


def latency_costs(command: str | None, threads: int = 1) -> Callable[[DetectorPlan, int, int], dict[str, float]]:
    """``latency_ms`` of a plan, measured once per plan: by onnxruntime here, or by a command on a device.

    Args:
        command: see ``command_latency``; ``None`` for onnxruntime on this machine.
        threads: of onnxruntime.
    """
    known: dict[str, float] = {}
    ask = command_latency(command) if command is not None else None

    def costs(plan: DetectorPlan, height: int, width: int) -> dict[str, float]:
        key = f"{plan}{height}x{width}"
        if key not in known:
            model = YOLOXLite(plan).eval()
            if ask is None:
                known[key] = latency_of(model, height, width, threads).median_ms
            else:
                with TemporaryDirectory() as folder:
                    path = Path(folder) / "model.onnx"
                    example = [torch.full((1, 3, height, width), 114.0)]
                    export_onnx(
                        Detecting(model).eval(), example, path, input_names=["images"], output_names=["output"],
                        tolerance=1e-3,
                    )  # fmt: skip
                    known[key] = ask(str(path))
        return {"latency_ms": known[key]}

    return costs


def facts(latency: OnnxLatency) -> dict[str, Any]:
    """A timing as plain values."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(latency).items()}
