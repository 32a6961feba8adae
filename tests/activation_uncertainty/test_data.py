"""Rating and click data in their published layouts, whole and damaged."""

import gzip

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty import CriteoEncoder, load_criteo, load_movielens, synthetic_movielens
from tenfold.systems.activation_uncertainty.data.criteo import CATEGORIES, COUNTS, stream_criteo
from tenfold.systems.activation_uncertainty.data.task_data import load_task

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def synthetic():
    return synthetic_movielens(users=40, movies=30, rows=300, seed=1)


def test_what_is_generated_reads_back_from_the_layout_of_1m(synthetic, tmp_path):
    synthetic.write(tmp_path)
    found, made = load_movielens(tmp_path, "1m"), synthetic.ratings_table()
    assert found.sizes == made.sizes
    for name, column in made.columns.items():
        assert torch.equal(found.columns[name], column), name
    assert torch.equal(found.rating, made.rating)
    assert len(set(zip(found.columns["user"].tolist(), found.columns["movie"].tolist(), strict=True))) == 300
    assert len(load_movielens(tmp_path, "1m", rows=10)) == 10
    shares = found.columns["genres"].sum(1)
    torch.testing.assert_close(shares, torch.ones(300))


def test_titles_are_latin_1(synthetic, tmp_path):
    folder = synthetic.write(tmp_path)
    text = (folder / "movies.dat").read_bytes().replace(b"Film 3 ", "Misérables, Les ".encode("latin-1"))
    (folder / "movies.dat").write_bytes(text)
    assert len(load_movielens(tmp_path, "1m")) == 300


def test_the_layouts_of_100k_and_25m(tmp_path):
    old = tmp_path / "ml-100k"
    old.mkdir()
    (old / "u.data").write_text("7\t2\t3\t881250949\n9\t1\t5\t881250950\n7\t1\t1\t881250951\n")
    (old / "u.user").write_text("7|24|M|technician|85711\n9|53|F|other|94043\n")
    flags = "|".join("1" if n in (0, 4) else "0" for n in range(19))
    (old / "u.item").write_bytes(
        f"1|Toy Story (1995)|01-Jan-1995||http://x|0|{flags[:-2]}\n2|Mignon\u00e9 (1994)|01-Jan-1994||http://x|0|{flags[:-2]}\n".encode(
            "latin-1"
        )
    )
    found = load_movielens(tmp_path, "100k")
    assert found.columns["user"].tolist() == [0, 1, 0]
    assert found.columns["age"].tolist() == [1, 5, 1]
    assert found.columns["gender"].tolist() == [0, 1, 0]
    new = tmp_path / "ml-25m"
    new.mkdir()
    (new / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,3.5,1147868817\n")
    (new / "movies.csv").write_text(
        'movieId,title,genres\n296,"Pulp, Fiction",Comedy|Crime\n306,Red,(no genres listed)\n'
    )
    found = load_movielens(tmp_path, "25m")
    assert found.rating.tolist() == [5.0, 3.5]
    assert found.columns["genres"].sum(1).tolist() == [1.0, 0.0]
    assert "age" not in found.columns


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("ratings.dat", lambda b: b"", "at least one row"),
        ("ratings.dat", lambda b: b + b"1::2::3\n", "malformed"),
        ("ratings.dat", lambda b: b + b"1::2::good::9\n", "malformed"),
        ("ratings.dat", lambda b: b + b"1::2::9::9\n", "outside 0.5 to 5"),
        ("ratings.dat", lambda b: b + b"1::2::nan::9\n", "outside 0.5 to 5"),
        ("ratings.dat", lambda b: b + b"1::999::4::9\n", "movie 999"),
        ("ratings.dat", lambda b: b.replace(b"::", b","), "malformed|four columns"),
        ("users.dat", lambda b: b.replace(b"::", b":", 1), "line 1: 4 fields"),
        ("users.dat", lambda b: b"x" + b, "not a whole number"),
        ("movies.dat", None, "cannot read"),
    ],
)
def test_malformed_ratings_get_one_line(synthetic, tmp_path, file, change, message):
    folder = synthetic.write(tmp_path)
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        load_movielens(tmp_path, "1m")
    assert "\n" not in str(caught.value)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 5000), byte=st.integers(0, 255), place=st.integers(0, 4999))
