"""Vectors of images on disk: built once, added to, deleted from, mapped into memory, tied to one model.

    INDEX/index.json        what it holds; replaced as a whole, which is the one moment at which a change counts
    INDEX/000000.vectors    a segment: one record per image, little-endian
    INDEX/000000.ids        its images' names, a JSON list

A record is ``images x width`` numbers of float32 or float16, or of int8 after one float32 factor per vector.
"""

import contextlib
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import inside, make_folder, printable, read_json, sha256_of, write_atomically
from tenfold.systems.dual_encoder.index.manifest import IndexManifest, Kind, Segment

MANIFEST = "index.json"
SEGMENT = 4096


class VisualIndex:
    """Vectors of images by name. Make one with ``create``, open one with ``open``.

    Reading takes no lock: a reader keeps the state that it opened. Writing takes the folder's lock.

    Attributes:
        folder: where it lies.
        manifest: what it holds.
    """

    def __init__(self, folder: Path, manifest: IndexManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._names: dict[str, list[str]] = {}
        self._places: dict[str, int] | None = None

    @classmethod
    def create(
        cls, folder: str | Path, fingerprint: str, shape: tuple[int, int], kind: Kind = "float16"
    ) -> "VisualIndex":
        """An empty index in a new or empty folder.

        Args:
            folder: where it shall lie.
            fingerprint: of the model.
            shape: ``(vectors per image, width)``.
            kind: ``float32``, ``float16`` (half the size) or ``int8`` (a quarter).

        Raises:
            UserError: the folder holds something, or the kind is unknown.
        """
        if kind not in get_args(Kind):
            raise UserError(f"an index holds {', '.join(get_args(Kind))}; got {kind!r}")
        folder = make_folder(folder)
        with _locked(folder):
            held = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
            if held:
                raise UserError(f"{printable(folder)} is not empty (it holds {printable(held[0])}); name a new folder")
            index = cls(folder, IndexManifest(fingerprint=fingerprint, kind=kind, images=shape[0], width=shape[1]))
            index._commit(index.manifest)
        return index

    @classmethod
    def open(cls, folder: str | Path, fingerprint: str | None = None) -> "VisualIndex":
        """An index as it is now.

        Args:
            folder: where it lies.
            fingerprint: of the model that it must belong to; any where ``None``.

        Raises:
            UserError: there is none, it is damaged, or it is another model's.
        """
        path = Path(folder) / MANIFEST
        if not path.exists():
            raise UserError(f"{printable(folder)} holds no index ({MANIFEST}); make one: tenfold dual-encoder index")
        try:
            manifest = IndexManifest.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{printable(path)} is damaged: {printable(where)}: {first['msg']}; build it anew"
            ) from error
        index = cls(Path(folder), manifest)
        for segment in manifest.segments:
            index._check_size(segment)
        if fingerprint is not None:
            index.require(fingerprint)
        return index

    def require(self, fingerprint: str) -> None:
        """Refuse a model whose vectors these are not.

        Raises:
            UserError: the fingerprint differs.
        """
        if fingerprint != self.manifest.fingerprint:
            raise UserError(
                f"the index {printable(self.folder)} was made by another model (or other image preparation); build one "
                "with this model: tenfold dual-encoder index"
            )

    # --- reading ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(segment.count - len(segment.deleted) for segment in self.manifest.segments)

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors on disk."""
        return sum(segment.count for segment in self.manifest.segments) * self._record.itemsize

    @property
    def _record(self) -> np.dtype:
        shape = (self.manifest.images, self.manifest.width)
        if self.manifest.kind == "int8":
            return np.dtype([("scale", "<f4", (shape[0],)), ("values", "i1", shape)])
        return np.dtype([("values", "<f4" if self.manifest.kind == "float32" else "<f2", shape)])

    def _check_size(self, segment: Segment) -> None:
        path = self.folder / f"{segment.name}.vectors"
        wanted = segment.count * self._record.itemsize
        held = path.stat().st_size if path.exists() else -1
        if held != wanted:
            what = "is missing" if held < 0 else f"has {held:,} bytes, not {wanted:,}: it was cut short or changed"
            raise UserError(f"the index is damaged: {printable(path)} {what}; build it anew, or copy it again")
        if any(not 0 <= row < segment.count for row in segment.deleted):
            raise UserError(f"the index is damaged: {MANIFEST} deletes records that segment {segment.name} has not")

    def verify(self) -> None:
        """Compare every file with its hash; ``open`` compares sizes only.

        Raises:
            UserError: names the first file that was changed.
        """
        for segment in self.manifest.segments:
            for ending, wanted in (("vectors", segment.vectors_sha256), ("ids", segment.ids_sha256)):
                path = self.folder / f"{segment.name}.{ending}"
                if sha256_of(path) != wanted:
                    raise UserError(f"the index is damaged: {printable(path)} was changed; build it anew")

    def _ids_of(self, segment: Segment) -> list[str]:
        if segment.name not in self._names:
            names = read_json(inside(self.folder, f"{segment.name}.ids"))
            if not isinstance(names, list) or len(names) != segment.count:
                raise UserError(
                    f"the index is damaged: {segment.name}.ids has not {segment.count} names; build it anew"
                )
            self._names[segment.name] = [str(name) for name in names]
        return self._names[segment.name]

    def ids(self) -> Iterator[str]:
        """Names of all images, in order."""
        for segment in self.manifest.segments:
            gone = set(segment.deleted)
            yield from (name for row, name in enumerate(self._ids_of(segment)) if row not in gone)

    def id_at(self, place: int) -> str:
        """Name of the image at a place of ``blocks``.

        Raises:
            IndexError: there is no such place.
        """
        ends = list(accumulate(segment.count for segment in self.manifest.segments))
        number = bisect_right(ends, place)
        if place < 0 or number == len(ends):
            raise IndexError(f"the index has no place {place}")
        segment = self.manifest.segments[number]
        return self._ids_of(segment)[place - (ends[number] - segment.count)]

    def _lookup(self) -> dict[str, int]:
        """The place of each image by its name."""
        if self._places is None:
            places, start = {}, 0
            for segment in self.manifest.segments:
                gone = set(segment.deleted)
                for row, name in enumerate(self._ids_of(segment)):
                    if row not in gone:
                        places[name] = start + row
                start += segment.count
            self._places = places
        return self._places

    def place_of(self, name: str) -> int:
        """The place of an image in ``blocks``; the opposite of ``id_at``.

        Raises:
            UserError: it is not in the index.
        """
        if name not in self:
            raise UserError(f"the index has no image {printable(name)!r}")
        return self._lookup()[name]

    def __contains__(self, name: str) -> bool:
        return name in self._lookup()

    def _mapped(self, segment: Segment) -> np.ndarray:
        return np.memmap(self.folder / f"{segment.name}.vectors", self._record, "r")

    def _decoded(self, records: np.ndarray) -> Tensor:
        values = torch.from_numpy(np.array(records["values"]).astype(np.float32))
        if self.manifest.kind == "int8":
            values *= torch.from_numpy(np.array(records["scale"]))[..., None]
        return values

    def vectors(self, names: Sequence[str]) -> Tensor:
        """Vectors ``(n, vectors per image, width)`` of some images, float32.

        Raises:
            UserError: an image is not in the index.
        """
        places = self._lookup()
        missing = next((name for name in names if name not in places), None)
        if missing is not None:
            raise UserError(f"the index has no image {printable(missing)!r}")
        wanted = np.asarray([places[name] for name in names])
        found = torch.empty(len(names), self.manifest.images, self.manifest.width)
        start = 0
        for segment in self.manifest.segments:
            here = np.flatnonzero((wanted >= start) & (wanted < start + segment.count))
            if len(here):
                found[here] = self._decoded(self._mapped(segment)[wanted[here] - start])
            start += segment.count
        return found

    def blocks(self, size: int = SEGMENT) -> Iterator[tuple[int, Tensor, Tensor]]:
        """All vectors in order, some at a time; deleted ones are marked.

        Args:
            size: images of a block at most.

        Yields:
            The place of the first; ``(n, vectors per image, width)`` float32; ``(n,)`` booleans, false for deleted.
        """
        start = 0
        for segment in self.manifest.segments:
            records = self._mapped(segment)
            kept = torch.ones(segment.count, dtype=torch.bool)
            kept[segment.deleted] = False
            for first in range(0, segment.count, size):
                part = slice(first, min(first + size, segment.count))
                yield start + first, self._decoded(records[part]), kept[part]
            start += segment.count

    # --- writing ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within the block nobody else writes; the index is as the last writer left it.

        Raises:
            UserError: another process writes.
        """
        with _locked(self.folder):
            newest = VisualIndex.open(self.folder).manifest
            if newest != self.manifest:
                self._forget(newest)
            yield

    def _forget(self, manifest: IndexManifest) -> None:
        self.manifest, self._places, self._names = manifest, None, {}

    def _commit(self, manifest: IndexManifest) -> None:
        write_atomically(self.folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        self.manifest = manifest

    def _encoded(self, vectors: Tensor) -> bytes:
        values = vectors.detach().cpu().float().numpy()
        if not np.isfinite(values).all():
            raise UserError("a vector holds NaN or infinite numbers; nothing was written")
        records = np.zeros(len(values), self._record)
        if self.manifest.kind == "int8":
            scale = np.abs(values).max(-1) / 127
            scale[scale == 0] = 1
            records["scale"] = scale
            records["values"] = np.rint(values / scale[..., None])
        else:
            records["values"] = values
        return records.tobytes()

    def add(self, names: Sequence[str], vectors: Tensor, skipped: dict[str, str] | None = None) -> None:
        """Add images; vectors that are there do not change.

        Args:
            names: one for each image, none of them in the index yet.
            vectors: ``(n, vectors per image, width)``.
            skipped: images that could not be read, each with the reason.

        Raises:
            UserError: a name is there already or twice, the shape is another, or another process writes.
        """
        with self.writing():
            self.add_locked(names, vectors, skipped)

    def add_locked(self, names: Sequence[str], vectors: Tensor, skipped: dict[str, str] | None = None) -> None:
        """``add`` within ``writing``."""
        shape = (len(names), self.manifest.images, self.manifest.width)
        if tuple(vectors.shape) != shape:
            raise UserError(f"vectors must be {shape}; got {tuple(vectors.shape)}")
        there = self._lookup()
        seen: set[str] = set()
        for name in names:
            if name in there or name in seen:
                raise UserError(f"the image {printable(name)!r} is in the index already; delete it first")
            seen.add(name)
        manifest = self.manifest.model_copy(deep=True)
        manifest.skipped = {
            name: reason for name, reason in (manifest.skipped | (skipped or {})).items() if name not in seen
        }
        if names:
            number = f"{len(manifest.segments):06d}"
            content, listed = self._encoded(vectors), json.dumps(list(names), ensure_ascii=False).encode()
            write_atomically(self.folder / f"{number}.vectors", content)
            write_atomically(self.folder / f"{number}.ids", listed)
            hashes = (hashlib.sha256(part).hexdigest() for part in (content, listed))
            manifest.segments.append(
                Segment(name=number, count=len(names), vectors_sha256=next(hashes), ids_sha256=next(hashes))
            )
        start = sum(known.count for known in self.manifest.segments)
        self._commit(manifest)
        there.update({name: start + row for row, name in enumerate(names)})

    def delete(self, names: Sequence[str]) -> None:
        """Images that count no more; all others keep their vectors and places.

        Raises:
            UserError: an image is not in the index, or another process writes.
        """
        with self.writing():
            places = self._lookup()
            missing = next((name for name in names if name not in places), None)
            if missing is not None:
                raise UserError(f"the index has no image {printable(missing)!r}; nothing was deleted")
            gone = {places[name] for name in names}
            manifest, start = self.manifest.model_copy(deep=True), 0
            for segment in manifest.segments:
                here = {place - start for place in gone if start <= place < start + segment.count}
                segment.deleted = sorted(here | set(segment.deleted))
                start += segment.count
            self._commit(manifest)
            self._places = None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process writes to the index {printable(folder)}; wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()
