"""Others' sparse fine-tunings as diffs: composable-sft's files and SHiRA adapters of PEFT.

Both store differences. They are added to the base once, here; what comes out holds values, so that applying and
reverting are exact from then on. Files are read without executing anything in them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.models.checkpoints import read_checkpoint, read_torch_file
from tenfold.sparse.diff_files import Diff
from tenfold.sparse.diffs import fingerprint, tensors_of
from tenfold.sparse.parameters import index_dtype, take


def import_composable_sft(model: nn.Module, path: str | Path) -> Diff:
    """Read a ``pytorch_diff.bin`` of composable-sft (Ansell et al., ACL 2022) as a diff on ``model``.

    Args:
        model: the base.
        path: the file, or the folder that holds it. Both of its forms are read: ``diffs``/``abs``, and the older
            ``body``/``head``; sparse tensors, or encodings by steps in column-major order.

    Raises:
        UserError: the file is damaged, or is for a model with other names or shapes.
    """
    path = Path(path)
    path = path / "pytorch_diff.bin" if path.is_dir() else path
    numpy_types = [
        (np.ndarray.__reduce__(np.zeros(1))[0], "numpy.core.multiarray._reconstruct"),
        np.ndarray.__reduce__(np.zeros(1))[0],
        np.ndarray,
        np.dtype,
        *(
            type(np.dtype(kind))
            for kind in ("uint8", "uint16", "int16", "int32", "int64", "float16", "float32", "float64")
        ),
    ]
    content = read_torch_file(path, allow=numpy_types)
    body = content.get("diffs", content.get("body")) if isinstance(content, Mapping) else None
    if not isinstance(body, Mapping):
        raise UserError(f"{path} is not a sparse fine-tuning of composable-sft: it has neither 'diffs' nor 'body'")
    whole = content.get("abs", content.get("head")) or {}
    parts = {}
    for name, entry in body.items():
        try:
            parts[str(name)] = _composable_part(entry)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path}: the part {name!r} is damaged: {' '.join(str(error).split())[:120]}") from error
    return _diff_of_differences(
        model, parts, {str(name): value for name, value in whole.items()}, path, "composable-sft"
    )


def _composable_part(entry: Any) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Shape, logical positions and differences of one tensor."""
    if isinstance(entry, Tensor):
        sparse = entry.coalesce() if entry.is_sparse else entry.to_sparse().coalesce()
        shape = tuple(sparse.shape)
        coordinates = list(sparse.indices())
        return shape, _ravel(coordinates, shape), sparse.values()
    shape = tuple(int(size) for size in entry["size"])
    steps = torch.as_tensor(np.asarray(entry["index_steps"]).astype(np.int64))
    rest, coordinates = steps.cumsum(0), []  # the first axis runs fastest
    for size in shape:
        coordinates.append(rest % size)
        rest = rest // size
    if len(rest) and int(rest.max()):
        raise ValueError("a position lies outside the tensor")
    return shape, _ravel(coordinates, shape), torch.as_tensor(np.asarray(entry["values"]))


def _ravel(coordinates: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    position = torch.zeros_like(coordinates[0], dtype=torch.int64)
    for values, size in zip(coordinates, shape, strict=True):
        position = position * size + values.long()
    return position


def import_shira(model: nn.Module, folder: str | Path) -> Diff:
    """Read a SHiRA adapter that PEFT saved as a diff on ``model``.

    Args:
        model: the base, without the adapter.
        folder: holds ``adapter_model.safetensors`` (or ``.bin``) and ``adapter_config.json``.

    Raises:
        UserError: it holds no SHiRA adapter, or one for another model.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no adapter of PEFT (adapter_config.json): {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "SHIRA":
        raise UserError(f"{folder} holds an adapter of another kind than SHiRA")
    file = next(
        (folder / name for name in ("adapter_model.safetensors", "adapter_model.bin") if (folder / name).exists()), None
    )
    if file is None:
        raise UserError(f"{folder} holds no adapter_model.safetensors")
    state = read_checkpoint(file)
    own = dict(model.named_parameters())
    parts, whole = {}, {}
    for key, value in state.items():
        name = key.removeprefix("base_model.model.")
        if name.endswith(".shira_weight"):
            target = name.removesuffix("shira_weight") + "weight"
            indices = state.get(key.removesuffix("shira_weight") + "shira_indices")
            if indices is None or target not in own:
                raise UserError(f"{file} does not fit the model: {target!r} is missing on one side")
            shape = tuple(own[target].shape)
            if config.get("fan_in_fan_out"):
                indices = indices.flip(0)
            if len(shape) != 2 or bool((indices.long() >= torch.tensor(shape)[:, None]).any()):
                raise UserError(f"{file} does not fit the model: positions lie outside {target!r} {shape}")
            parts[target] = (shape, _ravel(list(indices), shape), value)
        elif ".modules_to_save" in name or not name.endswith(".shira_indices"):
            whole[name.replace(".modules_to_save.default", "").replace(".modules_to_save", "")] = value
    return _diff_of_differences(model, parts, whole, file, "shira")


def _diff_of_differences(
    model: nn.Module,
    parts: Mapping[str, tuple[tuple[int, ...], Tensor, Tensor]],
    whole: Mapping[str, Tensor],
    path: Path,
    origin: str,
) -> Diff:
    own = tensors_of(model)
    positions, values, before, shapes = {}, {}, {}, {}
    for name, (shape, index, difference) in parts.items():
        if name not in own or tuple(own[name].shape) != shape:
            raise UserError(f"{path} is for another model: {name!r} has not the shape {shape} here")
        index, order = index.sort()
        if len(index) > 1 and bool((index[1:] == index[:-1]).any()):
            raise UserError(f"{path} changes an entry of {name!r} twice")
        base = take(own[name], index.to(own[name].device)).cpu()
        positions[name] = index.to(index_dtype(own[name].numel()))
        values[name] = base + difference[order].to(base)
        before[name], shapes[name] = base, shape
    for name, value in whole.items():
        if name not in own or own[name].shape != value.shape:
            raise UserError(f"{path} is for another model: {name!r} has not the shape {tuple(value.shape)} here")
    return Diff(
        positions=positions,
        values=values,
        shapes=shapes,
        whole={name: value.to(own[name].dtype) for name, value in whole.items()},
        base=fingerprint(positions, before, shapes),
        about={"origin": origin},
    )
