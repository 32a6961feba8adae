"""``index``: images of folders, encoded once; more added, some deleted."""

import sys
from pathlib import Path
from typing import Any, Literal

from tenfold.data.folder import files_below, is_image_name
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.systems.dual_encoder.index.encode_files import index_files
from tenfold.systems.dual_encoder.index.visual_index import SEGMENT, VisualIndex
from tenfold.systems.dual_encoder.load import load

_SHOWN = 20


def index(
    run: str,
    out: str,
    images: list[str] | None = None,
    *,
    kind: Literal["float32", "float16", "int8"] = "float16",
    delete: list[str] | None = None,
    segment: int = SEGMENT,
    batch_size: int = 32,
    verify: bool = False,
    factory: str | None = None,
) -> dict[str, Any]:
    """Encode images into an index, or add to one; what it holds is passed over, so that a stopped one goes on.

    Args:
        run: folder of a run or model.
        out: folder of the index.
        images: image files, or folders of them at any depth. An image that cannot be read is named, left out and
            counted.
        kind: of the numbers: float32, float16 (half the size) or int8 (a quarter).
        delete: names of images that shall count no more.
        segment: images between two commits to disk.
        batch_size: images that are encoded at once.
        verify: compare every file of the index with its hash.
        factory: package.module:function that may make the model, where it is one of your own.
    """
    if segment < 1 or batch_size < 1:
        raise UserError(f"segment and batch_size must be at least 1; got {segment} and {batch_size}")
    if not (images or delete or verify):
        raise UserError("name images to add, or --delete, or --verify true")
    answerer = load(run, factory=factory)
    files, others = _files(images or [])
    if files:
        found = index_files(answerer, out, files, kind=kind, segment=segment, batch_size=batch_size, progress=_progress)
    else:
        found = VisualIndex.open(out, answerer.fingerprint)
    if delete:
        found.delete(delete)
    if verify:
        found.verify()
    skipped = found.manifest.skipped
    for name, reason in list(skipped.items())[:_SHOWN]:
        print(f"left out: {printable(name)}: {printable(reason)}", file=sys.stderr)
    return {
        "index": out,
        "images": len(found),
        "left_out": len(skipped),
        "other_files": others,
        "kind": found.manifest.kind,
        "bytes_per_image": found.nbytes // max(1, sum(part.count for part in found.manifest.segments)),
        "bytes": found.nbytes,
    }


def _files(given: list[str]) -> tuple[list[Path], int]:
    """Image files, and how many others the folders hold."""
    files: list[Path] = []
    others = 0
    for name in given:
        path = Path(name)
        if path.is_dir():
            inner, beside = files_below(path, is_image_name)
            if not inner:
                raise UserError(f"the folder {printable(name)} holds no images")
            files += inner
            others += len(beside)
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"there is no file or folder {printable(name)}")
    return list(dict.fromkeys(files)), others


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} images", end="\n" if done == total else "", file=sys.stderr, flush=True)
