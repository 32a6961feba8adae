"""A staged ONNX export at work: onnxruntime, stopping where the PyTorch runner stops."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError

from tenfold.errors import UserError
from tenfold.files import read_json
from tenfold.models.onnx import onnx_session
from tenfold.systems.boosted_exits.method import add_exit, confidence, leaves
from tenfold.systems.boosted_exits.policies.exit_policy import require_numbers
from tenfold.systems.boosted_exits.serving.runner import ExitOutputs


class _StageFile(BaseModel):
    file: Annotated[str, Field(pattern=r"^stage[0-9]+\.onnx$")]  # a name within the folder, and no other
    sha256: str
    inputs: list[str]
    batched: list[bool]
    outputs: list[str]


class _Manifest(BaseModel):
    format: Literal["tenfold-exit-stages-1"]
    thresholds: list[float]
    reweight: list[float]
    costs: list[float] | None
    stages: Annotated[list[_StageFile], Field(min_length=1)]


@dataclass
class OnnxStages:
    """Runs an export of ``export_staged`` with onnxruntime and numpy alone, stopping as the PyTorch runner does.

    Attributes:
        folder: the export.
        threads: threads within an operation.

    Raises:
        UserError: the folder holds no export, or a file is not the one that was exported.
    """

    folder: str | Path
    threads: int = 1

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        place = self.folder / "stages.json"
        try:
            manifest = _Manifest.model_validate(read_json(place))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise UserError(f"{place} describes no staged export of this version: {where}: {first['msg']}") from error
        if not len(manifest.thresholds) == len(manifest.reweight) == len(manifest.stages):
            raise UserError(f"{place} does not hold one threshold and one factor per stage")
        require_numbers([*manifest.thresholds, *manifest.reweight])
        self.thresholds, self.reweight, self.stages = manifest.thresholds, manifest.reweight, manifest.stages
        for stage in self.stages:
            path = self.folder / stage.file
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != stage.sha256:
                raise UserError(f"{path} is missing or is not the file that stages.json describes")
        self.sessions = [onnx_session(self.folder / stage.file, self.threads) for stage in self.stages]

    def __call__(self, *inputs: np.ndarray) -> ExitOutputs:
        """Answer a batch: ``inputs`` are the network's input tensors, flat, batch first."""
        size = len(inputs[0])
        rows = np.arange(size)
        state, older, sizes = list(inputs), None, [0] * len(self.stages)
        logits, exits = None, np.empty(size, np.int64)
        for n, (stage, session) in enumerate(zip(self.stages, self.sessions, strict=True)):
            wanted = {value.name for value in session.get_inputs()}
            feeds = {name: value for name, value in zip(stage.inputs, state, strict=True) if name in wanted}
            *state, f = session.run(stage.outputs, feeds)
            sizes[n] = len(f)
            z = add_exit(torch.from_numpy(f), older, self.reweight[n - 1])
            if logits is None:
                logits = np.empty((size, z.shape[-1]), np.float32)
            last = n == len(self.stages) - 1
            leaving = np.ones(len(z), bool) if last else leaves(confidence(z), self.thresholds[n]).numpy()
            logits[rows[leaving]] = z.numpy()[leaving]
            exits[rows[leaving]] = n
            staying = ~leaving
            if last or not staying.any():
                break
            rows, older = rows[staying], z[torch.from_numpy(staying)]
            flags = self.stages[n + 1].batched
            state = [value[staying] if batched else value for value, batched in zip(state, flags, strict=True)]
        assert logits is not None
        return ExitOutputs(torch.from_numpy(logits), torch.from_numpy(exits), tuple(sizes))
