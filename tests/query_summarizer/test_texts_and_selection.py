"""Sentences and their places, budgets, repetitions, labels."""

import pytest

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.extractor.summarizer import QuerySummarizer
from tenfold.systems.query_summarizer.labels.oracle import (
    budgeted_oracle,
    hard_labels,
    single_reference_oracle,
    soft_labels,
)
from tenfold.systems.query_summarizer.selection.select import BLOCKINGS, select
from tenfold.systems.query_summarizer.selection.summary import make_summary, marked_html
from tenfold.systems.query_summarizer.text.reading import read_documents, text_of_html
from tenfold.systems.query_summarizer.text.sentences import document_of, split_sentences


def test_sentences_are_slices_of_the_text():
    text = 'Dr. Smith paid $3.50 to J. R. Hall. "Why?" he asked.  It was e.g. the U.S. army!\n\n'
    text += "A title\n\nNo. 5 came. the end"
    sentences = split_sentences(text)
    assert [s.text for s in sentences] == [
        "Dr. Smith paid $3.50 to J. R. Hall.",
        '"Why?" he asked.',
        "It was e.g. the U.S. army!",
        "A title",
        "No. 5 came. the end",
    ]
    assert all(text[s.start : s.end] == s.text for s in sentences)
    assert split_sentences(" \n ") == []


def test_a_budget_is_reached_with_whole_sentences():
    texts = ["a b c d e f", "g h i j k l m n o p", "q r s t u", "v w x y z"]
    assert select([4, 3, 2, 1], texts, words=10) == [0, 1]
    assert select([4, 3, 2, 1], texts, words=12, hard_limit=True) == [0, 2]
    assert select([1, 1, 1, 1], texts, words=100) == [0, 1, 2, 3]  # ties: order of the documents
    assert select([4, 3, 2, 1], texts, words=None, threshold=2.5) == [0, 1]
    assert select([4, 3, 2, 1], texts, words=100, threshold=9) == []
    assert select([9, 1, 1, 1], ["too short", *texts[1:]], words=10) == [1]
    assert select([9, 1, 1, 1], ["Is this what you want?", *texts[1:]], words=10) == [1]
    with pytest.raises(UserError, match="no sentence fits 3 words"):
        select([4, 3, 2, 1], texts, words=3, hard_limit=True)
    with pytest.raises(UserError, match="one score"):
        select([1], texts)


def test_what_cannot_be_cited_or_asked_is_refused():
    ask = QuerySummarizer().summarize
    for text, words in (("word " * 10_000, "a sentence of 10,000 words at 0"), (" \n", "is empty"), ("...", None)):
        if words is None:
            assert ask("query", [text]).quotes[0].text == "..."  # better a short sentence than none
            continue
        with pytest.raises(UserError, match=words) as error:
            ask("query", [text])
        assert "\n" not in str(error.value)
    russian = "Дождь шёл весь день. Мост закрыли из-за сильной бури."  # words of other alphabets count, too
    assert ask("мост", [russian], words=3).quotes[0].start == 21
    twins = [document_of("One is here for us now.", "a"), document_of("Two is here for us now.", "a")]
    assert {quote.document for quote in ask("one two", twins, block="none").quotes} == {"a", "a (2)"}


def test_trigrams_are_lower_cased_words_with_their_punctuation_and_two_words_never_block():
    texts = ["We saw the old, bridge", "we saw the old bridge", "they saw the old bridge", "the old", "The old"]
    assert select([5, 4, 3, 2, 1], texts, words=100, min_words=1) == [0, 2, 3, 4]


@pytest.mark.parametrize("block", BLOCKINGS)
def test_repetitions_are_skipped(block):
    texts = [
        "The old bridge was closed today.",
        "the OLD bridge was closed yesterday by men",
        "Rain fell on all other towns.",
    ]
    chosen = select([3, 1.1, 1], texts, words=12, block=block)
    assert chosen == ([0, 1] if block == "none" else [0, 2])


def test_a_summary_says_where_its_sentences_stand():
    documents = [
        document_of("First one is here now. Second one is <b> here.", "a"),
        document_of("Third one is also here.", "b"),
    ]
    summary = make_summary("q", documents, [1, 2, 3], scorer="x", words=10, order="document", without_query=[0, 0, 0])
    assert [(q.document, q.rank) for q in summary.quotes] == [("a", 2), ("b", 1)]
    page = marked_html(documents, summary)
    assert "&lt;b&gt; here." in page
    assert page.count("<mark") == 2


def test_oracles():
    sentences = [
        "the dog ran home fast",
        "a cat sat on a mat",
        "rain fell all day long",
        "the cat sat on the mat today",
    ]
    assert single_reference_oracle(sentences, ["the cat sat on the mat", "the dog ran home"]) == [0, 3]
    assert single_reference_oracle(sentences, []) == []
    assert single_reference_oracle([], ["x"]) == []
    chosen = budgeted_oracle(sentences, [["the cat sat on the mat"], ["the dog ran home"]], 11)
    assert set(chosen) == {0, 3}
    # Multisets: what is covered once stays open where the reference says it twice. Sets cover it at once.
    assert sorted(budgeted_oracle(["ring ring", "ring", "bell"], [["ring ring ring"]], 3)) == [0, 1]
    assert single_reference_oracle(["ring ring", "ring"], ["ring ring ring"]) == [0]
    assert hard_labels(sentences, [["the dog ran home"]]) == [1.0, 0.0, 0.0, 0.0]  # no more than the reference is long
    assert hard_labels(sentences, [[]], 10) == [0.0] * 4  # an empty reference
    assert hard_labels(sentences, [["nothing of this kind"]], 10) == [0.0] * 4  # no positive is legal
    soft = soft_labels(sentences, [["the cat sat on the mat today"]])
    assert max(soft) == soft[3] == pytest.approx(1.15)


def test_files_are_read_or_refused(tmp_path):
    (tmp_path / "a.txt").write_text("One sentence here. Another one.", encoding="utf-8")
    (tmp_path / "b.html").write_text("<html><script>no()</script><p>In a page.</p><p>Next.</p></html>")
    (tmp_path / "c.jsonl").write_text('{"id": "x", "text": "In a row."}\n\n{"sentences": ["One.", "Two."]}\n')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.txt").write_text("The same name, but not the same file.")
    documents = read_documents([tmp_path])
    assert [d.id for d in documents] == ["a.txt", "b.html", "x", "c.jsonl:3", "deep/a.txt"]
    assert text_of_html("<p>a&amp;b</p>c") == "a&b\n\nc"
    assert text_of_html("<head><title>no</title><meta charset=x><body><form><p>In a form, head left open.") == (
        "In a form, head left open."
    )
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-1.7\n\xff\xfe")
    (tmp_path / "row.jsonl").write_text("[1]")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    for name, words in (
        ("bad.txt", "UTF-8"),
        ("empty.txt", "empty"),
        ("scan.pdf", "is a PDF"),
        ("row.jsonl", "line 1"),
        ("deep.jsonl", "line 1"),
        ("none.txt", "no file"),
    ):
        with pytest.raises(UserError, match=words):
            read_documents([tmp_path / name])
