"""Files of one's own as documents: plain text, HTML, JSONL; refused in one line where they are none."""

import json
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.files import regular
from tenfold.systems.query_summarizer.text.sentences import Document, document_of, document_of_sentences

_BLOCK_TAGS = """
    p div br li ul ol tr td th table h1 h2 h3 h4 h5 h6 section article blockquote pre dd dt hr
"""
_HIDDEN_TAGS = "script style title noscript template svg nav footer select button"
_BLOCKS, _HIDDEN = frozenset(_BLOCK_TAGS.split()), frozenset(_HIDDEN_TAGS.split())


def read_text_file(path: str | Path) -> str:
    """A file's text.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is empty.
    """
    path = Path(path)
    try:
        content = regular(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith(b"%PDF"):
            raise UserError(f"{path} is a PDF: give its text, which pdftotext writes") from error
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    if not text.strip():
        raise UserError(f"{path} is empty: there is nothing to summarise")
    return text


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Documents of files and folders, in the order given; folders with all below them, by name, hidden files left out.

    ``.html`` and ``.htm`` are reduced to their text, to which offsets refer; a ``.jsonl`` file holds one document a
    line (``text`` or ``sentences``, and perhaps ``id``); everything else is plain text. A document is named by its
    path in the folder, or its file's name.

    Raises:
        UserError: a file cannot be read, is empty, or is not what its name says.
    """
    documents: list[Document] = []
    for path, name in _files(paths):
        if path.suffix in (".jsonl", ".ndjson"):
            documents += [document_of_row(row, f"{name}:{line}") for line, row in read_jsonl(path)]
        else:
            text = read_text_file(path)
            if path.suffix.lower() in (".html", ".htm"):
                text = text_of_html(text)
            documents.append(document_of(text, name))
        if not documents or not documents[-1].sentences:
            raise UserError(f"{path} holds no sentence: there is nothing to summarise")
    if not documents:
        raise UserError("there is no document: name files, or a folder that holds some")
    return documents


def _files(paths: Sequence[str | Path]) -> Iterator[tuple[Path, str]]:
    for path in map(Path, paths):
        if path.is_dir():
            below = [(file, file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
            seen = [(file, name.as_posix()) for file, name in below if not any(p.startswith(".") for p in name.parts)]
            if not seen:
                raise UserError(f"the folder {path} holds no file")
            yield from seen
        elif path.exists():
            yield path, path.name
        else:
            raise UserError(f"there is no file or folder {path}")


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSONL file with the numbers of their lines; empty lines are left out.

    Raises:
        UserError: naming the line that is no JSON object.
    """
    for number, line in enumerate(read_text_file(path).splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number} is not a JSON object")
            yield number, row


def document_of_row(value: Any, place: str) -> Document:
    """A document of a JSON value: a string, a list of sentences, or an object with ``text`` or ``sentences``.

    Raises:
        UserError: it is something else, or empty.
    """
    name = place
    if isinstance(value, dict):
        name = str(value.get("id", place))
        value = value.get("text", value.get("sentences", value.get("document")))
    if isinstance(value, str):
        made = document_of(value, name)
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        made = document_of_sentences(value, name)
    else:
        raise UserError(f"{place} holds no document: give it 'text' (a string) or 'sentences' (a list of strings)")
    if not made.sentences:
        raise UserError(f"{place} is empty: there is nothing to summarise")
    return made


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in _HIDDEN
        if tag in _BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in _HIDDEN))
        if tag in _BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(" ".join(data.split()) + " " if data.strip() else " ")


def text_of_html(html: str) -> str:
    """Visible text of a page, a paragraph for each block; nothing in the page is executed or fetched."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    paragraphs = (" ".join(part.split()) for part in "".join(parser.parts).split("\n\n"))
    return "\n\n".join(part for part in paragraphs if part)
