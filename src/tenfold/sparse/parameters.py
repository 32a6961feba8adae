"""Which entries of a model may be chosen, and reading and writing single entries in place.

Entries are counted in logical (row-major) order, whatever the memory layout: the third entry of a channels-last
weight is the same entry as in a contiguous one. A tensor that has several names (tied weights) counts once, under the
first.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from tenfold.errors import UserError


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name fits one of the shell patterns, such as ``head.*``."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unique_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by their first name, each once.

    Raises:
        UserError: two parameters share memory without being the same tensor: an entry of one would be an entry of the
            other, too, and no mask could tell them apart.
    """
    found: dict[str, nn.Parameter] = {}
    places: dict[tuple, str] = {}
    for name, parameter in model.named_parameters():  # leaves out further names of the same object
        key = (parameter.device, parameter.untyped_storage().data_ptr())
        if parameter.numel() and parameter.device.type != "meta" and key in places:
            raise UserError(
                f"{name!r} and {places[key]!r} are two parameters in one memory: tie them as one nn.Parameter"
            )
        places[key] = name
        found[name] = parameter
    return found


def check_patterns(model: nn.Module, patterns: Iterable[str], what: str) -> None:
    """Refuse patterns that fit no parameter, which are misspelt.

    Raises:
        UserError: naming the pattern.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{what} {pattern!r} fits no parameter; the first are: {', '.join(names[:4])}")


def candidates(model: nn.Module, *, exclude: Sequence[str] = (), dense: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Parameters whose entries may be chosen: floating point, not excluded, not trained densely.

    Args:
        model: any module.
        exclude: patterns of names that stay as they are.
        dense: patterns of names that are trained whole, such as a new head.

    Raises:
        UserError: a pattern fits nothing, or nothing is left.
    """
    check_patterns(model, exclude, "exclude")
    check_patterns(model, dense, "dense")
    left = {
        name: parameter
        for name, parameter in unique_parameters(model).items()
        if parameter.is_floating_point() and not matches(name, exclude) and not matches(name, dense)
    }
    if not left:
        raise UserError("no parameter is left to choose entries from: exclude and dense cover them all")
    return left


def take(tensor: Tensor, index: Tensor) -> Tensor:
    """Copy of entries ``(k,)`` at flat logical positions ``index`` ``(k,)``."""
    flat = tensor.detach()
    flat = flat.view(-1) if flat.is_contiguous() else flat.reshape(-1)
    return flat.index_select(0, index)


@torch.no_grad()
def put(tensor: Tensor, index: Tensor, values: Tensor) -> None:
    """Write entries at flat logical positions, in place and bit for bit.

    Args:
        tensor: any layout.
        index: ``(k,)`` positions.
        values: ``(k,)`` of the tensor's dtype.
    """
    target = tensor.detach()
    if target.is_contiguous():
        target.view(-1).index_copy_(0, index.long(), values)
    else:
        target.put_(index.long(), values)


def index_dtype(entries: int) -> torch.dtype:
    """The smallest integer that counts so many entries: int32 below 2^31."""
    return torch.int32 if entries < 2**31 else torch.int64
