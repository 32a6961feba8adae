"""``build_index``: many images into an index, a segment at a time; a build that was stopped goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.systems.dual_encoder.index.manifest import Kind
from tenfold.systems.dual_encoder.index.visual_index import MANIFEST, SEGMENT, VisualIndex


def build_index(
    folder: str | Path,
    names: Sequence[str],
    encode: Callable[[Sequence[str]], tuple[list[str], Tensor, dict[str, str]]],
    fingerprint: str,
    shape: tuple[int, int],
    *,
    kind: Kind = "float16",
    segment: int = SEGMENT,
    progress: Callable[[int, int], Any] | None = None,
) -> VisualIndex:
    """Build an index, or go on with one: images that it holds are passed over, skipped ones are tried once more.

    A build that was killed and is started again leaves the same files as one that was not.

    Args:
        folder: of the index.
        names: of the images, in order.
        encode: takes some names, gives those that could be read, their vectors, and the others with the reasons.
        fingerprint: of the model.
        shape: ``(vectors per image, width)``.
        kind: see ``VisualIndex.create``.
        segment: images that are encoded between two commits.
        progress: called with how many are done, of how many.

    Raises:
        UserError: the folder holds something else or another model's index, or another process writes.
    """
    there = (Path(folder) / MANIFEST).exists()
    index = VisualIndex.open(folder, fingerprint) if there else VisualIndex.create(folder, fingerprint, shape, kind)
    if index.manifest.kind != kind:
        raise UserError(f"the index {printable(folder)} holds {index.manifest.kind}; got {kind}: name another folder")
    with index.writing():
        left = [name for name in names if name not in index and name not in index.manifest.skipped]
        again = [name for name in names if name in index.manifest.skipped]
        for first in range(0, len(left), segment):
            read, vectors, skipped = encode(left[first : first + segment])
            index.add_locked(read, vectors, skipped)
            if progress is not None:
                progress(min(first + segment, len(left)), len(left))
        if again:  # some may have been mended meanwhile
            read, vectors, _ = encode(again)
            if read:
                index.add_locked(read, vectors)
    return index
