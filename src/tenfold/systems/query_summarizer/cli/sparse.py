"""Diff files at the command line: made of two models, applied to a file of weights, described."""

from pathlib import Path
from typing import Any

from safetensors.torch import save

from tenfold.errors import UserError
from tenfold.files import refuse_overwriting, write_atomically
from tenfold.models.checkpoints import read_safetensors
from tenfold.sparse import apply_diff, diff_states, load_diff


def sparse_diff(base: str, tuned: str, out: str) -> dict[str, Any]:
    """Write what two models differ in as a diff file, bit for bit.

    Args:
        base: safetensors file of the model before.
        tuned: safetensors file of the model after.
        out: the diff, NAME.sft.safetensors.
    """
    refuse_overwriting(out, base, tuned)
    diff = diff_states(read_safetensors(base), read_safetensors(tuned))
    if not diff.entries and not diff.whole:
        raise UserError(f"{base} and {tuned} do not differ: there is nothing to write")
    path = diff.save(out)
    return {"diff": str(path), **_about(path)}


def sparse_apply(base: str, diff: str, out: str) -> dict[str, Any]:
    """Write the model that a base and a diff make; the base stays as it is.

    Args:
        base: safetensors file of the model that the diff was made on.
        diff: the diff file.
        out: safetensors file to write.
    """
    refuse_overwriting(out, base, diff)
    state = read_safetensors(base)
    apply_diff(state, diff)
    write_atomically(out, save(state))
    return {"out": out, "tensors": len(state)}


def sparse_info(diff: str) -> dict[str, Any]:
    """What a diff file holds: entries, tensors, bytes, and how the entries were chosen.

    Args:
        diff: the diff file.
    """
    return _about(Path(diff))


def _about(path: Path) -> dict[str, Any]:
    found = load_diff(path)
    return {
        "bytes": path.stat().st_size,
        "entries": found.entries,
        "sparse_tensors": len(found.positions),
        "whole_tensors": len(found.whole),
        "base": found.base[:16],
        "about": found.about,
    }
