"""From an article to statements that cite pages, with the exact place of every citation.


first pass    name -> <ref> body, over the whole page, list-defined references included
second pass   every <ref> becomes a private mark; tables, infoboxes, files go; the rest is stripped
statements    sentences that hold or end at a mark, with the titles of the sections above them
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from tenfold.errors import require
from tenfold.systems.query_summarizer.text.sentences import split_sentences
from tenfold.systems.query_summarizer.wikiref.dump import Page
from tenfold.systems.query_summarizer.wikiref.urls import has_text, without_archive

_OPEN, _CLOSE, _LOST = "\ue000", "\ue001", "\ue002"
_HEADING = re.compile(r"^(={2,6})[ \t]*(.+?)[ \t]*\1[ \t]*$", re.M)
_NOT_PROSE = re.compile(r"^[*#:;|!].*$", re.M)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_MARK = re.compile(rf"{_OPEN}(\d+){_CLOSE}")
_CITING = {"cite web", "cite news", "cite journal", "cite press release", "cite report", "cite magazine", "citation"}
_HARMLESS = re.compile(
    r"^(citation needed|cn|fact|clarify|when|who|which|by whom|dead link|dubious|verify|page needed|update after|r|rp|"
    r"better source|failed verification|clear|anchor|nbsp|use \w+ dates|use \w+ english|main|see also|further|redirect|"
    r"short description|pp-.*|other uses.*|about|for|good article|featured article|portal.*|sfn|harv.*|efn|refn|ipa.*)"
)
_SERVICE = {"references", "external links", "see also", "notes", "further reading", "bibliography", "sources"}
_RANGES = {"to": "to", "-": "to", "\u2013": "to", "to(-)": "to", "and": "and", "and(-)": "and", "or": "or", "x": "by",
           "by": "by", "*": "by", "+/-": "\u00b1"}  # fmt: skip
_DROPPED = ("table", "gallery", "timeline")
_TEXT = ("nihongo", "nowrap", "nobr", "abbr", "small", "sic", "smallcaps")
_NO_TEXT = ("infobox", "navbox", "taxobox", "reflist", "sidebar", "cite ", "stack")
_FILE = re.compile(r"^\s*:?(file|image|category)\s*:", re.I)
Span = Literal["1", "back_to_previous_ref"]


@dataclass(frozen=True)
class Statement:
    """What an article says and cites.

    Attributes:
        text: the statement, plain.
        query: title of the article, then titles of the enclosing sections.
        urls: addresses it cites, archived copies undone.
        dates: access date of each, as written; empty where there is none.
        lost: whether a template stood in it that could not be turned into text.
    """

    text: str
    query: tuple[str, ...]
    urls: tuple[str, ...]
    dates: tuple[str, ...]
    lost: bool


@dataclass
class Counts:
    """What was seen on a page; summed over a dump into the data card."""

    references: int = 0
    unresolved: int = 0
    without_url: int = 0
    statements: int = 0
    values: dict[str, int] = field(default_factory=dict)


def statements_of(page: Page, span: Span = "1", counts: Counts | None = None) -> list[Statement]:
    """Statements of an article that cite at least one page of text.

    Args:
        page: the article.
        span: which sentences a mark after several covers: ``1`` the last, ``back_to_previous_ref`` those since the mark
            before, at most three.
        counts: added to.

    Raises:
        UserError: mwparserfromhell is not installed.
    """
    parser = require("mwparserfromhell", "wikiref")
    counts = counts or Counts()
    code = parser.parse(page.text)
    named, bodies, marks = _named_references(code, parser), [], {}
    for tag in code.filter_tags(matches=lambda node: str(node.tag).lower() == "ref"):
        counts.references += 1
        body = _content(tag)
        name = _name(tag)
        if not body.strip() and name:
            body = named.get(name, "")
            counts.unresolved += not body
        bodies.append(_cited(body, parser))
        counts.without_url += not bodies[-1][0]
        marks[id(tag)] = f"{_OPEN}{len(bodies) - 1}{_CLOSE}"
    _rewrite(code, parser, lambda node: marks.get(id(node)))
    _rewrite(code, parser, lambda node: _plain_form(node, parser), inner_first=True)
    found = []
    for path, text in _sections(code, parser, page.title):
        for paragraph in re.split(r"\n\s*\n", text):
            found += list(_cut(paragraph, path, bodies, span))
    counts.statements += len(found)
    return found


def _content(tag: Any) -> str:
    return "" if tag.self_closing or tag.contents is None else str(tag.contents)


def _name(tag: Any) -> str:
    return str(tag.get("name").value).strip().strip("\"'") if tag.has("name") else ""


def _named_references(code: Any, parser: Any) -> dict[str, str]:
    named: dict[str, str] = {}
    for tag in code.filter_tags(matches=lambda node: str(node.tag).lower() == "ref"):
        name, body = _name(tag), _content(tag)
        if name and body.strip():
            named.setdefault(name, body)
    return named


def _cited(body: str, parser: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Addresses and access dates of a reference: those of its citation templates, else its bare links."""
    urls, dates = [], []
    code = parser.parse(body)
    for template in code.filter_templates():
        name = str(template.name).strip().lower().replace("_", " ")
        if name in _CITING:
            fields = {str(p.name).strip().lower(): _plain(p.value) for p in template.params}
            url = fields.get("url", "")
            if not url.lower().startswith(("http://", "https://")):
                url = fields.get("archive-url") or fields.get("archiveurl") or ""
            if url.lower().startswith(("http://", "https://")):
                urls.append(without_archive(url.split()[0]))
                dates.append(fields.get("access-date") or fields.get("accessdate") or "")
    if not urls:
        for link in code.filter_external_links():
            url = str(link.url).strip()
            if url.lower().startswith(("http://", "https://")):
                urls.append(without_archive(url))
                dates.append("")
    return tuple(urls), tuple(dates)


