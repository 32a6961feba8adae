"""The builder of WikiRef: pages per second and memory on a long dump, and what it finds on a real one.

    python benchmarks/query_summarizer_wikiref.py [--pages 100000] [--out FILE]
    TENFOLD_DATA=DIR python benchmarks/query_summarizer_wikiref.py --real [--sample 30]

The first writes a dump of so many synthetic articles (two references each, a third of the statements supported by one
of 1,000 pages) and builds from it in a process of its own, whose memory is looked at after every tenth of the articles.
The second cuts the statements of TENFOLD_DATA/wikipedia (206 pages), counts them, and prints a sample to be read by
eye; the pages that they cite are not at hand.
"""

import argparse
import bz2
import json
import os
import random
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

from tenfold.files import write_atomically
from tenfold.systems.query_summarizer.wikiref.build import build_wikiref
from tenfold.systems.query_summarizer.wikiref.dump import read_dump
from tenfold.systems.query_summarizer.wikiref.pages import CitedPage
from tenfold.systems.query_summarizer.wikiref.urls import canonical_url
from tenfold.systems.query_summarizer.wikiref.wikitext import Counts, statements_of

WORDS = ("harbour", "bridge", "tower", "market", "library", "museum", "railway", "garden", "castle", "canal", "mill")
OUT = Path(__file__).parent / "results" / "query-summarizer-wikiref.json"


def fact(number: int) -> str:
    """A statement of fourteen words."""
    return (
        f"The {WORDS[number % len(WORDS)]} number {number} was opened by engineer Smith{number} during the summer of "
        f"{1500 + number % 500}"
    )


def write_dump(path: Path, pages: int) -> None:
    """Synthetic articles, compressed as they are written."""
    with bz2.open(path, "wt", compresslevel=1, encoding="utf-8") as file:
        file.write("<mediawiki><siteinfo></siteinfo>\n")
        for number in range(pages):
            cited = number % 1000
            text = (
                f"'''Town {number}''' is a [[town]] in the [[country|land]].\n\n== History ==\n{fact(cited)}."
                f"&lt;ref&gt;{{{{cite web|url=http://example.org/{cited}|title=x}}}}&lt;/ref&gt; Nobody knows more.\n\n"
                f"=== Early years ===\n{fact(number + 5000)}.&lt;ref name=a&gt;[http://example.org/{cited} link]"
                "&lt;/ref&gt;\n\n== References ==\n{{reflist}}\n"
            )
            file.write(
                f"<page><title>Town {number}</title><ns>0</ns><id>{number + 1}</id><revision><id>{number + 9}</id>"
                f"<text>{text}</text></revision></page>\n"
            )
        file.write("</mediawiki>")


class Pages:
    """The cited pages, made when they are asked for; counts what was asked, and looks at the process's memory."""

    def __init__(self, articles: int) -> None:
        self.step = max(1, articles // 10)
        self.asked = 0
        self.memory: list[float] = []
        self.seconds: list[float] = []
        self.start = time.process_time()

    def fetch(self, url: str, date: str = "") -> CitedPage:
        """A page of some sixty words that supports one statement."""
        number = int(url.rpartition("/")[2])
        self.asked += 1
        if self.asked % self.step == 0:
            self.memory.append(resident_mb())
            self.seconds.append(time.process_time() - self.start)
        text = (
            f"People who come to town {number} in that season say that the food is good and cheap. There was rain for "
            f"most of the week and nobody in house {number} could go out. {fact(number)}. Some of the old photographs "
            f"of street {number} are kept in the town hall. All of them were taken by one man who lived near the river."
            " He gave them to the town when he was old. They can be seen on every day but Monday."
        )
        return CitedPage(url, text=text)


def resident_mb() -> float:
    """Resident memory of this process in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def measure_long(pages: int) -> dict[str, object]:
    """Build from a synthetic dump."""
    with tempfile.TemporaryDirectory() as place:
        dump = Path(place) / "dump.xml.bz2"
        write_dump(dump, pages)
        provider, before = Pages(pages), resident_mb()
        start = time.process_time()
        card = build_wikiref([dump], provider, Path(place) / "out", with_text=False)
        seconds = time.process_time() - start
    return {
        "articles": card["counts"]["articles"], "references": card["counts"]["references"],
        "statements": card["counts"]["statements"], "examples": card["examples"], "dropped": card["dropped"],
        "seconds": seconds, "articles_per_second": pages / seconds, "memory_before_mb": before,
        "memory_by_tenth_mb": provider.memory, "memory_after_mb": resident_mb(),
    }  # fmt: skip


def measure_real(sample: int) -> dict[str, object]:
    """Counts over the real dump; prints a sample of the statements that pass the builder's own first filters."""
    counts, articles, start = Counts(), 0, time.process_time()
    found = []
    lost = Counter[bool]()
    for page in read_dump(Path(os.environ["TENFOLD_DATA"]) / "wikipedia/enwiki-206-pages.xml.bz2"):
        articles += 1
        for statement in statements_of(page, "1", counts):
            lost[statement.lost] += 1
            if not statement.lost and 8 <= len(statement.text.split()) <= 100:
                found.append(statement)
    seconds = time.process_time() - start
    for number, statement in enumerate(random.Random(7).sample(found, min(sample, len(found))), 1):
        print(f"{number}. QUERY {', '.join(statement.query)}")
        print(f"   TEXT  {statement.text}\n   URLS  {' '.join(statement.urls)}")
    return {
        "articles": articles, "references": counts.references, "references_unresolved": counts.unresolved,
        "references_without_url": counts.without_url, "statements": counts.statements,
        "statements_with_a_lost_template": lost[True], "statements_of_8_to_100_words": len(found),
        "queries": len({statement.query for statement in found}),
        "addresses": len({canonical_url(url) for statement in found for url in statement.urls}),
        "seconds": seconds, "articles_per_second": articles / seconds,
    }  # fmt: skip


def main() -> None:
    """Measure one of the two and put it into the file of both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", type=int, default=100_000)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--sample", type=int, default=30)
    parser.add_argument("--out", default=str(OUT))
    arguments = parser.parse_args()
    path = Path(arguments.out)
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = measure_real(arguments.sample) if arguments.real else measure_long(arguments.pages)
    content.setdefault("real" if arguments.real else "long", {}).update(found)
    print(json.dumps(found, indent=1))
    write_atomically(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
