"""The builder on a dump and pages that the tests write."""

import bz2
import json
import sqlite3

import pytest

pytest.importorskip("mwparserfromhell")
pytest.importorskip("warcio")
pytest.importorskip("resiliparse")

import wiki_for_tests as wiki
from two_ranks import on_two_ranks

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.wikiref.build import build_wikiref
from tenfold.systems.query_summarizer.wikiref.dump import Page, read_dump
from tenfold.systems.query_summarizer.wikiref.duplicates import NearDuplicates, components, simhash, split_components
from tenfold.systems.query_summarizer.wikiref.filters import Filters, reason_to_drop
from tenfold.systems.query_summarizer.wikiref.pages import CitedPage, main_text, open_pages
from tenfold.systems.query_summarizer.wikiref.urls import canonical_url, has_text, without_archive
from tenfold.systems.query_summarizer.wikiref.wikitext import statements_of


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wikiref")
    wiki.dump(folder / "dump.xml.bz2", wiki.articles())
    wiki.warc(folder / "pages.warc.gz")
    card = build_wikiref(
        [folder / "dump.xml.bz2"], open_pages(folder / "pages.warc.gz"), folder / "out", with_text=True
    )
    return folder, card


def statements(text, title="Town"):
    return statements_of(Page(1, 2, title, text))


def test_counts_of_every_filter(built):
    _, card = built
    assert card["counts"]["articles"] == 20
    assert card["counts"]["references_unresolved"] == 0
    assert card["dropped"] == {
        "content recall": 2,  # town 3: page 6 says something else, and a wall of cookies answers with status 200
        "language": 1,  # town 2: page 5
        "page not there": 1,  # town 2: a 404
        "statement length": 1,  # town 3: "It is old."
        "template without text": 1,  # town 1
    }
    assert card["counts"]["statements"] == 2 + 3 + 2 + 4 + 2 * 16
    assert sum(card["examples"].values()) == card["counts"]["kept"] == 2 + 2 + 0 + 1 + 2 * 16


def test_rows_hold_query_summary_labels_and_where_they_are_from(built):
    folder, _ = built
    rows = [
        json.loads(line)
        for name in ("train", "validation", "test")
        for line in (folder / "out" / f"{name}.jsonl").open()
    ]
    by_summary = {row["summary"][0]: row for row in rows}
    row = by_summary[wiki.fact(1) + "."]
    assert row["query"] == ["Town 0", "Sights", "Old"]
    assert row["urls"] == ["http://example.org/page/1"]
    assert (row["page_id"], row["rev_id"]) == (100, 5100)
    chosen = [
        s
        for own, labels in zip(row["document"], row["labels"], strict=True)
        for s, y in zip(own, labels, strict=True)
        if y
    ]
    assert any("Smith1 " in sentence for sentence in chosen)
    assert by_summary[wiki.fact(3) + " over 6 km."]["query"] == ["Town 1", "History"]
    parts = {
        name: {u for line in (folder / "out" / f"{name}.jsonl").open() for u in json.loads(line)["urls"]}
        for name in ("train", "test")
    }
    assert not parts["train"] & parts["test"]


@pytest.fixture(scope="module")
def in_two_parts(built):
    """The same articles as two dump files, and what one undisturbed process builds from them."""
    folder, _ = built
    texts = list(wiki.articles().items())
    dumps = [wiki.dump(folder / f"part{n}.xml.bz2", dict(texts[10 * n : 10 * n + 10])) for n in range(2)]
    return dumps, folder / "whole", build_wikiref(dumps, open_pages(folder / "pages.warc.gz"), folder / "whole")


def same_files(first, second):
    names = ("train.jsonl", "validation.jsonl", "test.jsonl", "card.json")
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_build_that_was_killed_ends_with_the_same_files(built, in_two_parts, tmp_path):
    folder, card = built
    dumps, whole, counts = in_two_parts

    class Killed(Exception):
        pass

    class Dying:
        calls = 0

        def fetch(self, url, date=""):
            self.calls += 1
            if self.calls > 30:
                raise Killed
            return pages.fetch(url, date)

    pages = open_pages(folder / "pages.warc.gz")
    with pytest.raises(Killed):
        build_wikiref(dumps, Dying(), tmp_path)
    assert (tmp_path / "parts/part0.xml.bz2.json").exists()
    assert not (tmp_path / "card.json").exists()
    assert build_wikiref(dumps, pages, tmp_path) == counts
    assert sum(counts["examples"].values()) == sum(card["examples"].values())
    assert same_files(tmp_path, whole)
    with pytest.raises(UserError, match="other settings"):
        build_wikiref(dumps, pages, tmp_path, seed=1)


def test_two_processes_that_share_the_dump_files_build_what_one_builds(built, in_two_parts, tmp_path):
    dumps, whole, _ = in_two_parts
    pages, out = built[0] / "pages.warc.gz", tmp_path / "out"

    def work(rank):
        build_wikiref(dumps, open_pages(pages), out)

    on_two_ranks(work, tmp_path)
    assert same_files(out, whole)


def test_a_mark_belongs_to_the_sentence_it_ends_or_sits_in():
    ref = "<ref>[http://example.org/a x]</ref>"
    for text in (
        f"One thing. Two things{ref}. Three.",
        f"One thing. Two things.{ref} Three.",
        f'One thing. "Two things."{ref} Three.',
    ):
        (found,) = statements(text)
        assert found.text.strip('"') == "Two things."
    (found,) = statements(f"One thing. Two {ref}things. Three.")
    assert found.text == "Two things."
    long = f"One thing. Two things. Three things.{ref} Four.{ref}"
    assert [s.text for s in statements_of(Page(1, 2, "T", long), "back_to_previous_ref")] == [
        "One thing. Two things. Three things.",
        "Four.",
    ]


