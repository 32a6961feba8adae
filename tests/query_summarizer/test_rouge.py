"""ROUGE against what ROUGE-1.5.5 prints."""

import json
import lzma
import os
from pathlib import Path

import pytest

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.rouge.counting import limit_lines
from tenfold.systems.query_summarizer.rouge.printing import format_scores, read_summaries
from tenfold.systems.query_summarizer.rouge.resampling import bootstrap_interval, compare
from tenfold.systems.query_summarizer.rouge.scoring import Rouge
from tenfold.systems.query_summarizer.rouge.stemming import Stemmer, find_exceptions, porter, read_exceptions

REFERENCE = Path(os.environ.get("TENFOLD_DATA", "missing")) / "query-summaries/rouge155/rouge155_reference.json.xz"
needs_lists = pytest.mark.skipif(
    find_exceptions() is None, reason="needs WordNet's lists: pip install 'tenfold[rouge]'"
)

PEER = ["the cat sat on the mat .", "engagements improved the replacement of agreements"]
FIRST = ["a cat was sitting on a mat", "engagement in the agreement for replacing"]
SECOND = ["cats sat on mats"]


@needs_lists
def test_two_topics_as_the_script_scores_them():
    """Made by ROUGE-1.5.5 with -n 2 -x -m -2 4 -u -c 95 -r 1000 -f A -p 0.5 -t 0 -d -l 250 -z SPL."""
    rouge = Rouge()
    found = rouge.corpus({"1": PEER, "2": FIRST}, {"1": [FIRST, SECOND], "2": [SECOND, PEER]})
    wanted = {
        "ROUGE-1": [(0.64706, 0.45833, 0.53658), (0.62500, 0.38462, 0.47619)],
        "ROUGE-2": [(0.20000, 0.13636, 0.16216), (0.07143, 0.04167, 0.05263)],
        "ROUGE-SU4": [(0.36620, 0.23214, 0.28415), (0.33846, 0.17742, 0.23280)],
    }
    for measure, topics in wanted.items():
        for topic, values in zip("12", topics, strict=True):
            score = found[measure].topics[topic]
            assert (score.recall, score.precision, score.f) == values
    recall = found["ROUGE-1"].recall
    assert (recall.mean, recall.low, recall.high) == (0.63603, 0.62500, 0.64706)
    assert found["ROUGE-2"].recall.mean == 0.13572
    assert found["ROUGE-SU4"].recall.mean == 0.35233
    printed = format_scores("X", found, topics=True).splitlines()
    assert printed[1] == "X ROUGE-1 Average_R: 0.63603 (95%-conf.int. 0.62500 - 0.64706)"
    assert printed[5] == "X ROUGE-1 Eval 1 R:0.64706 P:0.45833 F:0.53658"


@pytest.mark.skipif(not REFERENCE.exists(), reason="needs TENFOLD_DATA/query-summaries/rouge155")
def test_the_whole_reference_file_to_the_fifth_decimal():
    reference = json.loads(lzma.decompress(REFERENCE.read_bytes()))
    peers = {str(i): topic["peer"] for i, topic in enumerate(reference["topics"], 1)}
    models = {str(i): topic["models"] for i, topic in enumerate(reference["topics"], 1)}
    compared = 0
    for limit, results in reference["results"].items():
        for measure, score in Rouge(limit=int(limit)).corpus(peers, models).items():
            for topic, scores in results["eval"].items():
                found = score.topics[topic]
                assert [found.recall, found.precision, found.f] == scores[measure], (limit, measure, topic)
                compared += 1
            for letter, interval in (("R", score.recall), ("P", score.precision), ("F", score.f)):
                assert [interval.mean, interval.low, interval.high] == results["average"][measure][letter]
    assert compared == 3 * 3 * 38


