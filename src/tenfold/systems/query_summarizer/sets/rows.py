"""JSONL of one's own, and the WikiRef-like sets that come as rows: WikiRef, WikiCite / Summary Cloze, Debatepedia."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.files import regular
from tenfold.systems.query_summarizer.sets.topic import Topic, json_rows
from tenfold.systems.query_summarizer.text.reading import document_of_row
from tenfold.systems.query_summarizer.text.sentences import Document, document_of, split_sentences

_GUESSES = {
    "query": ("query", "question", "topic", "title", "query_text"),
    "document": ("documents", "document", "context", "text", "article", "source", "sentences", "content"),
    "summary": ("summaries", "summary", "references", "reference", "answer", "answers", "target", "cloze"),
}
_SEVERAL = ("documents", "summaries", "references", "answers")
"""Names under which a list of strings holds several texts; under the others, the sentences of one."""


def read_rows(path: str | Path, fields: Mapping[str, str] | None = None, references: bool = True) -> list[Topic]:
    """Topics of a JSONL file (``.xz`` and ``.gz``, too): a query, documents, and summaries in each row.

    A document is a string, a list of sentences, or an object with ``text`` or ``sentences``; ``documents`` is a list of
    them, and ``document`` may be a list of lists or objects, too. A summary is a string or a list of sentences;
    ``summaries`` and ``references`` are a list of them, and ``summary`` may be a list of lists. ``labels`` (0 or 1 per
    sentence) are taken where a row has them.

    Args:
        path: the file.
        fields: names of the fields ``query``, ``document`` and ``summary``; guessed where not given.
        references: whether every row must have a summary.

    Raises:
        UserError: naming the line, and the fields that it has.
    """
    path, topics = Path(path), []
    names = dict(fields or {})
    unknown = set(names) - set(_GUESSES)
    if unknown:
        raise UserError(f"fields are query, document and summary; got {sorted(unknown)[0]!r}")
    for number, row in json_rows(path):
        where = f"{path}, line {number}"
        if "page_title" in row and "headings" in row:
            topics.append(_wikicite(row, where))
            continue
        _, query = _field(row, "query", names, where)
        name, found = _field(row, "document", names, where)
        documents = _documents(found, str(row.get("id", number)), several=name in _SEVERAL)
        summaries: tuple[tuple[str, ...], ...] = ()
        if references or _has(row, "summary", names):
            name, found = _field(row, "summary", names, where)
            summaries = _references(found, where, several=name in _SEVERAL)
        topics.append(
            Topic(
                id=str(row.get("id", number)),
                query=", ".join(map(str, query)) if isinstance(query, list) else str(query),
                documents=documents,
                references=summaries,
                group=str(row.get("group", row.get("page_id", row.get("id", number)))),
                domain=str(row.get("domain", "")),
                labels=_labels(row.get("labels"), documents, where),
            )
        )
    if not topics:
        raise UserError(f"{path} holds no row")
    return topics


def _has(row: Mapping[str, Any], kind: str, names: Mapping[str, str]) -> bool:
    return names.get(kind, "") in row or any(name in row for name in _GUESSES[kind])


def _field(row: Mapping[str, Any], kind: str, names: Mapping[str, str], where: str) -> tuple[str, Any]:
    name = names.get(kind) or next((guess for guess in _GUESSES[kind] if guess in row), None)
    if name is None or name not in row or row[name] in (None, "", []):
        has = ", ".join(map(str, row)) or "nothing"
        raise UserError(f"{where} has no {kind} (it has: {has}); name the field, as in --fields '{{{kind}: NAME}}'")
    return name, row[name]


def _documents(value: Any, name: str, several: bool) -> tuple[Document, ...]:
    if isinstance(value, list) and (several or isinstance(value[0], dict | list)):
        return tuple(document_of_row(one, f"{name}/{number}") for number, one in enumerate(value, 1))
    return (document_of_row(value, name),)


def _references(value: Any, where: str, several: bool) -> tuple[tuple[str, ...], ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise UserError(f"{where}: a summary is a string or a list")
    if not several and all(isinstance(one, str) for one in value):
        return (tuple(sentence.text for one in value for sentence in split_sentences(one)),)
    return tuple(
        tuple(one) if isinstance(one, list) else tuple(sentence.text for sentence in split_sentences(str(one)))
        for one in value
    )


def _labels(value: Any, documents: Sequence[Document], where: str) -> tuple[float, ...]:
    if value is None:
        return ()
    flat = [float(one) for part in value for one in (part if isinstance(part, list) else [part])]
    sentences = sum(len(document.sentences) for document in documents)
    if len(flat) != sentences:
        raise UserError(f"{where} has {len(flat)} labels for {sentences} sentences")
    return tuple(flat)


def _wikicite(row: Mapping[str, Any], where: str) -> Topic:
    """A row of WikiCite (Deutsch and Roth, EMNLP 2019): the cloze is the summary, title and headings are the query."""
    try:
        documents = tuple(
            document_of("\n\n".join(" ".join(paragraph) for paragraph in document["paragraphs"]), document["url"])
            for document in row["documents"]
        )
        return Topic(
            id=f"{row['page_id']}-{where.rsplit(' ', 1)[-1]}",
            query=", ".join([row["page_title"], *row["headings"]]),
            documents=documents,
            references=((str(row["cloze"]),),),
            group=str(row["page_id"]),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{where} is not a row of WikiCite: {error!r}") from error


def row_of(topic: Topic) -> dict[str, Any]:
    """A topic as a row that ``read_rows`` reads back, its sentences as they are cut; places refer to them joined."""
    return {
        "id": topic.id,
        "query": topic.query,
        "documents": [{"id": d.id, "sentences": [sentence.text for sentence in d.sentences]} for d in topic.documents],
        "summaries": [list(reference) for reference in topic.references],
        "group": topic.group or topic.id,
        **({"domain": topic.domain} if topic.domain else {}),
        **({"labels": list(topic.labels)} if topic.labels else {}),
    }


def read_debatepedia(folder: str | Path, split: str) -> list[Topic]:
    """Debatepedia (Nema et al., ACL 2017): parallel files ``SPLIT_content``, ``SPLIT_query``, ``SPLIT_summary``.

    Args:
        folder: holds the three files.
        split: ``train``, ``valid`` or ``test``.

    Raises:
        UserError: a file is missing, or they have not the same number of lines.
    """
    columns = {}
    for name in ("content", "query", "summary"):
        path = Path(folder) / f"{split}_{name}"
        try:
            columns[name] = regular(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:160]}") from error
    sizes = {name: len(lines) for name, lines in columns.items()}
    if len(set(sizes.values())) != 1:
        raise UserError(f"the files of {split} in {folder} have not the same number of lines: {sizes}")
    topics = []
    for number, (content, query, summary) in enumerate(zip(*columns.values(), strict=True), 1):
        content, query, summary = (
            text.removeprefix("<s>").removesuffix("<eos>").strip() for text in (content, query, summary)
        )
        if content and summary:
            document = document_of(content, f"{split}-{number}")
            topics.append(Topic(f"{split}-{number}", query, (document,), ((summary,),), group=content[:80]))
    return topics