def test_ratings_survive_any_damage(synthetic, tmp_path_factory, cut, byte, place):
    root = tmp_path_factory.mktemp("damage")
    folder = synthetic.write(root)
    content = bytearray((folder / "ratings.dat").read_bytes())
    content[place % len(content)] = byte
    (folder / "ratings.dat").write_bytes(bytes(content[: max(cut, 1)]))
    try:
        assert len(load_movielens(root, "1m")) > 0
    except UserError as error:
        assert "\n" not in str(error)


def click(label=1, counts=None, categories=None):
    counts = counts or [str(n) for n in range(13)]
    categories = categories or [f"{n:08x}" for n in range(26)]
    return "\t".join([*([] if label is None else [str(label)]), *counts, *categories])


def test_counts_missing_negative_and_large(tmp_path):
    rows = [click(1, ["", "-2", "0", "2", "3", "100"] + ["1"] * 7), click(0)]
    (tmp_path / "train.txt").write_text("\n".join(rows) + "\n")
    clicks = load_criteo(tmp_path / "train.txt", CriteoEncoder(minimum=1).fit(tmp_path / "train.txt"))
    expected = [0, -2, 0, 2, np.floor(np.log(3) ** 2), np.floor(np.log(100) ** 2)]
    assert clicks.counts[0, :6].tolist() == expected
    assert clicks.counts[0, 13:].tolist() == [1] + [0] * 12  # missing is not 0
    assert clicks.label.tolist() == [1, 0]


def test_rare_and_unknown_categories_share_a_place(tmp_path):
    often = [click(n % 2) for n in range(12)]
    rare = [click(0, categories=["ffffffff"] + [""] * 25)]
    (tmp_path / "train.txt").write_text("\n".join(often + rare) + "\n")
    encoder = CriteoEncoder(minimum=10).fit(tmp_path / "train.txt")
    clicks = load_criteo(tmp_path / "train.txt", encoder)
    assert clicks.categories[:12].unique().tolist() == [1]
    assert clicks.categories[12].unique().tolist() == [0]
    assert encoder.sizes == (2,) * 26
    hashed = CriteoEncoder(hashed=100)
    again = load_criteo(tmp_path / "train.txt", hashed)
    assert again.categories[:12].unique(dim=0).shape[0] == 1
    assert int(again.categories.max()) < 100
    assert (again.categories[12, 1:] == 0).all()


def test_streams_in_all_published_forms(tmp_path):
    rows = [click(n % 2) for n in range(5)]
    (tmp_path / "day_0.gz").write_bytes(gzip.compress(("\n".join(rows) + "\n").encode()))
    assert sum(len(batch) for batch in stream_criteo(tmp_path / "day_0.gz", rows=3)) == 3
    (tmp_path / "test.txt").write_text("\n".join(click(None) for _ in range(2)) + "\n")
    assert load_criteo(tmp_path / "test.txt", CriteoEncoder(hashed=9)).label is None
    header = ",".join(["label", *COUNTS, *CATEGORIES])
    (tmp_path / "x1.csv").write_text(header + "\n" + click().replace("\t", ",") + "\n")
    assert len(load_criteo(tmp_path / "x1.csv", CriteoEncoder(hashed=9))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot read|no rows"),
        (click() + "\n" + click() + "\tmore\n", "cannot read"),
        (click(7) + "\n", "neither 0 nor 1"),
        (click(1, ["x"] * 13) + "\n", "cannot read"),
        (click("") + "\n", "neither 0 nor 1"),
        (b"\x1f\x8b damaged", "cannot read"),
    ],
)
def test_malformed_clicks_get_one_line(tmp_path, content, message):
    name = "day_1.gz" if isinstance(content, bytes) else "train.txt"
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        load_criteo(tmp_path / name, CriteoEncoder(hashed=9))
    assert "\n" not in str(caught.value)


def test_parts_are_disjoint_and_the_same_every_time():
    data = load_task("ratings", rows=900, auxiliary=200)
    assert data.sizes == {"train": 600, "auxiliary": 200, "test": 100}
    pairs = {
        part: {(int(u), int(m)) for x, _, _ in data.batches(part) for u, m in zip(x["user"], x["movie"], strict=True)}
        for part in data.sizes
    }
    assert sum(map(len, pairs.values())) == len(set().union(*pairs.values())) == 900
    binary = load_task("ratings", rows=900, auxiliary=200, threshold=4.0)
    assert binary.target == "binary"
    assert torch.equal(binary.labels("test"), (data.labels("test") >= 4).float())
    with pytest.raises(UserError, match="leave none"):
        load_task("ratings", rows=900, auxiliary=800)
    with pytest.raises(UserError, match="for tables"):
        load_task("digits", rows=100)
