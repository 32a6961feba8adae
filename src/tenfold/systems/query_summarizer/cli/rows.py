"""``rows``: a published set as JSONL, which ``tenfold run``, ``evaluate``, ``predict`` and ``labels`` read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.files import refuse_overwriting, write_atomically
from tenfold.systems.query_summarizer.sets.aquamuse import read_aquamuse
from tenfold.systems.query_summarizer.sets.duc import YEARS, read_duc, read_tdqfs
from tenfold.systems.query_summarizer.sets.qmsum import read_qmsum
from tenfold.systems.query_summarizer.sets.rows import read_debatepedia, read_rows, row_of
from tenfold.systems.query_summarizer.sets.squality import read_squality
from tenfold.systems.query_summarizer.sets.topic import Topic
from tenfold.systems.query_summarizer.wikiref.pages import Reader, main_text, open_pages

SetName = Literal["duc", "td-qfs", "qmsum", "squality", "debatepedia", "aquamuse", "rows"]
_SPLITS: dict[str, tuple[str, ...]] = {
    "duc": YEARS,
    "qmsum": ("train", "val", "test"),
    "squality": ("train", "dev", "test"),
    "debatepedia": ("train", "valid", "test"),
    "aquamuse": ("train", "dev", "test"),
    "td-qfs": (),
    "rows": (),
}


def rows(
    name: SetName,
    data: str,
    out: str,
    *,
    split: str = "",
    pages: str | None = None,
    reader: Reader = "resiliparse",
    fields: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Write a published set as JSONL, one topic a line, for --data.train, --data.test or --data.stage1.

    Args:
        name: duc (NIST's archives or an unpacked tree), td-qfs, qmsum, squality, debatepedia, aquamuse, or rows
            (WikiRef, WikiCite, Summary Cloze, any JSONL).
        data: the set's folder or file, as it is published.
        out: JSONL file to write.
        split: the year of duc (2005, 2006, 2007, 2007-update); train, val and so on of others; none of td-qfs, rows.
        pages: of aquamuse, which holds addresses only: WARC files' folder, JSONL, SQLite or a folder of HTML.
        reader: of these pages' main text.
        fields: of rows: names of the fields query, document, summary; guessed where not given.
    """
    splits = _SPLITS[name]
    if (split or None) not in (splits or (None,)):
        raise UserError(
            f"--split of {name} is {'one of ' + ', '.join(splits) if splits else 'left out'}; got {split!r}"
        )
    if (pages is not None) != (name == "aquamuse"):
        raise UserError(
            "--pages belongs to aquamuse, whose records hold addresses: name WARC files or a folder of pages"
        )
    if fields and name != "rows":
        raise UserError("--fields belongs to rows: the other sets have names of their own")
    refuse_overwriting(out, data)
    missing: int | None = None
    read: dict[str, Callable[[], list[Topic]]] = {
        "duc": lambda: read_duc(data, split),
        "td-qfs": lambda: read_tdqfs(data),
        "qmsum": lambda: read_qmsum(data, split),
        "squality": lambda: read_squality(data, split),
        "debatepedia": lambda: read_debatepedia(data, split),
        "rows": lambda: read_rows(data, fields),
    }
    if pages is not None:
        provider = open_pages(pages)

        def text_of(url: str) -> str | None:
            found = provider.fetch(url)
            return None if found is None else main_text(found, reader)

        topics, missing = read_aquamuse(data, split, text_of)
    else:
        topics = read[name]()
    write_atomically(Path(out), "".join(json.dumps(row_of(topic), ensure_ascii=False) + "\n" for topic in topics))
    return {
        "out": out,
        "topics": len(topics),
        "groups": len({topic.group for topic in topics}),
        "references": sum(len(topic.references) for topic in topics),
        **({"topics_without_a_page": missing} if missing is not None else {}),
    }
