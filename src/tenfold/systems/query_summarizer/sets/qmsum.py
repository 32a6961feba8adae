"""QMSum (Zhong et al., NAACL 2021): questions about meetings, one reference each."""

import json
import re
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.sets.topic import Topic, json_rows
from tenfold.systems.query_summarizer.text.sentences import Document, Sentence, split_sentences

_MARK = re.compile(r"\{[a-z]+\}")
_BLANK_BEFORE = re.compile(r"\s+([.,?!;:'])")
_LONG_TURN = 60
"""Turns of more words are cut into their sentences."""


def read_qmsum(folder: str | Path, split: str, general: bool = True) -> list[Topic]:
    """Topics of a split.

    Queries of meetings of one series are alike: split by meeting (``group``), never by query.

    Args:
        folder: holds ``SPLIT.jsonl`` (or ``.xz``), or a folder ``SPLIT`` of JSON files, one a meeting; or the
            official ``data`` folder with ``Academic``, ``Product`` and ``Committee``, which become domains.
        split: ``train``, ``val`` or ``test``.
        general: whether the general queries ("Summarize the whole meeting") count, too.

    Raises:
        UserError: the split is missing or damaged.
    """
    folder = Path(folder)
    topics: list[Topic] = []
    parts = [folder / name for name in ("Academic", "Product", "Committee") if (folder / name).is_dir()] or [folder]
    for part in parts:
        domain = part.name.lower() if part != folder else ""
        for meeting, row in _meetings(part, split):
            try:
                topics += _topics_of(row, meeting, domain, general)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{part}: {meeting} is not a meeting of QMSum: {error!r}") from error
    return topics


def _meetings(folder: Path, split: str) -> list[tuple[str, dict[str, Any]]]:
    for name in (f"{split}.jsonl", f"{split}.jsonl.xz", f"jsonl/{split}.jsonl"):
        if (folder / name).exists():
            return [(f"{split}{number:03d}", row) for number, row in json_rows(folder / name)]
    files = sorted((folder / split).glob("*.json"))
    if not files:
        raise UserError(
            f"{folder} holds neither {split}.jsonl nor {split}/*.json (published at github.com/Yale-LILY/QMSum, "
            "data/ALL); name the folder with --data.root"
        )
    try:
        return [(file.stem, json.loads(file.read_text(encoding="utf-8"))) for file in files]
    except (OSError, ValueError) as error:
        raise UserError(f"a meeting in {folder / split} cannot be read: {error}") from error


def _topics_of(row: dict[str, Any], meeting: str, domain: str, general: bool) -> list[Topic]:
    document = transcript(row["meeting_transcripts"], meeting)
    queries = [*(row.get("general_query_list", []) if general else []), *row["specific_query_list"]]
    return [
        Topic(
            id=f"{meeting}-{number}",
            query=" ".join(query["query"].split()),
            documents=(document,),
            references=(tuple(sentence.text for sentence in split_sentences(query["answer"])),),
            group=meeting,
            domain=domain,
        )
        for number, query in enumerate(queries)
        if query["answer"].strip()
    ]


def transcript(turns: list[dict[str, str]], meeting: str) -> Document:
    """A meeting as a document: turns are sentences, long ones are cut; offsets are those of the text with its marks.

    Args:
        turns: each with ``speaker`` and ``content``.
        meeting: id of the document.
    """
    pieces, sentences, place = [], [], 0
    for turn in turns:
        lead, content = f"{turn['speaker']}: ", turn["content"]
        start = place + len(lead)
        cut = (
            split_sentences(content)
            if len(content.split()) > _LONG_TURN
            else [Sentence(content.strip(), 0, len(content))]
        )
        for sentence in cut:
            shown = without_marks(sentence.text)
            if shown:
                sentences.append(Sentence(shown, start + sentence.start, start + sentence.end))
        pieces.append(lead + content)
        place += len(lead) + len(content) + 1
    return Document(meeting, "\n".join(pieces), tuple(sentences))


def without_marks(text: str) -> str:
    """A transcript's text without ``{vocalsound}`` and the like, and without blanks before punctuation."""
    return _BLANK_BEFORE.sub(r"\1", " ".join(_MARK.sub(" ", text).split()))
