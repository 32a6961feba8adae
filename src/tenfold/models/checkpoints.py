"""Checkpoints of any origin, read but never executed: safetensors, torch files of tensors and plain values."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.files import first_line, printable

STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
"""Under which names programs keep the state dict within a checkpoint, in the order in which they are looked for."""


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
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise UserError(f"{printable(path)} holds a {type(content).__name__}, not a checkpoint")
    return content


def unwrap_state(
    checkpoint: Any, source: str | Path, *, keys: Sequence[str] = STATE_KEYS, prefixes: Sequence[str] = ("module.",)
) -> dict[str, Tensor]:
    """The state dict within a checkpoint, whatever the program wrapped it in.

    Args:
        checkpoint: what ``read_checkpoint`` gave.
        source: its file, for messages.
        keys: names under which the state dict may lie; the first that holds a mapping is taken, again and again.
        prefixes: what is taken off the names where all of them have it, such as ``DataParallel``'s ``module.``.

    Raises:
        UserError: there are no tensors, or something else among them.
    """
    state = checkpoint
    while isinstance(state, Mapping):
        inner = next((state[key] for key in keys if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{printable(source)} holds no state dict")
    found = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if len(found) < len(state):
        other = next(name for name, value in state.items() if not isinstance(value, Tensor))
        if not found:
            raise UserError(f"{printable(source)} holds no tensors")
        raise UserError(
            f"{printable(source)} holds {printable(other)!r}, which is no tensor, beside {len(found)} tensors: save "
            "its state dict alone"
        )
    for prefix in prefixes:
        while found and all(name.startswith(prefix) for name in found):
            found = {name[len(prefix) :]: value for name, value in found.items()}
    return found


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        UserError: it is missing, damaged or cut short.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {error.strerror or first_line(error)}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError, RuntimeError) as error:
        raise UserError(f"{printable(path)} is damaged or no safetensors file: {first_line(error)}") from error