def test_a_heading_clears_the_deeper_ones_even_behind_a_tag_that_is_never_closed():
    ref = "<ref>[http://example.org/a x]</ref>"
    text = f"== A ==\n<small>Broken\n=== B ===\nIn B.{ref}\n\n==== C ====\nIn C.{ref}\n\n== D ==\nIn D.{ref}\n"
    assert [s.query for s in statements(text)] == [("Town", "A", "B"), ("Town", "A", "B", "C"), ("Town", "D")]


def test_a_statement_that_is_no_more_than_the_title_is_dropped():
    title = "The very long and official name of a rather small town"
    reason, _ = reason_to_drop(f"{title}.", [f"{title} is here."] * 9, [], title, Filters())
    assert reason == "statement is the title"


def test_measures_are_written_out():
    ref = "<ref>[http://example.org/a x]</ref>"
    text = (
        f"They are {{{{convert|0.16|to|27|m2|sqft}}}} and {{{{convert|6|km|mi}}}} long in {{{{lang|fr|Paris}}}}.{ref}"
    )
    (found,) = statements(text)
    assert (found.text, found.lost) == ("They are 0.16 to 27 m2 and 6 km long in Paris.", False)


def test_addresses():
    assert canonical_url("https://WWW.Example.org:443//a/?b=2&a=1&utm_source=x#y") == "example.org/a?a=1&b=2"
    assert without_archive("https://web.archive.org/web/20120101000000/http://a.org/b") == "http://a.org/b"
    assert canonical_url("ftp://a.org/b") is None
    assert not has_text("http://a.org/b.PDF?x=1")
    assert not has_text("http://books.google.com/books?id=1")


def test_providers_answer_alike(tmp_path):
    text = wiki.page_text(3)
    (tmp_path / "pages.jsonl").write_text(json.dumps({"url": "http://a.org/x", "text": text}))
    folder = tmp_path / "html"
    folder.mkdir()
    (folder / "one.html").write_text(wiki.html(text))
    (folder / "index.json").write_text(json.dumps({"http://www.a.org/x/": "one.html"}))
    with sqlite3.connect(tmp_path / "pages.sqlite") as base:
        base.execute("CREATE TABLE pages (url TEXT, html TEXT)")
        base.execute("INSERT INTO pages VALUES (?, ?)", ("http://a.org/x", wiki.html(text)))
    for path in (tmp_path / "pages.jsonl", folder, tmp_path / "pages.sqlite"):
        provider = open_pages(path)
        assert wiki.fact(3) in main_text(provider.fetch("https://a.org/x", ""))
        assert provider.fetch("http://a.org/other") is None
    (folder / "index.json").write_text(json.dumps({"http://a.org/x": "../pages.jsonl"}))
    with pytest.raises(UserError, match="outside the folder"):
        open_pages(folder)
    page = CitedPage("a.org", html=wiki.html(text))
    assert wiki.fact(3) in main_text(page, "plain")
    with pytest.raises(UserError, match="holds no pages"):
        open_pages(tmp_path / "nothing.txt")


def test_the_capture_nearest_to_the_access_date_is_taken(tmp_path):
    pages = open_pages(wiki.warc(tmp_path / "a.warc.gz"))
    places = pages._places["example.org/page/1"]
    pages._places["example.org/page/1"] = [("2001-05-01", *places[0][1:]), ("2019-05-01", tmp_path / "none", 0)]
    assert "Smith1 " in pages.fetch("http://example.org/page/1", "2003-01-01").html


def test_damaged_files_are_named(tmp_path):
    path = wiki.dump(tmp_path / "dump.xml.bz2", wiki.articles())
    path.write_bytes(path.read_bytes()[:-40])
    warc = wiki.warc(tmp_path / "a.warc.gz")
    warc.write_bytes(warc.read_bytes()[:-30])
    (tmp_path / "bomb.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><mediawiki/>')
    (tmp_path / "other.xml").write_text("<html/>")
    for call, words in (
        (lambda: list(read_dump(path)), "cut short"),
        (lambda: open_pages(warc), "damaged"),
        (lambda: list(read_dump(tmp_path / "bomb.xml")), "entities"),
        (lambda: list(read_dump(tmp_path / "other.xml")), "not a MediaWiki dump"),
        (lambda: list(read_dump(tmp_path / "missing.xml")), "cannot read"),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_near_duplicates_and_splits():
    text = wiki.page_text(1) + " " + wiki.page_text(2)
    near = NearDuplicates()
    assert near.first_like("a", simhash(text)) == "a"
    assert near.first_like("b", simhash(text + " Indeed.")) == "a"
    assert near.first_like("c", simhash(wiki.page_text(30))) == "c"
    members = components([("article 1", "page a"), ("article 2", "page a"), ("article 3", "page b")])
    assert members["article 1"] == members["article 2"] != members["article 3"]
    sizes = {f"c{n}": 1 for n in range(100)}
    split = split_components({name: name for name in sizes}, sizes, (0.8, 0.1, 0.1))
    assert sorted(list(split.values()).count(name) for name in ("train", "validation", "test")) == [10, 10, 80]


def test_a_dump_is_streamed(tmp_path):
    """Memory does not grow with the number of pages."""
    import tracemalloc

    def peak(count):
        rows = "".join(wiki._page(f"Page {n}", n, 0, "Text. " * 50) for n in range(count))
        path = tmp_path / f"{count}.xml.bz2"
        path.write_bytes(bz2.compress(f"<mediawiki>{rows}</mediawiki>".encode(), 1))
        tracemalloc.start()
        assert sum(1 for _ in read_dump(path)) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(4000) < 1.5 * peak(1000)
