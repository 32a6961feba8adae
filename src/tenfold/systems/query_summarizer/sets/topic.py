"""``Topic``: a query, its documents and its reference summaries; the form into which every reader brings its set."""

import gzip
import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.text.sentences import Document


@dataclass(frozen=True)
class Topic:
    """One task of a set.

    Attributes:
        id: unique within the set.
        query: what is asked.
        documents: the sources.
        references: lines (sentences) of each reference summary; may be empty where only summaries are wanted.
        group: what must not be torn apart by a split: a story, a meeting, a page.
        domain: kind of text, where the set has several.
        labels: 1 for a sentence that belongs to the summary, over all documents; empty where they are to be made.
    """

    id: str
    query: str
    documents: tuple[Document, ...]
    references: tuple[tuple[str, ...], ...] = ()
    group: str = ""
    domain: str = ""
    labels: tuple[float, ...] = ()

    @property
    def texts(self) -> list[str]:
        """All sentences, one document after the other."""
        return [sentence.text for document in self.documents for sentence in document.sentences]


def require_references(topics: Sequence[Topic]) -> Sequence[Topic]:
    """The topics, if each has a reference.

    Raises:
        UserError: naming the first that has none.
    """
    bare = [topic.id for topic in topics if not topic.references]
    if bare:
        raise UserError(f"topic {bare[0]!r} has no reference summary ({len(bare)} of {len(topics)} lack one)")
    return topics


def find_file(folder: Path, *names: str, published: str = "") -> Path:
    """The first of some files that exists in a folder.

    Raises:
        UserError: none does; the message names the layout and where the set is published.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    where = f" (published at {published})" if published else ""
    raise UserError(f"{folder} holds none of: {', '.join(names)}{where}; name the folder with --data.root")


def open_bytes(path: Path) -> Any:
    """A file for reading bytes, unpacked by its suffix (``.xz``, ``.gz``)."""
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file with the numbers of their lines; ``.xz`` and ``.gz`` are unpacked on the way.

    Raises:
        UserError: the file cannot be read or is cut short; a line is no JSON object.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line.decode("utf-8"))
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number} is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number} is not a JSON object: {error}") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"cannot read {path}: {error}; it may be cut short: copy or download it again") from error
