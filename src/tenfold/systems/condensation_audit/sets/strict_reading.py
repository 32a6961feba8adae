"""Files of strangers, read without trust: JSON without tricks, safetensors whose every byte is accounted for.

What is refused here would otherwise be read differently by different readers: keys that occur twice, numbers that are
none, tensors that overlap. Nothing is ever executed.
"""

import hashlib
import json
import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load
from torch import Tensor

from tenfold.errors import UserError

LARGEST_HEADER = 100 * 10**6
ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
"""The types that a set's tensors may have, and their bytes."""


def canonical_json(value: Any) -> bytes:
    """JSON that is the same for the same content: sorted keys, UTF-8, no spaces.

    Raises:
        ValueError: a number is NaN or infinite, or a text is no Unicode.
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def parse_json(content: bytes, place: str | Path) -> Any:
    """Parse JSON in which no key occurs twice and every number is finite.

    Raises:
        UserError: it is not such JSON.
    """

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {twice[:40]!r} occurs twice")
        return found

    def no_number(text: str) -> Any:
        raise ValueError(f"{text} is no number")

    try:
        value = json.loads(content.decode(), object_pairs_hook=without_duplicates, parse_constant=no_number)
        canonical_json(value)  # 1e999 and broken surrogates come to light here
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{place} is not valid JSON: {reason}") from error
    return value


def read_plain_file(path: Path, *, largest: int | None = None) -> bytes:
    """The content of a regular file that is no link.

    Args:
        path: the file.
        largest: bytes that it may have at most, checked before it is read.

    Raises:
        UserError: it is missing, a link, no regular file, or too large.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is a link or no regular file; a set holds plain files only")
        if largest is not None and status.st_size > largest:
            raise UserError(f"{path} has {status.st_size:,} bytes; at most {largest:,} are expected there")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def is_plain_name(name: str) -> bool:
    """Whether a file name stays in its folder: no separator, no drive, not ``.`` or ``..``, nothing unprintable."""
    return name not in ("", ".", "..") and name.isprintable() and not set(name) & set('/\\:<>"|?*')


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a safetensors file.

    Attributes:
        dtype: its type, as the header names it.
        shape: its shape.
        sha256: of its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str


def read_safetensors(content: bytes, place: str | Path) -> tuple[dict[str, Tensor], dict[str, TensorEntry], dict]:
    """Tensors, what the header says about them, and the metadata of a safetensors file.

    Raises:
        UserError: the header is too long, is cut short or holds keys twice; a type is unknown; a shape and its bytes
            do not agree; the tensors overlap or leave gaps; a value is NaN or infinite.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > LARGEST_HEADER or 8 + length > len(content):
        if content[:4] == b"PK\x03\x04" or content[:1] == b"\x80":
            raise UserError(
                f"{place} is a pickle, which could run code when it is read, so it was not read: import a known format "
                "with tenfold condensation-audit import-set"
            )
        raise UserError(f"{place} is no safetensors file, or was cut short: its header is said to have {length} bytes")
    header = parse_json(content[8 : 8 + length], f"the header of {place}")
    if not isinstance(header, dict):
        raise UserError(f"the header of {place} is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"the metadata of {place} are not texts")
    body = memoryview(content)[8 + length :]
    spans: list[tuple[int, int]] = []
    entries: dict[str, TensorEntry] = {}
    for name, entry in header.items():
        begin, end, dtype, shape = _checked_entry(entry, f"the tensor {name[:60]!r} of {place}")
        spans.append((begin, end))
        entries[name] = TensorEntry(dtype, shape, hashlib.sha256(body[begin:end]).hexdigest())
    place_of_next = 0
    for begin, end in sorted(spans):
        if begin != place_of_next:
            raise UserError(f"the tensors of {place} overlap, or leave a gap at byte {min(begin, place_of_next)}")
        place_of_next = end
    if place_of_next != len(body):
        raise UserError(f"{place} has {len(body)} bytes of tensors; its header accounts for {place_of_next}")
    try:
        tensors = load(content)
    except (safetensors.SafetensorError, ValueError, TypeError, OverflowError, MemoryError, RuntimeError) as error:
        raise UserError(f"{place} cannot be read: {' '.join(str(error).split())[:160]}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"the tensor {name[:60]!r} of {place} holds NaN or infinite values")
    return tensors, entries, metadata


def _checked_entry(entry: Any, what: str) -> tuple[int, int, str, tuple[int, ...]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{what} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise UserError(f"{what} is of type {str(dtype)[:20]!r}; known are {', '.join(ITEM_SIZES)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise UserError(f"{what} has a shape or offsets that are no whole numbers")
    if len(offsets) != 2 or len(shape) > 8:
        raise UserError(f"{what} has {len(shape)} dimensions and {len(offsets)} offsets; at most 8, and two, are read")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_SIZES[dtype]:
        raise UserError(f"{what} has {end - begin} bytes; {dtype} of shape {tuple(shape)} takes another number")
    return begin, end, dtype, tuple(shape)
