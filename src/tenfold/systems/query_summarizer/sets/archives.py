"""Files inside archives, read in memory and by name: nothing is unpacked to disk, no name can leave anywhere."""

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tenfold.errors import UserError

_LARGEST_FILE = 256 * 2**20


def walk(path: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a folder or an archive (``.tgz``, ``.tar.gz``, ``.tar``, ``.zip``), archives within it included.

    Args:
        path: folder or archive.

    Returns:
        Pairs of a name with all folders and archives above it (``/`` between them) and the file's bytes.

    Raises:
        UserError: an archive is damaged, or a file in it is far too large.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                yield from _opened(str(file.relative_to(path)), file.read_bytes())
    else:
        yield from _opened(path.name, path.read_bytes())


def _opened(name: str, content: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    lower = name.lower()
    if depth > 4 or not lower.endswith((".tgz", ".tar.gz", ".tar", ".zip")):
        yield name, content
        return
    try:
        if lower.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for member in archive.infolist():
                    if not member.is_dir():
                        _check(name, member.filename, member.file_size)
                        yield from _opened(f"{name}/{member.filename}", archive.read(member), depth + 1)
        else:
            with tarfile.open(fileobj=io.BytesIO(content)) as archive_of_files:
                for entry in archive_of_files:
                    if entry.isfile():
                        _check(name, entry.name, entry.size)
                        file = archive_of_files.extractfile(entry)
                        assert file is not None
                        yield from _opened(f"{name}/{entry.name}", file.read(), depth + 1)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
        raise UserError(f"the archive {name} is damaged or cut short: {error}") from error


def _check(archive: str, name: str, size: int) -> None:
    if size > _LARGEST_FILE:
        raise UserError(f"{name} in {archive} unpacks to {size:,} bytes: that is no file of this set")
