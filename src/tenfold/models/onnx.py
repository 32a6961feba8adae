"""ONNX out: exported, compared with PyTorch on onnxruntime, and only then kept."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.errors import UserError, require
from tenfold.files import atomic_path


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


def describe_onnx(
    path: str | Path, metadata: Mapping[str, str], defaults: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write into an ONNX file what who runs it must know, and the values of inputs that are left out.

    Args:
        path: the file; written whole or not at all.
        metadata: texts by name; onnxruntime gives them back as ``session.get_modelmeta().custom_metadata_map``.
        defaults: values of inputs by name: they become initializers, which a caller may still feed.
    """
    onnx = require("onnx", "onnx")
    from onnx import numpy_helper

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(metadata))
    for name, value in (defaults or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    with atomic_path(path) as temporary:
        onnx.save(model, str(temporary))


def onnx_metadata(path: str | Path) -> dict[str, str]:
    """The texts that an ONNX file carries (``describe_onnx``); ``system`` names the system that exported it.

    Raises:
        UserError: onnxruntime is missing, or cannot read the file.
    """
    return dict(onnx_session(path).get_modelmeta().custom_metadata_map)
