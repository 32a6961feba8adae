"""Every layout, and everything that can be wrong with a file."""

import gzip
import json
import os
import zipfile

import pytest
import torch

from tenfold.errors import UserError
from tenfold.systems.graph_fusion import drop_unseen, induced_subset, leakage, load_graph, sparsify
from tenfold.systems.graph_fusion.graph.columns import detect_order
from tenfold.systems.graph_fusion.graph.texts import entity_text_of_id, freebase_relation_text, relation_text_of_id

TRIPLES = [(f"n{h}", f"rel{r}", f"n{(h + r + 1) % 12}") for h in range(12) for r in range(2)]


def rows(triples, order="hrt", separator="\t", end="\n"):
    columns = {"h": 0, "r": 1, "t": 2}
    return "".join(separator.join(triple[columns[part]] for part in order) + end for triple in triples)


def write(folder, names, order="hrt", end="\n", compress=False, triples=TRIPLES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(names, (triples[4:], triples[:2], triples[2:4]), strict=True):
        text = rows(part, order, end=end).encode()
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text))
        else:
            (folder / name).write_bytes(text)
    return folder


def triples_of(graph, split):
    return {(graph.entities[h], graph.relations[r], graph.entities[t]) for h, r, t in graph.split(split).tolist()}


def load(path, **options):
    return load_graph(path.name, root=str(path.parent), **options)


