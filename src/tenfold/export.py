"""Models on disk: safetensors with a manifest, others' checkpoints read but never executed, ONNX that is checked."""

import hashlib
import logging
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from tenfold.errors import UserError, require

WEIGHTS, MANIFEST = "model.safetensors", "model.json"


class Manifest(BaseModel):
    """``model.json``: what is needed to rebuild a model, and a hash that ties it to its weights.

    Attributes:
        format: version of this layout.
        system: command-line id of the system that made the model.
        builder: name under which the system builds the network.
        arguments: arguments of the builder.
        extra: what the system needs beside the weights, such as thresholds and normalization.
        sha256: of ``model.safetensors``.
        tensors: number of tensors in it.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["tenfold-model-1"] = "tenfold-model-1"
    system: str
    builder: str
    arguments: dict[str, Any]
    extra: dict[str, Any] = {}
    sha256: str
    tensors: int


def save_model(
    folder: str | Path,
    module: nn.Module,
    *,
    system: str,
    builder: str,
    arguments: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write ``model.safetensors`` and ``model.json``; the manifest comes last, so that it never names missing weights.

    Args:
        folder: made if need be.
        module: its whole state dict is written; tensors that share memory are written once each.
        system: see :class:`Manifest`.
        builder: see :class:`Manifest`.
        arguments: see :class:`Manifest`; plain JSON values.
        extra: see :class:`Manifest`; plain JSON values.

    Raises:
        UserError: the folder cannot be written.
    """
    from safetensors.torch import save

    from tenfold.run import write_atomically

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    state = {name: value.detach().cpu().clone().contiguous() for name, value in module.state_dict().items()}
    weights = save(state)
    manifest = Manifest(
        system=system,
        builder=builder,
        arguments=dict(arguments),
        extra=dict(extra or {}),
        sha256=hashlib.sha256(weights).hexdigest(),
        tensors=len(state),
    )
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def load_manifest(folder: str | Path) -> Manifest:
    """Read a model's manifest.

    Raises:
        UserError: the folder holds none, or it is not one.
    """
    path = Path(folder) / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} holds no model ({MANIFEST}): {error.strerror or error}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is not UTF-8 text"
        raise UserError(f"{path} is not a model's manifest: {reason}") from error


def load_weights(module: nn.Module, folder: str | Path) -> None:
    """Load the weights of a model folder into a module, strictly, after checking their hash.

    Raises:
        UserError: the weights are missing, are not those of the manifest, or do not fit the module.
    """
    from safetensors.torch import load

    path = Path(folder) / WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != load_manifest(folder).sha256:
        raise UserError(
            f"{path} is not the file that {MANIFEST} describes (its hash differs): it was changed or cut short"
        )
    load_strictly(module, load(content), path)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """``load_state_dict``, with one line that names the first key that does not fit.

    Raises:
        UserError: a key is missing, unexpected, or of another shape.
    """
    own = module.state_dict()
    for key in own:
        if key not in state:
            raise UserError(f"{source} does not fit the network: it lacks {key!r}")
        if state[key].shape != own[key].shape:
            found, wanted = tuple(state[key].shape), tuple(own[key].shape)
            raise UserError(f"{source} does not fit the network: {key!r} has shape {found}, not {wanted}")
    for key in state:
        if key not in own:
            raise UserError(f"{source} does not fit the network: it holds {key!r}, which the network has not")
    module.load_state_dict(state)


def read_torch_file(path: str | Path, *, allow: Sequence[Any] = ()) -> Any:
    """What ``torch.save`` wrote, on the CPU: tensors and plain values, and nothing that would have to be executed.

    Args:
        path: the file.
        allow: further harmless types or functions that it may name; a pair gives one the name that it has in the file.

    Raises:
        UserError: the file is missing or damaged, or holds anything else.
    """
    try:
        with torch.serialization.safe_globals(list(allow)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds objects other than tensors and plain values; nothing was executed: save its "
            "state dict alone"
        ) from error
    except Exception as error:  # a damaged file can end the reader anywhere
        raise UserError(f"{path} is damaged, or no file of torch.save; copy or download it again") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of any origin, safetensors or a torch file, without executing anything in it.

    Raises:
        UserError: the file is missing or damaged, is no checkpoint, or wants to build other objects than tensors and
            plain values.
    """
    from safetensors.torch import load_file

    path = Path(path)
    if path.suffix != ".safetensors":
        content = read_torch_file(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
        return content
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that gave PyTorch's answers.

    Attributes:
        path: the file.
        max_difference: largest absolute difference from PyTorch over all outputs and checked batches.
    """

    path: Path
    max_difference: float


def export_onnx(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: str | Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    batched: Sequence[bool] | None = None,
    tolerance: float = 1e-4,
) -> OnnxExport:
    """Export a module and compare onnxruntime's answers with PyTorch's before the file is kept.

    Args:
        module: in eval mode; its outputs are a tensor or a flat sequence of tensors.
        inputs: example tensors.
        path: the file to write.
        input_names: one per input.
        output_names: one per output.
        batched: for each input whether its first axis is the batch, which then may have any size and is checked at a
            second one; all fixed where ``None``.
        tolerance: largest difference, relative to the largest output where that is above 1.

    Raises:
        UserError: a package is missing, the module cannot be exported, or the answers differ; no file is left.
    """
    onnx_program = _export_program(module, inputs, input_names, output_names, batched)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        onnx_program.save(str(temporary), include_initializers=True)
        checks = [tuple(inputs)]
        if batched is not None and any(batched):
            checks.append(
                tuple(
                    torch.cat([value, value.flip(0), value[:1]]) if grows else value
                    for value, grows in zip(inputs, batched, strict=True)
                )
            )
        difference = max(_difference(module, temporary, check, input_names, tolerance, path) for check in checks)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return OnnxExport(path, difference)


class _Flat(nn.Module):
    """The module with all its inputs in one tuple, whatever their names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def _export_program(
    module: nn.Module,
    inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    batched: Sequence[bool] | None,
) -> Any:
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # its optimizer reports what it left alone
    shapes = None
    if batched is not None and any(batched):
        batch = torch.export.Dim("batch", min=1)
        shapes = (tuple({0: batch} if grows else None for grows in batched),)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                _Flat(module).eval(),
                tuple(inputs),
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many libraries
        cause = error.__cause__ or error
        first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise UserError(f"{type(module).__name__} cannot be exported to ONNX: {first}") from error


def _difference(
    module: nn.Module, file: Path, inputs: Sequence[Tensor], names: Sequence[str], tolerance: float, path: Path
) -> float:
    session = onnx_session(file)
    known = {value.name for value in session.get_inputs()}
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True) if name in known}
    with torch.no_grad():
        expected = module(*inputs)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    worst = 0.0
    for ours, theirs in zip(expected, session.run(None, feeds), strict=True):
        difference = (ours - torch.from_numpy(theirs)).abs().max().item() if ours.numel() else 0.0
        if not difference <= tolerance * max(1.0, ours.abs().max().item() if ours.numel() else 0.0):
            raise UserError(
                f"the ONNX export was refused: it differs from PyTorch by {difference:.2g}; {path} is not written"
            )
        worst = max(worst, difference)
    return worst


def onnx_session(path: str | Path, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        path: the ONNX file.
        threads: threads within an operation.

    Raises:
        UserError: onnxruntime is missing, or it cannot read the file.
    """
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise UserError(f"onnxruntime cannot read {path}: {' '.join(str(error).split())[:200]}") from error
