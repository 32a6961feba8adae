"""``build_wikiref``: dump and pages in, examples and a data card out; resumable, one part per dump file.


    OUT/
      parts/NAME.jsonl    examples of one dump file; NAME.json counts, there when the part is done
      train.jsonl, validation.jsonl, test.jsonl
      card.json           filters, counts, sizes, licences

By default an example points to its texts (addresses, offsets, hashes) and holds only the statement, which is CC BY-SA;
``with_text`` adds the page's sentences, which stay their owner's, for local use.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.files import atomic_path, make_folder, read_json, sha256_of, write_atomically
from tenfold.systems.query_summarizer.labels.oracle import hard_labels
from tenfold.systems.query_summarizer.text.sentences import split_sentences
from tenfold.systems.query_summarizer.wikiref.dump import Page, read_dump
from tenfold.systems.query_summarizer.wikiref.duplicates import NearDuplicates, components, simhash, split_components
from tenfold.systems.query_summarizer.wikiref.filters import Filters, reason_to_drop
from tenfold.systems.query_summarizer.wikiref.pages import PageProvider, Reader, main_text
from tenfold.systems.query_summarizer.wikiref.urls import canonical_url
from tenfold.systems.query_summarizer.wikiref.wikitext import Counts, Span, Statement, statements_of
from tenfold.training.parallel import rank, wait_for_all_ranks, world_size

LICENCE = "summary: CC BY-SA, see page_id and rev_id; document: its owner's"
SPLITS = ("train", "validation", "test")


def build_wikiref(
    dumps: Sequence[str | Path],
    pages: PageProvider,
    out: str | Path,
    *,
    filters: Filters | None = None,
    with_text: bool = False,
    span: Span = "1",
    reader: Reader = "resiliparse",
    shares: Sequence[float] = (0.9, 0.05, 0.05),
    seed: int = 0,
) -> dict[str, Any]:
    """Build training data for query-focused summarisation from Wikipedia.

    Under several processes (torchrun) each takes its share of the dump files; a build that was killed continues where
    it was, part by part, and ends with the same files.

    Args:
        dumps: ``pages-articles`` files.
        pages: where cited pages come from; see ``open_pages``.
        out: folder to write.
        filters: thresholds.
        with_text: keep the sentences of pages, for local use.
        span: sentences a citation covers; see ``statements_of``.
        reader: of a page's main text.
        shares: of train, validation and test.
        seed: of the split.

    Returns:
        The data card.

    Raises:
        UserError: a file is damaged, the folder holds a build with other settings, or a package is missing.
    """
    if not dumps:
        raise UserError("there is no dump: name pages-articles files")
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"shares are those of train, validation and test, and sum to 1; got {list(shares)}")
    names = [Path(dump).name for dump in dumps]
    if len(set(names)) < len(names):
        raise UserError("two dump files have the same name: their parts would overwrite each other")
    filters = filters or Filters()
    folder = make_folder(out)
    sizes = {Path(dump).name: Path(dump).stat().st_size if Path(dump).exists() else 0 for dump in dumps}
    settings = {
        "filters": asdict(filters), "with_text": with_text, "span": span, "reader": reader, "shares": list(shares),
        "seed": seed, "dumps": sizes,
    }  # fmt: skip
    if rank() == 0:
        _same_settings(folder, settings)
    wait_for_all_ranks()  # nobody writes into a folder that is refused
    if rank() > 0:
        _same_settings(folder, settings)
    for number, dump in enumerate(dumps):
        if number % world_size() == rank():
            _build_part(Path(dump), pages, folder, filters, with_text, span, reader)
    wait_for_all_ranks()
    if rank() == 0:
        _merge(folder, names, settings, filters)
    wait_for_all_ranks()
    return read_json(folder / "card.json")


def _same_settings(folder: Path, settings: dict[str, Any]) -> None:
    path, text = folder / "settings.json", json.dumps(settings, sort_keys=True)
    if path.exists():
        if json.dumps(read_json(path), sort_keys=True) != text:
            raise UserError(f"{folder} holds a build with other settings or dumps; name another folder with --out")
    elif any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no build; name a new folder with --out")
    else:
        write_atomically(path, text)


def _build_part(
    dump: Path, pages: PageProvider, folder: Path, filters: Filters, with_text: bool, span: Span, reader: Reader
) -> None:
    """Examples of one dump file. The counts are written last: where they are, the part is whole."""
    parts = make_folder(folder / "parts")
    done = parts / f"{dump.name}.json"
    if done.exists():
        return
    start = time.monotonic()
    seen, dropped = Counts(), Counter[str]()

    @lru_cache(maxsize=64)
    def sentences_of(url: str, date: str) -> tuple[str, ...] | None:
        """A page's sentences; statements of one article often cite one page."""
        cited = pages.fetch(url, date)
        return None if cited is None else tuple(s.text for s in split_sentences(main_text(cited, reader)))

    articles = kept = 0
    temporary = parts / f".{dump.name}.jsonl.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        for page in read_dump(dump):
            articles += 1
            article: list[str] | None = None
            for number, statement in enumerate(statements_of(page, span, seen)):
                if statement.lost:
                    dropped["template without text"] += 1
                    continue
                found = {url: list(cited) for url, date in zip(statement.urls, statement.dates, strict=True)
                         if (cited := sentences_of(url, date)) is not None}  # fmt: skip
                if not found:
                    dropped["page not there"] += 1
                    continue
                sentences = list(found.values())
                if article is None:
                    article = [s.text for s in split_sentences(page.text)]
                flat = [sentence for own in sentences for sentence in own]
                reason, support = reason_to_drop(statement.text, flat, article, page.title, filters)
                if reason:
                    dropped[reason] += 1
                    continue
                kept += 1
                row = _row(number, page, statement, list(found), sentences, support, with_text)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(parts / f"{dump.name}.jsonl")
    counts = {
        "articles": articles, "references": seen.references, "references_unresolved": seen.unresolved,
        "references_without_url": seen.without_url, "statements": seen.statements, "kept": kept,
        "dropped": dict(sorted(dropped.items())),
    }  # fmt: skip
    log = {"seconds": time.monotonic() - start}
    write_atomically(parts / f"{dump.name}.log", json.dumps(log))
    write_atomically(done, json.dumps(counts))


