"""Cited pages, offline: from WARC files, a folder or SQLite file of HTML, or JSONL. Nothing is fetched.

All providers answer ``fetch(url, date)`` with a page or ``None``; addresses are compared in their canonical form.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tenfold.errors import UserError, require
from tenfold.files import first_line
from tenfold.systems.query_summarizer.sets.topic import json_rows
from tenfold.systems.query_summarizer.text.reading import text_of_html
from tenfold.systems.query_summarizer.wikiref.urls import canonical_url

Reader = Literal["resiliparse", "trafilatura", "plain"]
_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")


@dataclass(frozen=True)
class CitedPage:
    """A page as a provider has it: ``html``, or ``text`` that is extracted already."""

    url: str
    html: str | None = None
    text: str | None = None


class PageProvider(Protocol):
    """Where pages come from."""

    def fetch(self, url: str, date: str = "") -> CitedPage | None:
        """The page of an address, the capture nearest to a date where there are several."""
        ...


class JsonlPages:
    """``{"url", "text"}`` or ``{"url", "html"}`` a line.

    Args:
        path: the file; ``.gz`` and ``.xz``, too.
    """

    def __init__(self, path: str | Path) -> None:
        self._pages: dict[str, CitedPage] = {}
        for number, row in json_rows(Path(path)):
            url = canonical_url(str(row.get("url", "")))
            if url is None or not ("text" in row or "html" in row):
                raise UserError(f"{path}, line {number} is no page: it needs 'url' and 'text' or 'html'")
            self._pages.setdefault(url, CitedPage(url, html=row.get("html"), text=row.get("text")))

    def fetch(self, url: str, date: str = "") -> CitedPage | None:
        """See ``PageProvider``."""
        return self._pages.get(canonical_url(url) or "")


class FolderPages:
    """A folder of HTML files with an ``index.json`` of address to file, or an SQLite file with a table ``pages``.

    Args:
        path: the folder; or the file, with columns ``url`` and ``html``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files: dict[str, Path] = {}
        self._base: sqlite3.Connection | None = None
        if self.path.is_dir():
            try:
                index = json.loads((self.path / "index.json").read_text(encoding="utf-8"))
                items = index.items()
            except (OSError, ValueError, AttributeError) as error:
                raise UserError(f"{path} needs an index.json of addresses and file names: {error}") from error
            root = self.path.resolve()
            for url, name in items:
                file = (self.path / str(name)).resolve()
                if not file.is_relative_to(root):
                    raise UserError(f"{path}/index.json names {name!r}, which lies outside the folder")
                self._files[canonical_url(str(url)) or str(url)] = file
            return
        try:
            self._base = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
            self._rows = {
                canonical_url(url) or url: number for number, url in self._base.execute("SELECT rowid, url FROM pages")
            }
        except sqlite3.Error as error:
            raise UserError(f"{path} is no SQLite file with a table pages(url, html): {error}") from error

    def fetch(self, url: str, date: str = "") -> CitedPage | None:
        """See ``PageProvider``."""
        key = canonical_url(url) or ""
        if self._base is not None:
            if key not in self._rows:
                return None
            (html,) = self._base.execute("SELECT html FROM pages WHERE rowid = ?", (self._rows[key],)).fetchone()
            return CitedPage(key, html=html if isinstance(html, str) else html.decode("utf-8", "replace"))
        file = self._files.get(key)
        if file is None or not file.exists():
            return None
        return CitedPage(key, html=file.read_bytes().decode("utf-8", "replace"))