LAYOUTS = {
    "kg-bert": (("train.tsv", "dev.tsv", "test.tsv"), "hrt"),
    "fb15k-237": (("train.txt", "valid.txt", "test.txt"), "hrt"),
    "dackgr": (("train.txt", "valid.txt", "test.txt"), "htr"),
    "multihop": (("train.triples", "dev.triples", "test.triples"), "htr"),
    "conceptnet": (("train.txt", "valid.txt", "test.txt"), "rht"),
    "wikidata5m": (tuple(f"wikidata5m_transductive_{s}.txt" for s in ("train", "valid", "test")), "hrt"),
    "wikidata5m-inductive": (tuple(f"wikidata5m_inductive_{s}.txt" for s in ("train", "valid", "test")), "hrt"),
    "csv": (("train.txt", "valid.txt", "test.txt"), "hrt"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("end", "compress"), [("\n", False), ("\r\n", True)])
def test_layouts(tmp_path, layout, end, compress):
    names, order = LAYOUTS[layout]
    graph = load(write(tmp_path / layout, names, order, end, compress))
    assert triples_of(graph, "train") == set(TRIPLES[4:])
    assert triples_of(graph, "valid") == set(TRIPLES[:2])
    assert graph.num_entities == 12 and graph.num_relations == 2
    assert not any(key.endswith("\r") for key in graph.entities)


def test_a_missing_last_newline_and_a_byte_order_mark(tmp_path):
    folder = write(tmp_path / "graph", LAYOUTS["kg-bert"][0])
    path = folder / "train.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip(b"\n"))
    assert triples_of(load(folder), "train") == set(TRIPLES[4:])


def test_ids_stay_text(tmp_path):
    """WN18RR's leading zeros; NA and null are names."""
    triples = [("00260881", "r", "NA"), ("NA", "r", "null"), ("null", "r", "1e5"), ("1e5", "r", "00260881"),
               ("00260881", "r", "null"), ("NA", "r", "1e5"), ("null", "r", "00260881"),
               ("1e5", "r", "NA")]  # fmt: skip
    for separator, suffix in (("\t", "tsv"), (",", "csv")):
        (tmp_path / f"graph.{suffix}").write_text(rows(triples, separator=separator))
        graph = load(tmp_path / f"graph.{suffix}", order="hrt")
        assert set(graph.entities) == {"00260881", "NA", "null", "1e5"}


def test_a_users_own_files(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.csv").write_text("tail,head,relation\n" + rows(TRIPLES, "thr", ","))
    table = pyarrow.table(dict(zip(("subject", "predicate", "object"), zip(*TRIPLES, strict=True), strict=True)))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    lines = [f"<http://x/{h}> <http://x/{r}> <http://x/{t}> .\n" for h, r, t in TRIPLES]
    label = '<http://x/n0> <http://www.w3.org/2000/01/rdf-schema#label> "caf\\u00e9 \\"zero\\""@en .\n'
    value = '<http://x/n1> <http://x/height> "12"^^<http://www.w3.org/2001/XMLSchema#integer> .\n'
    (tmp_path / "a.nt").write_text("# a comment\n" + "".join(lines) + label + value)
    for name in ("a.csv", "a.parquet", "a.nt"):
        graph = load(tmp_path / name, missing_texts="id")
        assert sum(len(graph.split(split)) for split in ("train", "valid", "test")) == 24
        assert bool(graph.seen().all())  # every entity stays in the training split
        if name == "a.nt":
            assert 'café "zero"' in graph.names
            assert any("1 literals" in note for note in graph.notes)


def test_nell_one_codex_and_numbered_archives(tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    for name, part in (("train", TRIPLES[4:10]), ("dev", TRIPLES[:2]), ("test", TRIPLES[2:4])):
        (one / f"{name}_tasks.json").write_text(json.dumps({"rel": [list(triple) for triple in part]}))
    (one / "path_graph").write_text(rows(TRIPLES[8:]))
    assert triples_of(load(one), "train") == set(TRIPLES[4:])

    codex = tmp_path / "codex" / "data"
    write(codex / "triples" / "codex-s", LAYOUTS["fb15k-237"][0])
    for kind, keys in (("entities", [f"n{k}" for k in range(12)]), ("relations", ["rel0", "rel1"])):
        (codex / kind / "en").mkdir(parents=True)
        texts = {key: {"label": f"the {key}", "description": "a thing"} for key in keys}
        (codex / kind / "en" / f"{kind}.json").write_text(json.dumps(texts))
    graph = load_graph("data/triples/codex-s", root=str(tmp_path / "codex"))
    assert graph.names[0] == "the n0" and graph.descriptions[0] == "a thing" and graph.relation_texts[0] == "the rel0"

    numbers = {key: number for number, key in enumerate(sorted({h for h, _, _ in TRIPLES}))}
    with zipfile.ZipFile(tmp_path / "cn.zip", "w") as archive:
        archive.writestr("CN/entity_idx.json", json.dumps(numbers))
        archive.writestr("CN/rel_idx.json", json.dumps({"rel0": 0, "rel1": 1}))
        numbered = [(str(numbers[h]), r[-1], str(numbers[t])) for h, r, t in TRIPLES]
        for name, part in (("train", numbered[4:]), ("valid", numbered[:2]), ("test", numbered[2:4])):
            archive.writestr(f"CN/{name}.txt", rows(part, "rht"))
    assert triples_of(load(tmp_path / "cn.zip", order="rht"), "train") == set(TRIPLES[4:])


def test_raw_kb_does_not_leak(tmp_path):
    """NELL-995's raw.kb holds held-out facts, too."""
    folder = write(tmp_path / "nell", LAYOUTS["multihop"][0], "htr")
    (folder / "train.triples").unlink()
    (folder / "raw.kb").write_text(rows(TRIPLES, "htr"))
    graph = load(folder)
    assert triples_of(graph, "train") == set(TRIPLES[4:])
    assert leakage(graph)["repeated"] == 0


def test_rows_with_labels_keep_the_true_ones(tmp_path):
    folder = write(tmp_path / "wn11", LAYOUTS["fb15k-237"][0])
    true, false = TRIPLES[2:4], [("n1", "rel0", "n1"), ("n2", "rel1", "n2")]
    text = "".join("\t".join([*t, "1"]) + "\n" for t in true) + "".join("\t".join([*t, "-1"]) + "\n" for t in false)
    (folder / "test.txt").write_text(text)
    assert triples_of(load(folder), "test") == set(true)


@pytest.mark.parametrize("order", ["hrt", "htr", "rht"])
def test_the_column_order_is_told_by_the_data(order):
    columns = {"h": 0, "r": 1, "t": 2}
    shuffled = [tuple(triple[columns[part]] for part in order) for triple in TRIPLES]
    found, clear = detect_order(shuffled)
    assert found == order and clear >= 1.5


def test_texts_are_joined_by_id(tmp_path):
    folder = write(tmp_path / "graph", LAYOUTS["kg-bert"][0])
    (folder / "entity2text.txt").write_text("".join(f"n{k}\tthing\twith tab {k // 2}\n" for k in range(11, -1, -1)))
    (folder / "relation2text.txt").write_text("rel0\tsame words\nrel1\tsame words\n")
    graph = load(folder)
    assert graph.names[graph.entity("n3")] == "thing\twith tab 1"
    assert graph.names[graph.entity("n2")] == graph.names[graph.entity("n3")]  # names repeat, ids do not
    assert graph.relation_texts == ("same words", "same words")
    with pytest.raises(UserError, match="2 entity ids are called"):
        graph.entity("thing\twith tab 1")
    with pytest.raises(UserError, match="no entity 'n99'"):
        graph.entity("n99")


def test_words_of_ids():
    assert entity_text_of_id("concept_sportsteam_red_wings") == "red wings (sportsteam)"
    assert entity_text_of_id("-11.66,130.08") == "-11.66,130.08"
    assert entity_text_of_id("http://x.org/a#Some_Thing") == "Some Thing"
    assert relation_text_of_id("concept:teamplaysincity") == "teamplaysincity"
    assert relation_text_of_id("http://x.org/bornIn") == "born in"
    assert freebase_relation_text("/film/film/genre./film/film_genre/kind") == "kind film genre genre film"


DAMAGE = {
    "wrong order": (lambda f: None, {"order": "htr"}, "not in the order htr"),
    "missing split": (lambda f: (f / "dev.tsv").unlink(), {}, "no dev.tsv"),
    "empty split": (lambda f: (f / "test.tsv").write_text(""), {}, "is empty"),
    "blank split": (lambda f: (f / "test.tsv").write_text("\n\n"), {}, "is empty"),
    "duplicates": (lambda f: (f / "train.tsv").write_text(rows(TRIPLES[4:] + TRIPLES[4:5])), {}, "are repeated"),
    "not UTF-8": (lambda f: (f / "train.tsv").write_bytes(b"a\tr\tb\n\xff\tr\tc\n"), {}, "line 2 holds the byte 0xff"),
    "cut short": (lambda f: (f / "train.tsv").write_text(rows(TRIPLES[4:]) + "n1\trel0"), {}, "line 21 has 2 columns"),
    "cut archive": (
        lambda f: (
            (f / "train.tsv").unlink(),
            (f / "train.tsv.gz").write_bytes(gzip.compress(b"a\tb\tc\n" * 99)[:-12]),
        ),
        {},
        "cut short or damaged",
    ),
    "texts miss entities": (lambda f: (f / "entity2text.txt").write_text("n1\tone\n"), {}, "miss 11 of 12 entities"),
    "texts not UTF-8": (lambda f: (f / "entity2text.txt").write_bytes(b"n1\t\xe9\n"), {}, "not UTF-8"),
    "texts without tabs": (lambda f: (f / "entity2text.txt").write_text("n1 one\n"), {}, "has no tab"),
    "no layout": (lambda f: [p.unlink() for p in f.iterdir()], {}, "known layout"),
    "bad share": (lambda f: None, {"fraction": 1.5}, "in \\(0, 1\\]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_line(tmp_path, damage):
    folder = write(tmp_path / "graph", LAYOUTS["kg-bert"][0])
    change, options, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)


def test_what_may_be_allowed(tmp_path):
    folder = write(tmp_path / "graph", LAYOUTS["kg-bert"][0])
    (folder / "train.tsv").write_text(rows(TRIPLES[4:] + TRIPLES[4:6]))
    (folder / "entity2text.txt").write_text("n1\tone\n")
    graph = load(folder, duplicates="drop", missing_texts="id")
    assert len(graph.train) == 20 and graph.names[graph.entity("n1")] == "one"
    assert any("2 repeated" in note for note in graph.notes) and any("11 entities" in note for note in graph.notes)


def test_sparsify_and_subsets_know_what_they_removed():
    graph = load_graph("umls")
    assert (graph.num_entities, graph.num_relations, len(graph.train)) == (135, 46, 5216)
    thin = sparsify(graph, 0.1, seed=3)
    assert len(thin.train) == 522 and len(thin.hidden) == 4716
    assert "522 of 5,216" in thin.notes[-1] and "9 validation and 13 test triples" in thin.notes[-1]
    both = torch.cat([getattr(thin, name) for name in ("train", "valid", "test", "hidden")])
    everything = torch.cat([graph.train, graph.valid, graph.test])
    assert torch.equal(both.unique(dim=0), everything.unique(dim=0))  # nothing that was given is forgotten
    seen = thin.seen()
    assert bool(seen[thin.test[:, [0, 2]]].all())
    kept = sparsify(graph, 0.1, seed=3, keep_unseen=True)
    assert len(kept.test) == len(graph.test) >= len(thin.test)
    assert torch.equal(sparsify(graph, 0.1, seed=3).train, thin.train)
    part = induced_subset(graph, 40, seed=1)
    assert part.num_entities <= 40 and bool(part.seen().all())
    names = triples_of(part, "train")
    assert names <= triples_of(graph, "train")
    dropped = drop_unseen(kept)
    assert bool(dropped.seen().all()) and len(dropped.test) == len(thin.test)


def ring(entities=12, relations=2):
    """Rows of a graph in which every id occurs often."""
    return [[f"n{h}", f"rel{r}", f"n{(h + r + 1) % entities}"] for h in range(entities) for r in range(relations)]


def parquet(path, columns, names=("head", "relation", "tail")):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(dict(zip(names, columns, strict=True))), path)
    return path


def test_parquet_means_what_its_columns_are_named_and_typed(tmp_path):
    """The names are no triple, whole numbers keep all digits, fractions and nulls are no ids."""
    heads, relations, tails = map(list, zip(*ring(), strict=True))
    graph = load(parquet(tmp_path / "named.parquet", (heads, relations, tails), "spo"))
    assert set(graph.relations) == {"rel0", "rel1"} and graph.num_entities == 12
    first = 9_007_199_254_740_993  # above 2^53
    big = {f"n{n}": first + n for n in range(12)}
    numbers = parquet(tmp_path / "big.parquet", ([big[h] for h in heads], relations, [str(big[t]) for t in tails]))
    assert set(load(numbers).entities) == {str(first + n) for n in range(12)}  # 19 digits beside text
    gap = parquet(tmp_path / "gap.parquet", ([1.0, None, *map(float, range(22))], relations, tails))
    with pytest.raises(UserError, match="'head' holds numbers with fractions"):
        load(gap)
    missing = parquet(tmp_path / "null.parquet", (heads, [*relations[:4], None, *relations[5:]], tails))
    with pytest.raises(UserError, match="row 5: the column 'relation' is null"):
        load(missing)


TABLES = {
    "empty cell": (".tsv", lambda rows: rows[3].__setitem__(2, " "), {}, "line 4: the tail is empty"),
    "empty cell after a blank line": (".csv", lambda rows: rows[3].__setitem__(0, ""), {}, "line 4: the head is empty"),
    "ids that differ in blanks": (".csv", lambda rows: rows[3].__setitem__(1, "rel1 "), {}, "differ in blanks alone"),
    "fourth column": (".tsv", lambda rows: [row.append(str(n % 2)) for n, row in enumerate(rows)], {}, "--data.fourth"),
    "no truth": (
        ".tsv",
        lambda rows: [row.append("2") for row in rows],
        {"fourth_column": "truth"},
        "line 1: the fourth column holds '2'",
    ),
    "strange header": (".csv", lambda rows: rows.insert(0, ["von", "art", "nach"]), {}, "may be a header"),
    "no header": (".tsv", lambda rows: None, {"header": True}, "names no head, relation and tail"),
    "commas in text": (".txt", lambda rows: rows.__setitem__(slice(None), [[",".join(r)] for r in rows]), {}, "commas"),
    "open quote": (".csv", lambda rows: rows[3].__setitem__(0, '"n1'), {}, "is not CSV"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_are_not_guessed_at(tmp_path, case):
    suffix, change, options, message = TABLES[case]
    rows = ring()
    change(rows)
    separator = "," if suffix == ".csv" else "\t"
    (tmp_path / f"graph{suffix}").write_text("".join(separator.join(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / f"graph{suffix}", **options)
    assert "\n" not in str(caught.value)


def test_what_is_left_out_of_a_table_is_said(tmp_path):
    rows = [[*row, str(int(n % 4 > 0))] for n, row in enumerate(ring(relations=4))]
    (tmp_path / "graph.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    true = load(tmp_path / "graph.tsv", fourth_column="truth")
    assert sum(len(true.split(name)) for name in ("train", "valid", "test")) == 36
    assert any("12 rows of graph.tsv are marked false" in note for note in true.notes)
    every = load(tmp_path / "graph.tsv", fourth_column="ignore")
    assert any("48 triples was split at random" in note for note in every.notes)
    named = "".join(",".join([str(n), *row[:3]]) + "\n" for n, row in enumerate(rows))
    (tmp_path / "named.csv").write_text("year,head,relation,tail\n" + named)
    assert any("not read: year" in note for note in load(tmp_path / "named.csv").notes)


def test_texts_are_not_guessed_at(tmp_path):
    """A second text of an id is refused or counted; ids of eight digits are WordNet's in WordNet alone."""
    folder = write(tmp_path / "graph", LAYOUTS["kg-bert"][0])
    lines = [f"n{k}\tthing {k}\n" for k in range(12)]
    (folder / "entity2text.txt").write_text("".join([*lines, lines[3], "n4\tanother\n"]))
    with pytest.raises(UserError, match="line 14: the id 'n4' has another text in line 5"):
        load(folder)
    graph = load(folder, duplicates="drop")
    assert graph.names[graph.entity("n4")] == "thing 4" and any("1 second texts" in note for note in graph.notes)
    digits = [(f"{h:0>8}", r, f"{t:0>8}") for h, r, t in ((h[1:], r, t[1:]) for h, r, t in TRIPLES)]
    texts = "".join(f"{k:08}\tSmith, Jane {k}\n" for k in range(12))
    for relation, name in (("knows", "Smith, Jane 3"), ("_hypernym", "Smith")):
        triples = [(h, relation if r == "rel0" else r, t) for h, r, t in digits]
        folder = write(tmp_path / relation, LAYOUTS["kg-bert"][0], triples=triples)
        (folder / "entity2text.txt").write_text(texts)
        assert load(folder).names[3] == name


def test_n_triples_by_their_grammar(tmp_path):
    label = "<http://www.w3.org/2000/01/rdf-schema#label>"
    lines = [f"<http://x/{h}><http://x/{r}> <http://x/{t}>." for h, r, t in TRIPLES]  # blanks may be missing
    lines += [
        f'<http://x/n0> {label} "nul"@de .',
        f'<http://x/n0> {label} "zero \\u00e9"@en-GB . # the wanted language wins',
        f'<http://x/n0> {label} "0" .',
        f'<http://x/n1> {label} "eins"@de .',
        f'<http://x/rel0> {label} "leads to" .',
        '<http://x/n2> <http://x/size> "1"^^<http://www.w3.org/2001/XMLSchema#integer> .',
        "<http://x/caf\\u00e9> <http://x/rel0> _:b.1 .",
        "_:b.1 <http://x/rel1> <http://x/caf\\u00e9> .",
    ]
    (tmp_path / "a.nt").write_text("\n".join(lines))
    graph = load(tmp_path / "a.nt", missing_texts="id")
    assert graph.names[graph.entity("http://x/n0")] == "zero \u00e9" and "http://x/caf\u00e9" in graph.entities
    assert graph.names[graph.entity("http://x/n1")] == "eins" and "_:b.1" in graph.entities
    assert graph.relation_texts[0] == "leads to"
    for note in ("1 literals", "1 resources have no label in 'en'", "2 further labels"):
        assert any(note in found for found in graph.notes)
    assert load(tmp_path / "a.nt", missing_texts="id", language="de").names[1:3] != graph.names[1:3]
    for wrong in ('<http://x/a> <http://x/b> "c"@9 .', "<http://x/a b> <http://x/b> <http://x/c> .", "_:a _:b _:c ."):
        (tmp_path / "b.nt").write_text("\n".join([lines[0], wrong]))
        with pytest.raises(UserError, match="line 2 is not N-Triples"):
            load(tmp_path / "b.nt")


def test_a_split_keeps_every_relation_or_says_so(tmp_path):
    rare = [("n1", "once", "n5"), ("n2", "twice", "n7"), ("n3", "twice", "n9")]
    for seed in range(3):
        (tmp_path / "graph.tsv").write_text(rows([*TRIPLES, *rare]))
        graph = load(tmp_path / "graph.tsv", seed=seed)
        assert len(graph.train[:, 1].unique()) == graph.num_relations and not any(
            "nothing can" in n for n in graph.notes
        )
    folder = write(tmp_path / "graph", LAYOUTS["kg-bert"][0])
    (folder / "test.tsv").write_text(rows([*TRIPLES[2:4], *rare]))
    assert any(
        "2 relations have no training triple" in note and "3 validation and test" in note for note in load(folder).notes
    )


@pytest.mark.skipif("TENFOLD_DATA" not in os.environ, reason="needs TENFOLD_DATA")
def test_the_real_sets():
    fb = load_graph("FB15k-237", missing_texts="id")
    assert fb.num_entities == 14_541 and fb.num_relations == 237  # CRLF: no doubled entities
    assert [len(fb.split(s)) for s in ("train", "valid", "test")] == [272_115, 17_535, 20_466]
    thin = load_graph("FB15K-237-10", truth="FB15k-237")
    assert (thin.num_entities, len(thin.train), len(thin.valid), len(thin.test)) == (11_512, 27_211, 15_624, 18_150)
    assert len(thin.hidden) > 200_000
    nell = load_graph("NELL23K")
    assert (nell.num_entities, nell.num_relations, len(nell.train)) == (22_925, 200, 25_445)
    words = load_graph("WN18RR")
    assert words.num_entities == 40_943 and "00260881" in words.entities
    seen = words.seen()
    assert int((~seen[words.test[:, 0]] | ~seen[words.test[:, 2]]).sum()) == 210
    assert drop_unseen(words).num_entities == 40_559
    assert words.names[words.entities.index("00260881")] and words.descriptions[words.entities.index("00260881")]
