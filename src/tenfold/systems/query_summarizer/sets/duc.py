"""DUC 2005-2007 (NIST's archives or an unpacked tree) and TD-QFS (its nested zips).

The layouts are those that public readers of the sets describe (sacrerouge, QuerySum); the sets are not
redistributable, so the tests write archives of the same layout.
"""

import html
import re
from collections import defaultdict
from pathlib import Path

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.sets.archives import walk
from tenfold.systems.query_summarizer.sets.topic import Topic
from tenfold.systems.query_summarizer.text.sentences import Document, document_of, split_sentences

YEARS = ("2005", "2006", "2007", "2007-update")
_TOPIC = re.compile(r"<topic>(.*?)(?:</topic>|(?=<topic>)|\Z)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
_BODY = re.compile(r"<(TEXT|GRAPHIC|LEADPARA)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_MODEL = re.compile(r"(?i)^(D\d+)(-[AB])?\.M\.\d+\.[A-Z]\.([A-Z])$")


def read_duc(folder: str | Path, year: str) -> list[Topic]:
    """Topics of a year of DUC.

    Args:
        folder: holds NIST's archives (``duc2006_topics.sgml``, ``DUC2006_Summarization_Documents.tgz``,
            ``NISTeval.tar.gz`` ...), in any folders; or ``docs/2006/TOPIC/DOC``, ``topics/2006.sgml``,
            ``summary_targets/2006/``.
        year: ``2005``, ``2006``, ``2007`` (main task) or ``2007-update``.

    Raises:
        UserError: topics, documents or model summaries of the year are missing.
    """
    if year not in YEARS:
        raise UserError(f"year is one of {', '.join(YEARS)}; got {year!r}")
    root, number, update = Path(folder), year[:4], year.endswith("update")
    if not root.is_dir():
        raise UserError(f"{root} is not a folder with the archives of DUC {number} (duc.nist.gov)")
    queries: dict[str, str] = {}
    documents: dict[str, list[Document]] = defaultdict(list)
    models: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        above = path.relative_to(root).as_posix()
        if path.suffix == ".sgml" and number in above and ("update" in above.lower()) == update:
            queries |= _queries(_decode(path.read_bytes()))
            continue
        archive = path.name.lower().endswith((".tgz", ".tar.gz", ".tar"))
        files = walk(path) if archive else [(path.name, path.read_bytes())] if number in above else []
        for inside, content in files:
            name = f"{above}/{inside}" if archive else above
            if _of_year(name, number, update):
                _sort_file(name, content, number, documents, models)
    if not queries:
        raise UserError(f"{root} holds no topics of DUC {number} (duc{number}_topics.sgml)")
    topics = []
    for topic, query in sorted(queries.items()):
        parts = sorted(key for key in documents if key.split("-")[0] == topic)
        for part in parts or [topic]:
            if not documents.get(part):
                raise UserError(f"{root} holds no documents of topic {topic!r} of DUC {number}")
            references = tuple(models[part][author] for author in sorted(models[part]))
            found = tuple(sorted(documents[part], key=lambda document: document.id))
            topics.append(Topic(part, query, found, references, group=topic))
    return topics


def _of_year(name: str, year: str, update: bool) -> bool:
    """Archives of one year may lie beside those of others: their names tell, or the numbers of their topics do."""
    lower = name.lower()
    if "duc200" in lower and f"duc{year}" not in lower:
        return False
    if year == "2007" and ("/update/" in lower or "updateeval" in lower) != update:
        return False
    topic = re.search(r"(?<![a-z0-9])d(\d{3,4})[a-z]?(?![a-z0-9])", lower)
    if topic is None:
        return False
    digits = topic[1]
    return {"2005": len(digits) == 3, "2006": digits.startswith("06"), "2007": digits.startswith("07")}[year]


def _sort_file(
    name: str,
    content: bytes,
    year: str,
    documents: dict[str, list[Document]],
    models: dict[str, dict[str, tuple[str, ...]]],
) -> None:
    parts = name.split("/")
    model = _MODEL.match(parts[-1])
    if model:
        if "peers" not in parts:
            key = model[1].lower() + (model[2] or "").lower()
            models[key][model[3]] = _summary_lines(content, paragraphs=year == "2007")
        return
    folder = parts[-2].lower() if len(parts) > 1 else ""
    found = re.fullmatch(r"(d\d+)[a-z]?(-[ab])?", folder)
    if found and b"<" in content:
        document = parse_document(content, parts[-1])
        if document.sentences:
            documents[found[1] + (found[2] or "")].append(document)


def _queries(sgml: str) -> dict[str, str]:
    found = {}
    for match in _TOPIC.finditer(sgml):
        fields = {}
        for name in ("num", "title", "narr"):
            field = re.search(rf"<{name}>(.*?)(?:</{name}>|(?=<\w)|\Z)", match[1], re.DOTALL | re.IGNORECASE)
            fields[name] = " ".join(html.unescape(field[1]).split()) if field else ""
        if fields["num"]:
            # The last letter is the assessor; summaries are named without it.
            topic = re.sub(r"[a-z]$", "", fields["num"].lower())
            found[topic] = ". ".join(part.rstrip(".") for part in (fields["title"], fields["narr"]) if part) + "."
    return found


def parse_document(content: bytes, name: str) -> Document:
    """A news story in SGML: its text, with or without ``<P>``; ``<GRAPHIC>`` or the lead where there is no text."""
    text = _decode(content)
    number = re.search(r"<DOCNO>(.*?)</DOCNO>", text, re.DOTALL | re.IGNORECASE)
    bodies = {match[1].upper(): match[2] for match in _BODY.finditer(text)}
    body = bodies.get("TEXT") or bodies.get("GRAPHIC") or bodies.get("LEADPARA") or ""
    paragraphs = re.split(r"(?i)</?P>|\n\s*\n|\n(?=\s{3,}\S)", body)
    cleaned = (" ".join(html.unescape(_TAG.sub(" ", paragraph)).split()) for paragraph in paragraphs)
    return document_of("\n\n".join(p for p in cleaned if p), number[1].strip() if number else name)


def _summary_lines(content: bytes, paragraphs: bool) -> tuple[str, ...]:
    lines = [line for line in _decode(content).splitlines() if line.strip()]
    if paragraphs:  # the summaries of 2007 come as paragraphs
        return tuple(sentence.text for line in lines for sentence in split_sentences(line))
    return tuple(lines)


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def read_tdqfs(folder: str | Path) -> list[Topic]:
    """TD-QFS (Baumel et al., AAAI 2016): four medical clusters, queries, three people's two references each.

    Args:
        folder: the published zip, or the folder it unpacks to; the zips inside are read as they are.

    Raises:
        UserError: it holds no cluster, or a query without documents or references.
    """
    clusters: dict[str, dict[str, list[tuple[str, bytes]]]] = defaultdict(lambda: defaultdict(list))
    root = Path(folder)
    if not root.exists():
        raise UserError(f"there is no {root}; TD-QFS is published as one zip")
    for name, content in walk(root):
        parts = name.split("/")
        cluster = next((part for part in parts if part in ("alz", "asthma", "cancer", "obese")), None)
        if cluster is None or parts[-1].startswith(".") or "__MACOSX" in parts:
            continue
        kind = "queries" if parts[-1] == "queries.txt" else "sums" if "manual sums.zip" in parts else "documents"
        clusters[cluster][kind].append((name, content))
    if not clusters:
        raise UserError(f"{root} holds no cluster of TD-QFS (alz, asthma, cancer, obese)")
    topics = []
    for cluster, kinds in sorted(clusters.items()):
        if not kinds["queries"] or not kinds["documents"]:
            raise UserError(f"the cluster {cluster!r} in {root} lacks its queries.txt or its documents")
        documents = tuple(
            document for name, content in sorted(kinds["documents"])
            if (document := document_of(_decode(content), name.rsplit("/", 1)[-1])).sentences
        )  # fmt: skip
        lines = [line.strip() for line in _decode(kinds["queries"][0][1]).splitlines() if line.strip()]
        for number, query in enumerate(lines, 1):
            references = tuple(
                _summary_lines(content, paragraphs=True)
                for name, content in sorted(kinds["sums"])
                if name.split("/")[-2] == str(number)
            )
            topics.append(Topic(f"{cluster}-{number}", query, documents, references, group=cluster, domain=cluster))
    return topics
