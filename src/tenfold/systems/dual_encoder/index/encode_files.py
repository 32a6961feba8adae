"""Image files into an index; those that cannot be read are named and left out."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.index.answerer import VisualAnswerer
from tenfold.systems.dual_encoder.index.building import build_index
from tenfold.systems.dual_encoder.index.manifest import Kind
from tenfold.systems.dual_encoder.index.visual_index import SEGMENT, VisualIndex


def index_files(
    answerer: VisualAnswerer,
    folder: str | Path,
    files: Sequence[str | Path],
    *,
    kind: Kind = "float16",
    segment: int = SEGMENT,
    batch_size: int = 32,
    threads: int = 4,
    progress: Callable[[int, int], Any] | None = None,
) -> VisualIndex:
    """Encode image files into an index; their paths, as given, are their names.

    A build that was stopped goes on, and leaves the same files as one that was not.

    Args:
        answerer: the model.
        folder: of the index; made if need be, or added to.
        files: image files.
        kind: of the numbers, see ``VisualIndex.create``.
        segment: images between two commits to disk.
        batch_size: images that are encoded at once.
        threads: how many decode at once.
        progress: called with how many are done, of how many.

    Raises:
        UserError: there are no files, or see ``build_index``.
    """
    names = list(dict.fromkeys(map(str, files)))
    if not names:
        raise UserError("there are no images to index")

    def read(name: str) -> Tensor | str:
        try:
            return answerer.preparation.read(name)
        except UserError as error:
            return str(error).removeprefix(f"cannot read the image {name}: ")

    def encode(part: Sequence[str]) -> tuple[list[str], Tensor, dict[str, str]]:
        kept, vectors, skipped = [], [torch.empty(0, *answerer.vector_shape)], {}
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(part), batch_size):
                few = part[start : start + batch_size]
                images = []
                for name, found in zip(few, pool.map(read, few), strict=True):
                    if isinstance(found, str):
                        skipped[name] = found
                    else:
                        kept.append(name)
                        images.append(found)
                if images:
                    vectors.append(answerer.encode_images(images).cpu())
        return kept, torch.cat(vectors), skipped

    return build_index(
        folder,
        names,
        encode,
        answerer.fingerprint,
        answerer.vector_shape,
        kind=kind,
        segment=segment,
        progress=progress,
    )
