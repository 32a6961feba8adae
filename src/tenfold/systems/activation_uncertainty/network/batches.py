"""What a batch holds: inputs, ids, labels. It is said, and not guessed from types.

Without a word, a batch is what the network is called with, built like the learner's example. Ids come with it as
``Batch(inputs, ids)``; of the tuples or mappings of a data loader, ``parts`` says what each part is:

    learner.fit(loader, parts=["inputs", "labels"])            # (x, y): the classes are not needed
    learner.label(loader, parts=["inputs", "inputs", "ids"])   # (users, items, ids) of a network that takes two
    learner.fit(loader, parts={"labels": "labels"})            # mappings: everything else is an input
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.network.calling import Inputs, batch_size, describe

Ids = Tensor | np.ndarray
"""Names of rows: ``(rows,)`` int64 tensor, or an array of texts."""

Parts = Sequence[str] | Mapping[str, str]
"""What the parts of a batch are: ``inputs``, ``ids`` or ``labels``; by position, or by name."""

_ROLES = ("inputs", "ids", "labels")


class Batch(NamedTuple):
    """Inputs of a network, and the names of their rows.

    Attributes:
        inputs: what the network is called with.
        ids: ``(rows,)`` int64, or texts; rows are counted from 0 where ``None``.
    """

    inputs: Inputs
    ids: Any = None


def structure_of(inputs: Inputs) -> Any:
    """How inputs are built: equal for inputs of the same network. A list is as good as a tuple."""
    if isinstance(inputs, Mapping):
        return {str(name): structure_of(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return [structure_of(value) for value in inputs]
    return "tensor" if isinstance(inputs, Tensor) else "constant"


def check_parts(parts: Parts | None) -> None:
    """Refuse parts that are no parts.

    Raises:
        UserError: a part has another name, or there are several ids, or no inputs.
    """
    if parts is None:
        return
    roles = list(parts.values() if isinstance(parts, Mapping) else parts)
    if isinstance(parts, str) or (unknown := [role for role in roles if role not in _ROLES]):
        raise UserError(
            f"parts of a batch are inputs, ids and labels; got {parts if isinstance(parts, str) else unknown[0]!r}"
        )
    if roles.count("ids") > 1:
        raise UserError("parts of a batch: a row has one id, so that ids come once")
    if not isinstance(parts, Mapping) and "inputs" not in roles:
        raise UserError("parts of a batch: none of them are inputs")


def read_batches(batches: Iterable[Any], structure: Any = None, parts: Parts | None = None) -> Iterator[Batch]:
    """Batches with their ids, checked.

    Args:
        batches: ``Batch``, or inputs, or what ``parts`` explains.
        structure: of the network's inputs, see ``structure_of``; unknown where ``None``.
        parts: see ``Parts``.

    Raises:
        UserError: a batch is built otherwise, or its ids are none.
    """
    check_parts(parts)
    given = 0
    for item in batches:
        inputs, ids = item if isinstance(item, Batch) else _by_parts(item, parts)
        inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
        if structure is not None and structure_of(inputs) != structure:
            raise UserError(
                f"a batch is {describe(inputs)}, and not built as the example is: say what its parts are, as with "
                "parts=['inputs', 'labels'] or parts=['inputs', 'ids']"
            )
        rows = batch_size(inputs)
        yield Batch(inputs, torch.arange(given, given + rows) if ids is None else check_ids(ids, rows))
        given += rows


def _by_parts(item: Any, parts: Parts | None) -> Batch:
    if parts is None:
        return Batch(item)
    if isinstance(parts, Mapping):
        if not isinstance(item, Mapping) or not set(parts) <= set(item):
            raise UserError(f"parts names {', '.join(parts)}, but a batch is {describe(item)}")
        ids = next((item[name] for name, role in parts.items() if role == "ids"), None)
        return Batch({name: value for name, value in item.items() if parts.get(name, "inputs") == "inputs"}, ids)
    if not isinstance(item, tuple | list) or len(item) != len(parts):
        raise UserError(f"parts names {len(parts)} parts, but a batch is {describe(item)}")
    found: dict[str, list[Any]] = {role: [] for role in _ROLES}
    for role, value in zip(parts, item, strict=True):
        found[role].append(value)
    inputs = found["inputs"]
    return Batch(inputs[0] if len(inputs) == 1 else tuple(inputs), (found["ids"] or [None])[0])


def check_ids(ids: Any, rows: int) -> Ids:
    """Ids as ``Ids``, exact.

    Raises:
        UserError: there are not as many as rows, or they are neither whole numbers nor texts.
    """
    if isinstance(ids, Tensor):
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UserError(f"ids are whole numbers or texts; got {ids.dtype}, which does not hold every whole number")
        found: Ids = ids.long().cpu()
    else:
        array = np.asarray(ids)
        if array.dtype.kind in "iu":
            if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
                array = array.astype(str)
                found = array
            else:
                found = torch.from_numpy(array.astype(np.int64))
        elif array.dtype.kind in "OUT" and all(isinstance(name, str) for name in array.tolist()):
            found = array.astype(object)
        else:
            raise UserError(f"ids are whole numbers or texts; got {array.dtype}")
    if found.shape != (rows,):
        raise UserError(f"{rows} rows need as many ids; got {tuple(found.shape)}")
    return found


def take_ids(ids: Ids, rows: Tensor | slice) -> Ids:
    """The ids of some rows."""
    return ids[rows.numpy()] if isinstance(ids, np.ndarray) and isinstance(rows, Tensor) else ids[rows]


def join_ids(parts: Sequence[Ids]) -> Ids:
    """Ids of several blocks as one; numbers and texts together are texts."""
    numbers = [part for part in parts if isinstance(part, Tensor)]
    if len(numbers) == len(parts):
        return torch.cat(numbers)
    return np.concatenate([np.asarray([str(name) for name in part.tolist()], dtype=object) for part in parts])


def repeat_ids(ids: Ids, times: int) -> Ids:
    """Every id ``times`` times in a row."""
    return ids.repeat_interleave(times) if isinstance(ids, Tensor) else np.repeat(ids, times)


def order_of_ids(ids: Ids) -> Tensor:
    """``(rows,)`` int64 places of the rows by rising id, equal ones in their order."""
    if isinstance(ids, Tensor):
        return ids.argsort(stable=True)
    return torch.from_numpy(np.argsort(ids.astype(str), kind="stable"))


def numbers_of_ids(ids: Ids) -> Tensor:
    """``(rows,)`` int64 numbers by which masks are drawn: the ids themselves, or 64 bits of the texts' hash."""
    if isinstance(ids, Tensor):
        return ids
    hashes = b"".join(hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in ids.tolist())
    return torch.from_numpy(np.frombuffer(hashes, dtype="<i8").astype(np.int64))


def digest_of_rows(inputs: Inputs, ids: Ids) -> str:
    """A hash of inputs and ids: of types, shapes and every byte."""
    digest = hashlib.sha256(repr(structure_of(inputs)).encode())
    for value in [*pytree.tree_leaves(inputs), ids]:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value.tolist() if isinstance(value, np.ndarray) else value).encode())
    return digest.hexdigest()
