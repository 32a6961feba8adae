"""Files: written whole or not at all, read with errors in one line, never outside the folder that they belong to."""

import contextlib
import errno
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tenfold.errors import UserError

LARGEST_TEXT = 2**28
"""Bytes of a text file beyond which it is not read whole."""
_DEEPEST = 50
_MOST_OTHERS = 100_000


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all: under a temporary name beside it first, then renamed.

    Raises:
        UserError: the place cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def reason_of_writer(error: Exception) -> str:
    """Why a file could not be written; empty where an error is about something else. Writers raise their own kinds."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    words = "inline_container|PytorchStreamWriter|iostream error"
    of_torch = isinstance(error, RuntimeError) and re.search(words, str(error))
    of_safetensors = type(error).__name__ == "SafetensorError" and re.search(r"os error|I/O|No space", str(error))
    return "the write failed; is the disk full?" if of_torch or of_safetensors else ""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, for writers that want a path; renamed when the block ends well.


        with atomic_path("weights.safetensors") as temporary:
            save_file(state, temporary)

    Raises:
        UserError: the place cannot be written; nothing is left of the temporary file.
    """
    path = Path(path)
    # The name's end stays, since writers go by it; a long name is cut, so that the temporary one is no longer.
    temporary = path.with_name(f".{os.getpid()}-{path.name[-200:]}")
    try:
        yield temporary
        temporary.replace(path)
    except Exception as error:
        reason = reason_of_writer(error)
        if not reason:
            raise
        raise UserError(f"cannot write {printable(path)}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path: str | Path) -> Path:
    """Make a folder with its parents; one that is there is fine.

    Raises:
        UserError: it cannot be made, or is a file.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {printable(path)}: {error.strerror or error}") from error
    return path


def refuse_overwriting(out: str | Path, *inputs: str | Path) -> None:
    """Refuse to write over a file that is read.

    Raises:
        UserError: ``out`` is one of ``inputs``, by whatever name.
    """
    for source in inputs:
        with contextlib.suppress(OSError):
            if Path(out).samefile(source):
                raise UserError(f"--out {printable(out)} is the file that is read; name another")


def regular(path: str | Path) -> Path:
    """The path, if it is no device and no pipe: reading these may never end.

    Raises:
        OSError: it is one. What is not there is for its reader to say; ``/dev/null`` is an empty file.
    """
    path = Path(path)
    with contextlib.suppress(ValueError):  # a name with a null character
        if path.exists() and not path.is_file() and not path.is_dir() and path != Path(os.devnull):
            raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
    return path


def read_bytes(path: str | Path, limit: int = LARGEST_TEXT) -> bytes:
    """The content of a file of at most ``limit`` bytes.

    Raises:
        UserError: it cannot be read, or is larger.
    """
    try:
        with regular(path).open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(f"cannot read {printable(path)}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > limit:
        raise UserError(f"{printable(path)} has more than {limit:,} bytes, which is not what is expected here")
    return content


def read_text(path: str | Path, limit: int = LARGEST_TEXT) -> str:
    """The text of a UTF-8 file of at most ``limit`` bytes; a byte-order mark is passed over.

    Raises:
        UserError: it cannot be read, is larger, or is not UTF-8; the message names the line.
    """
    content = read_bytes(path, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{printable(path)} is not UTF-8 text: line {line} holds the byte 0x{content[error.start]:02x}"
        ) from error


def read_json(path: str | Path, limit: int = LARGEST_TEXT) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path, limit))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(path)} is not a JSON file: {first_line(error)}") from error


def read_yaml(path: str | Path, limit: int = 2**22) -> Any:
    """The plain values of a YAML file; aliases, which can blow up or refer to themselves, are refused.

    Raises:
        UserError: it cannot be read, is not YAML, is nested too deeply or holds aliases.
    """
    import yaml

    text = read_text(path, limit)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # as it is read, so that depth costs nothing
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{printable(path)} holds a YAML alias (*name); write the values out")
            if depth > _DEEPEST:
                raise UserError(f"{printable(path)} is not YAML of settings: it is nested more than {_DEEPEST} deep")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{printable(path)} is not YAML: {first_line(error)}") from error


def inside(folder: str | Path, name: str) -> Path:
    """The path of a name that a file gave, below ``folder``.

    Raises:
        UserError: the name is absolute, climbs out of the folder, is empty, or follows a link out of it.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    plain = name and "\0" not in name and not posix.is_absolute() and not windows.is_absolute() and not windows.drive
    if not plain or ".." in posix.parts or ".." in windows.parts or not posix.parts:
        raise UserError(
            f"the name {printable(name)!r} leaves the folder {printable(folder)}; nothing was read or written"
        )
    path = Path(folder) / name
    try:
        leaves = not path.resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError) as error:  # which Python raises for links in a circle
        raise UserError(f"the name {printable(name)!r} leads nowhere: its links go round in a circle") from error
    if leaves:
        raise UserError(f"the name {printable(name)!r} is a link out of the folder {printable(folder)}")
    try:
        return regular(path)
    except OSError as error:
        raise UserError(f"{printable(path)}: {error.strerror}") from error


def files_below(folder: str | Path, wanted: Callable[[Path], bool]) -> tuple[list[Path], list[Path]]:
    """All files of a folder at any depth, in order: those that are wanted, and the others.

    Links to folders are not followed.

    Args:
        folder: of a data set or of a user's photos.
        wanted: by the name.

    Raises:
        UserError: a folder cannot be read, a name belongs to no file, or far more is there than what is wanted, as in a
            whole disk.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {printable(error.filename)}: {error.strerror or error}") from error

    found: list[Path] = []
    others: list[Path] = []
    for place, _, names in os.walk(folder, onerror=refuse):
        for path in (Path(place, name) for name in names):
            if not wanted(path):
                others.append(path)
            elif path.exists() and not path.is_file():
                raise UserError(f"{printable(path)} is a device or a pipe, not a file")
            else:  # a link that leads nowhere is one of those that cannot be read
                found.append(path)
        if len(others) > _MOST_OTHERS + 10 * len(found):
            raise UserError(
                f"{printable(folder)} holds more than {_MOST_OTHERS:,} files that are not of the kind that is wanted; "
                "name a folder of these alone"
            )
    return sorted(found), sorted(others)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with regular(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {error.strerror or error}") from error


def printable(text: object, longest: int = 300) -> str:
    """A text from elsewhere as a terminal may show it: control characters escaped, cut in the middle if too long."""
    shown = "".join(
        character.encode("unicode_escape").decode("ascii") if unicodedata.category(character)[0] == "C" else character
        for character in str(text)
    )
    half = longest // 2
    return shown if len(shown) <= longest else f"{shown[:half]}...{shown[-half:]}"


def first_line(error: object) -> str:
    """An error's message in one line of a bearable length."""
    return " ".join(str(error).split())[:200]