def test_stems_are_those_of_the_script():
    wanted = {
        "internationally": "internat", "agreement": "agreement"[:6], "statements": "statem", "environmental": "environ",
        "professionals": "profess", "technology": "technolog", "displays": "displai", "yes": "ye", "by": "by",
    }  # fmt: skip
    assert {word: porter(word) for word in wanted} == wanted
    stemmer = Stemmer({"spoke": "speak", "dying": "die"})
    assert [stemmer(word) for word in ("spoke", "dying", "yes", "cats")] == ["speak", "die", "yes", "cat"]


@needs_lists
def test_later_lists_win():
    table = read_exceptions()
    assert (table["best"], table["better"], table["spoke"]) == ("well", "well", "speak")


def test_limits_count_words_as_perl_splits_them():
    lines = [b" leading blank", b"two words  ", b"and more"]
    assert limit_lines(lines, 3) == [b" leading blank"]  # the empty first word counts
    assert limit_lines(lines, 4) == [b" leading blank", b"two"]
    assert limit_lines(lines, 0) == lines
    assert limit_lines([b"abc", b"def"], 4, "bytes") == [b"abc", b"d"]


def test_bytes_not_letters_are_what_counts():
    rouge = Rouge(["ROUGE-1"], stem="none", limit=0)
    score = rouge.score(["Café re-opened U.S.-led"], [["caf re opened u s led"]])["ROUGE-1"]
    assert (score.recall, score.precision) == (1.0, 1.0)
    assert rouge.score(["one"], [["one"]])["ROUGE-1"].f == 1.0
    skip = Rouge(["ROUGE-SU4"], stem="none", limit=0)
    assert skip.score(["one"], [["one"]])["ROUGE-SU4"].f == 0.0  # the last token gives no single word
    assert rouge.score([], [["one"]])["ROUGE-1"].f == 0.0


def test_summary_level_l_is_the_union_of_subsequences():
    """Lin 2004, section 3.2: reference w1 w2 w3 w4 w5 against w1 w2 w6 w7 w8 and w1 w3 w8 w9 w5 shares 4 of 5."""
    rouge = Rouge(["ROUGE-L"], stem="none", limit=0)
    score = rouge.score(["w1 w2 w6 w7 w8", "w1 w3 w8 w9 w5"], [["w1 w2 w3 w4 w5"]])["ROUGE-L"]
    assert (score.recall, score.precision) == (0.8, 0.4)


def test_jackknife_and_paired_tests():
    rouge = Rouge(["ROUGE-1"], stem="none", limit=0)
    references = [["a b"], ["a c"], ["a d"]]
    assert rouge.jackknife(["a"], references)["ROUGE-1"].recall == 0.5
    better = compare([0.5, 0.6, 0.7, 0.6, 0.8] * 4, [0.4, 0.5, 0.6, 0.5, 0.7] * 4)
    assert better.p_value < 0.01
    assert better.low == pytest.approx(0.1)
    same = compare([0.5, 0.6], [0.6, 0.5])
    assert same.p_value == 1.0
    assert bootstrap_interval([0.25]).low == 0.25


def test_file_names_of_nist_and_of_pyrouge(tmp_path):
    for name, text in (("D0601.M.250.A.A", "one\ntwo\n"), ("D0601.M.250.A.B", "caf\xe9\n"), ("d0602_C.txt", "three\n")):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    found = read_summaries(tmp_path)
    assert found == {"d0601": {"A": ["one", "two", ""], "B": ["café", ""]}, "d0602": {"C": ["three", ""]}}


def test_what_makes_no_sense_is_refused(tmp_path):
    rouge = Rouge(["ROUGE-1"], stem="none")
    for call in (
        lambda: rouge.score("one string", [["a"]]),
        lambda: rouge.score(["a"], ["one string"]),
        lambda: rouge.score(["a"], []),
        lambda: rouge.corpus({"1": ["a"], "2": ["b"]}, {"1": [["a"]]}),
        lambda: rouge.corpus({}, {}),
        lambda: Rouge(["ROUGE-X"]),
        lambda: Rouge(stem="snowball"),
        lambda: compare([1.0], [1.0, 2.0]),
        lambda: read_summaries(tmp_path / "missing"),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value)