def _row(
    number: int,
    page: Page,
    statement: Statement,
    urls: list[str],
    sentences: list[list[str]],
    support: Any,
    with_text: bool,
) -> dict[str, Any]:
    flat = [sentence for own in sentences for sentence in own]
    labels = hard_labels(flat, [[statement.text]])
    cut, start = [], 0
    for own in sentences:
        cut.append(labels[start : start + len(own)])
        start += len(own)
    text = "\n".join(flat)
    return {
        "id": f"{page.id}-{number}",
        "query": list(statement.query),
        **({"document": sentences} if with_text else {}),
        "summary": [sentence.text for sentence in split_sentences(statement.text)],
        "labels": [[int(value) for value in own] for own in cut],
        "page_id": page.id,
        "rev_id": page.revision,
        "urls": urls,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "simhash": f"{simhash(text):016x}",
        "sentences": [len(own) for own in sentences],
        "scores": {name: round(value, 4) for name, value in asdict(support).items()},
        "licence": LICENCE,
    }


class _Selection:
    """Which of the parts' examples stay: duplicates go, and what a section or a page has too many of."""

    def __init__(self, filters: Filters) -> None:
        self.filters = filters
        self.late = Counter[str]()
        self._near, self._known = NearDuplicates(), set[bytes]()
        self._per_section, self._per_page = Counter[tuple[int, str]](), Counter[str]()

    def page_of(self, row: dict[str, Any]) -> str:
        """The page of an example, near-duplicates being one page; empty where the example goes."""
        query, first = ", ".join(row["query"]), row["urls"][0]
        key = hashlib.blake2b(json.dumps([query, row["summary"]]).encode(), digest_size=16).digest()
        page = self._near.first_like(canonical_url(first) or first, int(row["simhash"], 16))
        section = (row["page_id"], query)
        if key in self._known:
            self.late["same query and statement"] += 1
        elif self._per_section[section] >= self.filters.per_section:
            self.late["section full"] += 1
        elif self._per_page[page] >= self.filters.per_url:
            self.late["page full"] += 1
        else:
            self._known.add(key)
            self._per_section[section] += 1
            self._per_page[page] += 1
            return page
        return ""


def _rows(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        with (folder / "parts" / f"{name}.jsonl").open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _merge(folder: Path, names: Sequence[str], settings: dict[str, Any], filters: Filters) -> None:
    """Duplicates out, splits by connected components of articles and pages, the data card last.

    The parts are read twice, first to choose and to find the components, then to write: of an example only its
    addresses stay in memory.
    """
    counts, dropped = Counter[str](), Counter[str]()
    for name in names:
        found = read_json(folder / "parts" / f"{name}.json")
        dropped.update(found.pop("dropped"))
        counts.update(found)
    selection, kept, means = _Selection(filters), bytearray(), Counter[str]()
    edges: list[tuple[str, str]] = []
    of_article = Counter[str]()
    for row in _rows(folder, names):
        page, article = selection.page_of(row), f"article {row['page_id']}"
        kept.append(bool(page))
        if page:
            of_article[article] += 1
            means.update(_measures(row))
            edges += [(article, f"page {canonical_url(url) or url}") for url in row["urls"]] + [
                (article, f"page {page}")
            ]
    members = components(edges)
    sizes = Counter[str]()
    for article, number in of_article.items():
        sizes[members[article]] += number
    chosen = split_components(members, dict(sizes), settings["shares"], settings["seed"])
    examples = dict.fromkeys(SPLITS, 0)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(
                stack.enter_context(atomic_path(folder / f"{name}.jsonl")).open("w", encoding="utf-8")
            )
            for name in SPLITS
        }
        for row, stays in zip(_rows(folder, names), kept, strict=True):
            if stays:
                split = chosen[members[f"article {row['page_id']}"]]
                examples[split] += 1
                files[split].write(json.dumps(row, ensure_ascii=False) + "\n")
    total = max(1, sum(examples.values()))
    card = {
        "settings": settings,
        "counts": dict(counts),
        "dropped": dict(sorted((dropped + selection.late).items())),
        "examples": examples,
        "components": len(set(members.values())),
        "means": {name: round(value / total, 2) for name, value in means.items()},
        "sha256": {name: sha256_of(folder / f"{name}.jsonl") for name in SPLITS},
        "licences": {
            "summary": "CC BY-SA 3.0 / 4.0, Wikipedia contributors: https://en.wikipedia.org/w/index.php?oldid=REV_ID",
            "document": "the page's owner; texts are left out unless with_text, and are for local use then",
        },
        "filters_measured": "precision 0.869, recall 0.712 on 491 judgements of danieldeutsch/wikicite (living people)",
    }
    write_atomically(folder / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def _measures(row: dict[str, Any]) -> dict[str, int]:
    return {
        "document_sentences": sum(row["sentences"]),
        "summary_words": len(" ".join(row["summary"]).split()),
        "summary_sentences": len(row["summary"]),
        "query_words": len(" ".join(row["query"]).split()),
        "query_depth": len(row["query"]),
    }
