"""ONNX that stops: one branching graph for single inputs, or a file per stage for batches in any runtime."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.models.onnx import OnnxExport, describe_onnx, export_onnx, onnx_session
from tenfold.systems.boosted_exits.method import add_exit, confidence, leaves
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel, State
from tenfold.systems.boosted_exits.serving.runner import batched_leaves, check_thresholds, require_eval, simulate

_FORMAT = "tenfold-exit-stages-1"


class _Branching(nn.Module):
    """``(x, thresholds)`` to ``(logits, exit)``; what follows an exit is inside the branch that goes on."""

    def __init__(self, model: EarlyExitModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        state, f = self.model.run_stage(0, x)
        return self._leave_or_go_on(0, state, add_exit(f, None, 0.0), thresholds)

    def _leave_or_go_on(self, n: int, state: State, z: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        number = torch.full((1,), n, dtype=torch.int64)
        if n == self.model.exits - 1:
            return z.clone(), number
        flat, shape = tree_flatten(state)

        def stop(z: Tensor, thresholds: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
            return z.clone(), torch.full((1,), n, dtype=torch.int64)  # branches must not alias what they are given

        def go_on(z: Tensor, thresholds: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
            deeper, f = self.model.run_stage(n + 1, tree_unflatten(list(flat), shape))
            return self._leave_or_go_on(n + 1, deeper, add_exit(f, z, self.model.reweight[n]), thresholds)

        sure = leaves(confidence(z), thresholds[n]).squeeze(0)
        return torch.cond(sure, stop, go_on, (z, thresholds, *flat))


def export_branching(
    model: EarlyExitModel,
    example: Tensor,
    thresholds: Sequence[float],
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    tolerance: float = 1e-4,
) -> OnnxExport:
    """One ONNX graph for one input at a time, in which the stages behind the exit taken are never computed.

    Inputs of the graph: ``input`` (1, ...); and ``thresholds`` (exits,), which may be left out for those given here, so
    that they can be tuned without a new export.
    Outputs: ``logits`` (1, classes) and ``exit`` (1,) int64, counted from 0.

    Args:
        model: the stages, in eval mode.
        example: ``(1, ...)`` input.
        thresholds: ``(exits,)``; those with which the export is checked, as are those that stop at each of the exits.
        path: the file.
        metadata: texts that the file carries along, see ``tenfold.models.onnx.describe_onnx``.
        tolerance: see ``tenfold.models.onnx.export_onnx``.

    Raises:
        UserError: the model cannot be exported, or the graph does not give PyTorch's answers; no file is left.
    """
    check_thresholds(model, thresholds)
    require_eval(model)
    path = Path(path)
    given = torch.tensor(thresholds, dtype=torch.float32)
    export = export_onnx(
        _Branching(model),
        (example, given),
        path,
        input_names=["input", "thresholds"],
        output_names=["logits", "exit"],
        tolerance=tolerance,
    )
    describe_onnx(path, metadata or {}, {"thresholds": given.numpy()})
    session = onnx_session(path)
    worst = export.max_difference
    for wanted in range(model.exits):
        forced = [1e8] * model.exits
        forced[wanted] = -1e8
        logits, number = session.run(None, {"input": example.numpy(), "thresholds": np.array(forced, np.float32)})
        expected = simulate(model, example, forced)
        difference = float(np.abs(logits - expected.logits.numpy()).max())
        if int(number[0]) != wanted or not difference <= tolerance * max(1.0, float(expected.logits.abs().max())):
            path.unlink(missing_ok=True)
            raise UserError(f"the ONNX export was refused: leaving at exit {wanted + 1} differs by {difference:.2g}")
        worst = max(worst, difference)
    return OnnxExport(path, worst)


class _Stage(nn.Module):
    """Stage n as a function of flat tensors: its state, flat, then its own logits."""

    def __init__(self, model: EarlyExitModel, n: int, shape: TreeSpec) -> None:
        super().__init__()
        self.model, self.n, self.shape = model, n, shape

    def forward(self, *flat: Tensor) -> tuple[Tensor, ...]:
        state, f = self.model.run_stage(self.n, tree_unflatten(list(flat), self.shape))
        return (f,) if self.n == self.model.exits - 1 else (*tree_flatten(state)[0], f)


def export_staged(
    model: EarlyExitModel,
    example: State,
    thresholds: Sequence[float],
    folder: str | Path,
    *,
    costs: Sequence[float] | None = None,
    tolerance: float = 1e-4,
) -> OnnxExport:
    """One ONNX file per stage and ``stages.json``, for batches with compaction in any runtime (``OnnxStages``).

    Args:
        model: the stages, in eval mode.
        example: input with a batch of at least 2.
        thresholds: ``(exits,)``.
        folder: written whole or not at all; must not exist, or hold an earlier export.
        costs: ``(exits,)`` cumulative costs, for the manifest.
        tolerance: see ``tenfold.models.onnx.export_onnx``.

    Raises:
        UserError: a stage cannot be exported or its file does not give PyTorch's answers; the folder holds something
            else or cannot be written.
    """
    check_thresholds(model, thresholds)
    require_eval(model)
    folder = Path(folder)
    if folder.exists() and not (folder / "stages.json").exists():
        raise UserError(f"{folder} exists and holds no earlier export; name another folder")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        stages, worst = [], 0.0
        state = example
        for n in range(model.exits):
            flat, shape = tree_flatten(state)
            batched = batched_leaves(model, n - 1) if n else None
            flags = list(batched) if batched is not None else [True] * len(flat)
            with torch.no_grad():
                deeper, _ = model.run_stage(n, state)
            crossing = [] if n == model.exits - 1 else [f"state{i}" for i in range(len(tree_flatten(deeper)[0]))]
            export = export_onnx(
                _Stage(model, n, shape).eval(),
                flat,
                temporary / f"stage{n + 1}.onnx",
                input_names=[f"input{i}" for i in range(len(flat))],
                output_names=[*crossing, "logits"],
                batched=flags,
                tolerance=tolerance,
            )
            worst = max(worst, export.max_difference)
            stages.append(
                {
                    "file": export.path.name,
                    "sha256": hashlib.sha256(export.path.read_bytes()).hexdigest(),
                    "inputs": [f"input{i}" for i in range(len(flat))],
                    "batched": flags,
                    "outputs": [*crossing, "logits"],
                }
            )
            state = deeper
        manifest = {
            "format": _FORMAT,
            "thresholds": [float(threshold) for threshold in thresholds],
            "reweight": list(model.reweight),
            "costs": list(costs) if costs is not None else None,
            "stages": stages,
        }
        write_atomically(temporary / "stages.json", json.dumps(manifest, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return OnnxExport(folder, worst)
