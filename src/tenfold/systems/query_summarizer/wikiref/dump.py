"""A MediaWiki dump, streamed: one page in memory at a time."""

import bz2
import gzip
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.errors import UserError

_LARGEST_PAGE = 64 * 2**20


@dataclass(frozen=True)
class Page:
    """An article.

    Attributes:
        id: page id.
        revision: revision id.
        title: of the article.
        text: wikitext.
    """

    id: int
    revision: int
    title: str
    text: str


def read_dump(path: str | Path) -> Iterator[Page]:
    """Articles (namespace 0, no redirects) of a ``pages-articles`` dump, in order.

    Args:
        path: ``.xml``, ``.xml.bz2`` (also of several streams) or ``.xml.gz``.

    Raises:
        UserError: the file is missing, is no dump, is cut short, or defines entities.
    """
    path = Path(path)
    number = 0
    try:
        with _open(path) as file:
            for page in _pages(file, path):
                number += 1
                yield page
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (EOFError, ElementTree.ParseError) as error:
        raise UserError(
            f"the dump {path} is damaged or cut short after {number:,} articles ({error}): download it again"
        ) from error


def _open(path: Path) -> Any:
    if path.suffix == ".bz2":
        return bz2.open(path, "rb")
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")


def _pages(file: Any, path: Path) -> Iterator[Page]:
    head = file.peek(1024) if hasattr(file, "peek") else b""
    if b"<!DOCTYPE" in head[:1024] or b"<!ENTITY" in head[:1024]:
        raise UserError(f"{path} defines entities, which no dump does: it is not read")
    events = ElementTree.iterparse(file, events=("start", "end"))
    root: Any = None
    for event, element in events:
        if root is None:
            root = element
            if not element.tag.endswith("mediawiki"):
                raise UserError(f"{path} is not a MediaWiki dump: it begins with <{element.tag}>")
        if event == "end" and element.tag.rpartition("}")[2] == "page":
            page = _page(element, path)
            root.clear()  # what was read is forgotten: memory does not grow
            if page is not None:
                yield page


def _page(element: Any, path: Path) -> Page | None:
    space = element.tag[: element.tag.rindex("}") + 1] if "}" in element.tag else ""
    if element.findtext(f"{space}ns") != "0" or element.find(f"{space}redirect") is not None:
        return None
    revision = element.find(f"{space}revision")
    text = "" if revision is None else revision.findtext(f"{space}text") or ""
    if not text.strip() or text.lstrip()[:9].upper() == "#REDIRECT" or len(text) > _LARGEST_PAGE:
        return None
    try:
        return Page(
            id=int(element.findtext(f"{space}id") or ""),
            revision=int(revision.findtext(f"{space}id") or ""),
            title=(element.findtext(f"{space}title") or "").strip(),
            text=text,
        )
    except ValueError as error:
        raise UserError(f"a page of {path} has no number as its id") from error
