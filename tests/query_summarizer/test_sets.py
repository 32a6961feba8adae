"""Readers of the public sets, on files of their layouts."""

import gzip
import io
import json
import struct
import tarfile
import zipfile

import pytest

from tenfold.cli import main
from tenfold.errors import UserError
from tenfold.systems.query_summarizer.sets.aquamuse import read_aquamuse
from tenfold.systems.query_summarizer.sets.duc import read_duc, read_tdqfs
from tenfold.systems.query_summarizer.sets.generated import generate_topics
from tenfold.systems.query_summarizer.sets.load_sets import load_sets
from tenfold.systems.query_summarizer.sets.qmsum import read_qmsum
from tenfold.systems.query_summarizer.sets.rows import read_debatepedia, read_rows
from tenfold.systems.query_summarizer.sets.squality import read_squality


def test_squality_and_qmsum(tmp_path):
    story = {
        "metadata": {"passage_id": "7"},
        "document": "One. Two.",
        "questions": [
            {
                "question_text": "What?",
                "question_number": 1,
                "responses": [{"response_text": "Ann ran. Bob sat."}, {"response_text": "C."}],
            }
        ],
    }
    (tmp_path / "dev.jsonl").write_text(json.dumps(story))
    (topic,) = read_squality(tmp_path, "dev")
    assert (topic.id, topic.domain, topic.references) == ("7-1", "plot", (("Ann ran.", "Bob sat."), ("C.",)))
    meeting = {
        "general_query_list": [{"query": "All?", "answer": "Everything."}],
        "specific_query_list": [{"query": "Cost?", "answer": "Ten.", "relevant_text_span": [["0", "1"]]}],
        "meeting_transcripts": [
            {"speaker": "A", "content": "It costs {vocalsound} ten ."},
            {"speaker": "B", "content": "{gap}"},
        ],
    }
    (tmp_path / "val.jsonl").write_text(json.dumps(meeting))
    general, specific = read_qmsum(tmp_path, "val")
    (sentence,) = specific.documents[0].sentences
    assert sentence.text == "It costs ten."
    assert specific.documents[0].text[sentence.start : sentence.end] == "It costs {vocalsound} ten ."
    assert general.query == "All?"
    (tmp_path / "dev.jsonl").write_text('{"metadata": {}}')
    with pytest.raises(UserError, match="line 1 is not a story"):
        read_squality(tmp_path, "dev")
    with pytest.raises(UserError, match="published at"):
        read_squality(tmp_path, "train")


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_duc_from_nist_archives_and_from_a_tree(tmp_path):
    story = (
        b"<DOC><DOCNO> APW19990707.0181 </DOCNO><HEADLINE>H</HEADLINE><TEXT><P>One &amp; two. Three.</P></TEXT></DOC>"
    )
    graphic = b"<DOC><DOCNO>FT1</DOCNO><GRAPHIC>Only a graphic here.</GRAPHIC></DOC>"
    topics = (
        b"<topic>\n<num> D0601A </num>\n<title> Native & others </title>\n<narr>\nDiscuss this.\nAnd that.\n</narr>"
    )
    nist = tmp_path / "nist"
    nist.mkdir()
    (nist / "duc2006_topics.sgml").write_bytes(topics)
    inner = tar_of({"duc2006_docs/D0601A/APW19990707.0181": story, "duc2006_docs/D0601A/FT1": graphic})
    (nist / "DUC2006_Summarization_Documents.tgz").write_bytes(tar_of({"x/duc2006_docs.tar.gz": inner}))
    models = {f"NISTeval/ROUGE/models/D0601.M.250.A.{a}": b"Line one.\nCaf\xe9 two.\n" for a in "AB"}
    models["NISTeval/ROUGE/peers/D0601.M.250.A.1"] = b"peer"
    (nist / "NISTeval.tar.gz").write_bytes(tar_of(models))
    (topic,) = read_duc(nist, "2006")
    assert topic.query == "Native & others. Discuss this. And that."
    assert [d.id for d in topic.documents] == ["APW19990707.0181", "FT1"]
    assert [s.text for s in topic.documents[0].sentences] == ["One & two.", "Three."]
    assert topic.references == (("Line one.", "Café two."),) * 2
    tree = tmp_path / "tree"
    for name, content in {
        "topics/2007.sgml": topics.replace(b"D0601A", b"D0701A"),
        "docs/2007/D0701A/X": story,
        "summary_targets/2007/D0701.M.250.A.C": b"First. Second.\n",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    (topic,) = read_duc(tree, "2007")
    assert topic.references == (("First.", "Second."),)  # paragraphs are split
    assert main(["query-summarizer", "rows", "duc", str(nist), str(tmp_path / "duc.jsonl"), "--split", "2006"]) == 0
    (row,) = read_rows(tmp_path / "duc.jsonl")
    (again,) = read_duc(nist, "2006")
    assert (row.query, row.references, row.texts) == (again.query, again.references, again.texts)
    assert [d.id for d in row.documents] == [d.id for d in again.documents]
    for wrong in (["duc", "--split", "2004"], ["td-qfs", "--split", "train"], ["aquamuse", "--split", "dev"]):
        assert main(["query-summarizer", "rows", wrong[0], str(nist), str(tmp_path / "x"), *wrong[1:]]) == 2
    with pytest.raises(UserError, match="no topics of DUC 2005"):
        read_duc(tree, "2005")
    (nist / "NISTeval.tar.gz").write_bytes((nist / "NISTeval.tar.gz").read_bytes()[:50])
    with pytest.raises(UserError, match="damaged or cut short"):
        read_duc(nist, "2006")


def zip_of(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_tdqfs_with_its_nested_zips(tmp_path):
    inside = {
        "TD-QFS/alz/ducoment cluster.zip": zip_of({"docs/1.txt": "About it. More."}),
        "TD-QFS/alz/manual sums.zip": zip_of({"manual sums/1/u1q1": "Sum one.", "manual sums/2/u2q1": "Sum two."}),
        "TD-QFS/alz/queries.txt": "first query\nsecond query\n",
    }
    (tmp_path / "tdqfs.zip").write_bytes(zip_of(inside))
    first, second = read_tdqfs(tmp_path / "tdqfs.zip")
    assert (first.id, second.query) == ("alz-1", "second query")
    assert second.references == (("Sum two.",),)


def test_rows_of_ones_own_and_of_wikicite(tmp_path):
    rows = [
        {"question": "Q?", "context": "One. Two.", "answer": "A."},
        {
            "query": ["T", "S"],
            "documents": [["a b", "c d"], "E f. G h."],
            "summaries": [["x"], ["y", "z"]],
            "labels": [1, 0, 0, 1],
        },
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_rows(path)
    assert first.references == (("A.",),)
    assert second.query == "T, S"
    assert (len(second.documents), second.references, second.labels) == (2, (("x",), ("y", "z")), (1.0, 0.0, 0.0, 1.0))
    path.write_text(
        json.dumps({"query": "Q", "documents": ["One. Two.", "Three."], "summaries": ["Ann ran. Bob sat.", "Cy."]})
    )
    (row,) = read_rows(path)  # plurals hold several, singulars the sentences of one
    assert [d.text for d in row.documents] == ["One. Two.", "Three."]
    assert row.references == (("Ann ran.", "Bob sat."), ("Cy.",))
    path.write_text(
        json.dumps({"query": "Q", "document": ["One. Two.", "Three."], "summary": ["Ann ran. Bob sat.", "Cy."]})
    )
    (row,) = read_rows(path)
    assert (len(row.documents), row.references) == (1, (("Ann ran.", "Bob sat.", "Cy."),))
    cloze = {
        "page_title": "T",
        "page_id": 3,
        "headings": ["H"],
        "cloze": "C.",
        "documents": [{"url": "u", "paragraphs": [["A.", "B."]]}],
    }
    with gzip.open(tmp_path / "wikicite.jsonl.gz", "wt") as file:
        file.write(json.dumps(cloze))
    (topic,) = read_rows(tmp_path / "wikicite.jsonl.gz")
    assert (topic.query, topic.references, topic.group) == ("T, H", (("C.",),), "3")
    path.write_text('{"frage": "Q", "text": "T.", "summary": "S."}')
    with pytest.raises(UserError, match=r"no query \(it has: frage, text, summary\)"):
        read_rows(path)
    assert read_rows(path, {"query": "frage"})[0].query == "Q"
    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "wikicite.jsonl.gz").read_bytes()[:-9])
    with pytest.raises(UserError, match="cut short"):
        read_rows(tmp_path / "cut.jsonl.gz")


def test_debatepedia_and_aquamuse(tmp_path):
    for name, line in (("content", "<s> One. Two. <eos>"), ("query", "<s> why <eos>"), ("summary", "<s> So. <eos>")):
        (tmp_path / f"valid_{name}").write_text(line + "\n")
    (topic,) = read_debatepedia(tmp_path, "valid")
    assert (topic.query, topic.references) == ("why", (("So.",),))

    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    def feature(name, value):
        return field(1, field(1, name) + field(2, field(1, field(1, value))))

    record = field(
        1, feature(b"query", b"q") + feature(b"target", b"T.") + feature(b"input_urls", b"http://a<EOD>http://b")
    )
    place = tmp_path / "abstractive/dev"
    place.mkdir(parents=True)
    framed = struct.pack("<Q", len(record)) + b"0000" + record + b"0000"
    (place / "part").write_bytes(framed * 2)
    topics, missing = read_aquamuse(tmp_path, "dev", lambda url: "Found. Text." if url == "http://b" else None)
    assert (len(topics), missing, topics[0].documents[0].id) == (2, 0, "http://b")
    (place / "part").write_bytes(framed[:-3])
    with pytest.raises(UserError, match="cut short"):
        read_aquamuse(tmp_path, "dev", lambda url: None)


def test_sets_are_split_by_group_and_say_what_they_leave_out(tmp_path):
    sets = load_sets("generated", stage1_groups=4, train_groups=3, held_back_groups=2, test_groups=2)
    assert [len(part) for part in (sets.stage1, sets.train, sets.held_back, sets.test)] == [4, 3, 2, 2]
    row = {"query": "q", "document": "One sentence is here.", "summary": "s", "group": "g"}
    for name, groups in (("train.jsonl", "abc"), ("test.jsonl", "xy")):
        (tmp_path / name).write_text("\n".join(json.dumps({**row, "group": g}) for g in groups))
    own = load_sets(
        "jsonl", root=str(tmp_path), train="train.jsonl", test="test.jsonl", train_groups=1, held_back_groups=1
    )
    assert own.notes == ("training: 1 groups train, 1 are held back, of 3.",)
    with pytest.raises(UserError, match="none is left to train on"):
        load_sets("jsonl", root=str(tmp_path), train="train.jsonl", test="test.jsonl", held_back_groups=3)
    with pytest.raises(UserError):
        load_sets("jsonl", root=str(tmp_path), train="../train.jsonl", test="test.jsonl")
    assert generate_topics(2, 5) == generate_topics(2, 5)
