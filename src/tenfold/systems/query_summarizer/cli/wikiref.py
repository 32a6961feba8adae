"""``build-wikiref``: training data from a Wikipedia dump and the pages that it cites."""

from typing import Any, Literal

from tenfold.systems.query_summarizer.wikiref.build import build_wikiref as build
from tenfold.systems.query_summarizer.wikiref.filters import Filters
from tenfold.systems.query_summarizer.wikiref.pages import open_pages


def build_wikiref(
    inputs: list[str],
    *,
    pages: str,
    out: str,
    with_text: bool = False,
    span: Literal["1", "back_to_previous_ref"] = "1",
    reader: Literal["resiliparse", "trafilatura", "plain"] = "resiliparse",
    shares: list[float] | None = None,
    filters: Filters | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Build query, document and summary from Wikipedia statements and the pages they cite; resumes by itself.

    Args:
        inputs: pages-articles dump files (.xml.bz2).
        pages: WARC files' folder, a .jsonl file, an SQLite file, or a folder of HTML with an index.json.
        out: folder to write.
        with_text: keep the sentences of pages, for local use; else pointers and hashes.
        span: sentences that a citation covers.
        reader: of a page's main text.
        shares: of train, validation and test; 0.9, 0.05, 0.05 where not given.
        filters: thresholds.
        seed: of the split.
    """
    card = build(
        inputs,
        open_pages(pages),
        out,
        filters=filters,
        with_text=with_text,
        span=span,
        reader=reader,
        shares=shares or (0.9, 0.05, 0.05),
        seed=seed,
    )
    return {name: card[name] for name in ("examples", "counts", "dropped", "components")}