class WarcPages:
    """WARC files, such as a subset of Common Crawl; the index of what they hold is made once, pages are read on demand.

    Only responses with status 200 and ``text/html`` count.

    Args:
        paths: files ``.warc`` or ``.warc.gz``.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._places: dict[str, list[tuple[str, Path, int]]] = {}
        for path in map(Path, paths):
            for url, date, offset in _warc_index(path):
                self._places.setdefault(url, []).append((date, path, offset))

    def fetch(self, url: str, date: str = "") -> CitedPage | None:
        """See ``PageProvider``."""
        key = canonical_url(url) or ""
        captures = self._places.get(key)
        if not captures:
            return None
        wanted = _day(date)
        _, path, offset = min(captures, key=lambda capture: (abs(_day(capture[0]) - wanted), capture[0]))
        return CitedPage(key, html=_warc_html(path, offset))


def _day(date: str) -> int:
    """A rough number of days; dates in words count as unknown, before all captures."""
    found = _DATE.search(date)
    if found is None:
        return 0
    year, month, day = (int(part or 1) for part in found.groups())
    return year * 372 + month * 31 + day


def _warc_index(path: Path) -> Iterator[tuple[str, str, int]]:
    iterator = require("warcio.archiveiterator", "wikiref").ArchiveIterator
    if not path.exists():
        raise UserError(f"there is no WARC file {path}")
    number = 0
    try:
        with path.open("rb") as file:
            records = iterator(file)
            for record in records:
                number += 1
                headers = record.http_headers
                content = record.content_stream().read()  # to its end: a record that is cut short is noticed here
                if getattr(record.raw_stream, "limit", 0) or (not content and record.length):
                    raise EOFError("the record is cut short")
                if record.rec_type != "response" or headers is None or headers.get_statuscode() != "200":
                    continue
                if "html" not in (headers.get_header("Content-Type") or "").lower():
                    continue
                url = canonical_url(record.rec_headers.get_header("WARC-Target-URI") or "")
                date = record.rec_headers.get_header("WARC-Date") or ""
                if url is not None:
                    yield url, date, records.get_record_offset()
    except UserError:
        raise
    except Exception as error:  # warcio's errors have no common class
        raise UserError(f"the WARC file {path} is damaged after {number} records: {first_line(error)}") from error


def _warc_html(path: Path, offset: int) -> str:
    iterator = require("warcio.archiveiterator", "wikiref").ArchiveIterator
    with path.open("rb") as file:
        file.seek(offset)
        record = next(iter(iterator(file)))
        content = record.content_stream().read()
        kind = record.http_headers.get_header("Content-Type") or ""
    declared = re.search(r"charset=[\"']?([\w-]+)", kind) or re.search(rb"charset=[\"']?([\w-]+)", content[:2048])
    name = (declared[1] if isinstance(declared[1], str) else declared[1].decode("ascii")) if declared else "utf-8"
    try:
        return content.decode(name, "replace")
    except LookupError:
        return content.decode("utf-8", "replace")


def main_text(page: CitedPage, reader: Reader = "resiliparse") -> str:
    """The main text of a page.

    Args:
        page: as a provider gave it.
        reader: ``resiliparse`` (fast), ``trafilatura`` (slower, other choices), or ``plain`` (all visible text).

    Raises:
        UserError: the reader's package is not installed.
    """
    if page.text is not None:
        return page.text
    html = page.html or ""
    if reader == "plain":
        return text_of_html(html)
    extract: Callable[..., str | None]
    if reader == "resiliparse":
        extract = require("resiliparse.extract.html2text", "wikiref").extract_plain_text
        return extract(html, main_content=True, alt_texts=False, preserve_formatting=True) or ""
    extract = require("trafilatura", "wikiref").extract
    return extract(html, include_comments=False, include_tables=False) or ""


def open_pages(path: str | Path) -> PageProvider:
    """The provider that a path is for: ``.warc``/``.warc.gz`` files or a folder of them, JSONL, SQLite, a folder.

    Args:
        path: of files or a folder.

    Raises:
        UserError: the path is none of these.
    """
    path = Path(path)
    if path.is_dir() and (path / "index.json").exists():
        return FolderPages(path)
    warcs = sorted(path.glob("*.warc*")) if path.is_dir() else [path] if ".warc" in path.name else []
    if warcs:
        return WarcPages(warcs)
    if ".jsonl" in path.name:
        return JsonlPages(path)
    if path.suffix in (".sqlite", ".sqlite3", ".db"):
        return FolderPages(path)
    raise UserError(
        f"{path} holds no pages: name WARC files (or a folder of them), a .jsonl file, an SQLite file, or a folder of "
        "HTML with an index.json"
    )
