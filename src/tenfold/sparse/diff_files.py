"""Diff files: a fine-tuned model as the entries that differ, in safetensors.

Layout of ``NAME.sft.safetensors``, for each tensor of the model that differs:

    NAME::idx   positions, as the gaps between them (see encode_positions)
    NAME::val   VALUES, not differences: subtracting a difference does not give the old bits back
    NAME        a tensor that was trained whole, or a buffer (statistics of batch norm)

and in the metadata one JSON object under ``tenfold``: format, fingerprint of the base, content hash, how the mask was
chosen. Nothing in a file is executed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.sparse.parameters import index_dtype

FORMAT = "tenfold-diff-1"
SUFFIX = ".sft.safetensors"


@dataclass(frozen=True)
class Diff:
    """What fine-tuning changed.

    Attributes:
        positions: for each sparsely trained parameter the flat logical positions ``(k_t,)``, sorted.
        values: the new values ``(k_t,)``, of the parameter's dtype.
        shapes: shape of each sparsely trained parameter.
        whole: new values of tensors that were trained whole, and of buffers that changed.
        base: fingerprint of the base: hash over names, shapes and the base's own values at the positions.
        about: plain values that tell how the mask was chosen.
    """

    positions: dict[str, Tensor]
    values: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    whole: dict[str, Tensor]
    base: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        """Number of chosen entries."""
        return sum(index.numel() for index in self.positions.values())

    @property
    def sha256(self) -> str:
        """Hash of everything that applying it writes."""
        digest = hashlib.sha256(self.base.encode())
        for name in sorted(self.positions):
            digest.update(f"{name}{list(self.shapes[name])}{self.values[name].dtype}".encode())
            digest.update(raw_bytes(self.positions[name].to("cpu", torch.int64)))
            digest.update(raw_bytes(self.values[name]))
        for name in sorted(self.whole):
            digest.update(f"{name}{list(self.whole[name].shape)}{self.whole[name].dtype}".encode())
            digest.update(raw_bytes(self.whole[name]))
        return digest.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all.

        Args:
            path: its name; ``.sft.safetensors`` is added where it lacks a suffix.

        Raises:
            UserError: it cannot be written, or a tensor's name holds the mark that separates parts.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            path = path.with_name(path.name + SUFFIX)
        tensors: dict[str, Tensor] = {}
        for name, index in self.positions.items():
            if "::" in name:
                raise UserError(f"a tensor named {name!r} cannot go into a diff file")
            tensors[f"{name}::idx"] = encode_positions(index)
            tensors[f"{name}::val"] = self.values[name].detach().cpu().contiguous()
        tensors |= {name: value.detach().cpu().clone().contiguous() for name, value in self.whole.items()}
        about = {
            "format": FORMAT,
            "base": self.base,
            "sha256": self.sha256,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "about": self.about,
        }
        write_atomically(path, save(tensors, metadata={"tenfold": json.dumps(about, sort_keys=True)}))
        return path


def raw_bytes(tensor: Tensor) -> bytes:
    """The tensor's bytes, of any dtype."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def encode_positions(positions: Tensor) -> Tensor:
    """Sorted positions as gaps in one or two bytes each: a full byte (or word) says "so many more".

    Args:
        positions: ``(k,)`` strictly ascending, not negative.

    Returns:
        uint8 or uint16 codes, whichever is shorter.
    """
    index = positions.to("cpu", torch.int64)
    gaps = torch.diff(index, prepend=torch.tensor([-1])) - 1
    best: Tensor | None = None
    for dtype, full in ((torch.uint8, 2**8 - 1), (torch.uint16, 2**16 - 1)):
        ends = (gaps // full + 1).cumsum(0) - 1
        codes = torch.full((int(ends[-1]) + 1 if len(ends) else 0,), full, dtype=torch.int64)
        codes[ends] = gaps % full
        coded = codes.to(dtype)
        if best is None or coded.numel() * coded.element_size() < best.numel() * best.element_size():
            best = coded
    assert best is not None
    return best


def decode_positions(codes: Tensor) -> Tensor:
    """Positions ``(k,)`` int64 of what ``encode_positions`` wrote.

    Raises:
        UserError: the codes end in the middle of a gap.
    """
    full = 2 ** (8 * codes.element_size()) - 1
    steps = codes.to(torch.int64)
    ends = (steps != full).nonzero().flatten()
    if len(steps) and (not len(ends) or int(ends[-1]) != len(steps) - 1):
        raise UserError("positions are cut short")
    return steps.cumsum(0)[ends] + torch.arange(len(ends))


def load_diff(path: str | Path) -> Diff:
    """Read a diff file, checked in full before anything uses it.

    Args:
        path: of the file.

    Raises:
        UserError: the file is missing, damaged, or no diff file.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("tenfold", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path} is not a diff file of tenfold; others' are read by the importers of tenfold.sparse")
    try:
        diff = _assemble(tensors, about)
    except (KeyError, TypeError, ValueError, RuntimeError, UserError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    if diff.sha256 != about.get("sha256"):
        raise UserError(f"{path} is damaged: its content is not what it says (hash differs)")
    return diff


def _assemble(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Diff:
    shapes = {str(name): tuple(int(size) for size in shape) for name, shape in about["shapes"].items()}
    positions, values = {}, {}
    for name, shape in shapes.items():
        index = decode_positions(tensors[f"{name}::idx"])
        entries = 1
        for size in shape:
            entries *= size
        values[name] = tensors[f"{name}::val"]
        if values[name].shape != index.shape or (len(index) and int(index[-1]) >= entries):
            raise UserError(f"positions and values of {name!r} do not fit")
        positions[name] = index.to(index_dtype(entries))
    whole = {name: value for name, value in tensors.items() if "::" not in name}
    if 2 * len(shapes) + len(whole) != len(tensors):
        raise UserError("it holds tensors that it does not describe")
    return Diff(positions, values, shapes, whole, str(about["base"]), dict(about.get("about") or {}))