def _plain(value: Any) -> str:
    """A field's text; an address alone is a link, of which stripping would leave nothing."""
    return str(value.strip_code()).strip() or str(value).strip()


def _rewrite(code: Any, parser: Any, change: Callable[[Any], str | None], inner_first: bool = False) -> None:
    """Put text in the place of nodes, in one walk: mwparserfromhell's own ``replace`` searches the page for each.

    Args:
        code: changed in place.
        parser: the package.
        change: a node's new text, or ``None`` where it stays.
        inner_first: whether what stands in a node is changed before it; else only where the node stays.
    """
    nodes = code.nodes
    for place, node in enumerate(nodes):
        text = None if inner_first else change(node)
        if text is None:
            for inside in node.__children__():
                _rewrite(inside, parser, change, inner_first)
            text = change(node) if inner_first else None
        if text is not None:
            nodes[place] = parser.nodes.Text(text)


def _plain_form(node: Any, parser: Any) -> str | None:
    """Templates that stand for text become it, harmless ones go, others leave a mark of their loss; tables go."""
    if isinstance(node, parser.nodes.Template):
        return _text_of_template(node)
    if isinstance(node, parser.nodes.Tag):
        name = str(node.tag).lower()
        return "" if name in _DROPPED else _LOST if name in ("math", "score") else None
    if isinstance(node, parser.nodes.Wikilink) and _FILE.match(str(node.title)):
        return ""
    return None


def _text_of_template(template: Any) -> str:
    name = " ".join(str(template.name).lower().replace("_", " ").split())
    plain = [str(p.value).strip() for p in template.params if not p.showkey]
    if name in ("convert", "cvt") and len(plain) >= 2:
        if plain[1] in _RANGES and len(plain) >= 4:  # {{convert|0.16|to|27|m2}}
            return f"{plain[0]} {_RANGES[plain[1]]} {plain[2]} {plain[3]}"
        return f"{plain[0]} {plain[1]}"
    if (name == "lang" or name == "transl") and len(plain) >= 2:
        return plain[-1]
    if (name.startswith("lang-") or name in _TEXT) and plain:
        return plain[0]
    if name in ("quote", "blockquote", "cquote"):
        return plain[0] if plain else str(template.get("text").value) if template.has("text") else ""
    if name in ("as of", "start date", "birth date", "birth date and age", "death date", "end date") and plain:
        numbers = [part for part in plain if part.isdigit()]
        return ("as of " if name == "as of" else "") + "-".join(numbers or plain[:1])
    if name in ("circa", "c.", "ca"):
        return f"c. {plain[0]}" if plain else "c."
    if name in ("ndash", "spaced ndash", "snd"):
        return " – "
    if _HARMLESS.fullmatch(name) or name.startswith(_NO_TEXT):
        return ""
    return _LOST


def _sections(code: Any, parser: Any, title: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Plain text under each heading with its path; service sections are left out, with all below them.

    Headings are lines of their own whatever stands around them: one tag that is never closed would otherwise swallow
    all headings behind it.
    """
    stack: list[tuple[int, str]] = []
    pieces = _HEADING.split(_COMMENT.sub("", str(code)))
    for number in range(0, len(pieces), 3):
        if number:
            level = len(pieces[number - 2])
            while stack and stack[-1][0] >= level:
                stack.pop()
            heading = str(parser.parse(_MARK.sub("", pieces[number - 1])).strip_code())
            stack.append((level, " ".join(heading.replace(_LOST, "").split())))
        if any(name.lower() in _SERVICE for _, name in stack):
            continue
        prose = _NOT_PROSE.sub("", pieces[number])
        text = str(parser.parse(prose).strip_code(normalize=True, collapse=False))
        yield (title, *(name for _, name in stack if name)), text


def _cut(paragraph: str, path: tuple[str, ...], bodies: list, span: Span) -> Iterator[Statement]:
    """Statements of a paragraph: the sentence that a mark ends or sits in."""
    plain, marks = [], []
    place = 0
    last = 0
    for match in _MARK.finditer(paragraph):
        piece = paragraph[last : match.start()]
        plain.append(piece)
        place += len(piece)
        marks.append((place, int(match[1])))
        last = match.end()
    plain.append(paragraph[last:])
    text = "".join(plain)
    # A mark's place stands between characters; sentences are found in the text without marks.
    sentences = split_sentences(text)
    if not sentences or not marks:
        return
    cited: dict[int, list[int]] = {}
    for at, number in marks:
        # A mark directly behind a sentence's end (and its full stop or quote) belongs to that sentence.
        owner = max((i for i, s in enumerate(sentences) if s.start < at), default=0)
        cited.setdefault(owner, []).append(number)
    before = -1
    for owner, numbers in sorted(cited.items()):
        first = owner if span == "1" else max(before + 1, owner - 2)
        before = owner
        pairs = [(u, d) for number in numbers for u, d in zip(*bodies[number], strict=True) if has_text(u)]
        if not pairs:
            continue
        covered = text[sentences[first].start : sentences[owner].end]
        urls = dict(reversed(pairs))
        ordered = list(dict.fromkeys(url for url, _ in pairs))
        yield Statement(
            text=" ".join(covered.replace(_LOST, " ").split()),
            query=path,
            urls=tuple(ordered),
            dates=tuple(urls[url] for url in ordered),
            lost=_LOST in covered,
        )
