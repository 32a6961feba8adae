"""A reader's own rows and network on the command line: ids to the last digit, types by the whole file, nothing lost."""

import json
from pathlib import Path

import numpy as np
import pytest

from tenfold.cli import main

arrow = pytest.importorskip("pyarrow")
SHARED = Path(__file__).parents[1] / "shared"
MODEL, ROWS = "networks_for_tests:tabular", "networks_for_tests:tabular_rows"
VERB = ("activation-uncertainty",)
COLUMNS = ("--columns", "[a, b, c, d, e]")
PARTS = ("--parts", "[inputs, ids]")


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def done(capsys, *arguments):
    code, out, err = call(capsys, *VERB, *arguments)
    assert code == 0, err
    return json.loads(out)


def refused(capsys, *arguments):
    code, out, err = call(capsys, *VERB, *arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    return err


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(SHARED))


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    """Labels and estimator of the reader's model, as the README makes them."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SHARED))
        label = ["label", MODEL, ROWS, *PARTS, "--passes", "20", "--out", str(folder / "labels")]
        assert main([*VERB, *label]) == 0
        fit = ["fit", MODEL, ROWS, str(folder / "labels"), *PARTS, "--out", str(folder / "estimator")]
        assert main([*VERB, *fit]) == 0
    return folder / "estimator"


@pytest.fixture
def table():
    """Five columns of numbers by name."""
    return dict(zip("abcde", np.random.default_rng(0).normal(size=(5, 50)), strict=True))


def write(path, columns):
    from pyarrow import csv, parquet

    made = arrow.table(columns)
    parquet.write_table(made, path) if path.suffix == ".parquet" else csv.write_csv(made, path)
    return path


def ids_of(path):
    from pyarrow import csv, parquet

    if path.suffix == ".parquet":
        return parquet.read_table(path).column("id").to_pylist()
    text = csv.ConvertOptions(default_column_type=arrow.string())
    return csv.read_csv(path, convert_options=text).column("id").to_pylist()


WHOLE = [2**53 + 1 + n for n in range(49)] + [9_223_372_036_854_775_807]
TEXT = ["C0600", "007", "Ünïcode, with a comma", *(f"row {n}" for n in range(47))]


@pytest.mark.parametrize("ids", [WHOLE, TEXT, [2**64 - 1 - n for n in range(50)]], ids=["whole", "text", "unsigned"])
@pytest.mark.parametrize("read", [".csv", ".parquet"])
@pytest.mark.parametrize("written", [".csv", ".parquet"])
def test_ids_come_back_to_the_last_character(estimator, table, tmp_path, capsys, ids, read, written):
    column = arrow.array(ids, arrow.uint64()) if ids[0] == 2**64 - 1 else ids
    rows = write(tmp_path / f"rows{read}", {"customer": column, **table})
    out = tmp_path / f"scores{written}"
    done(capsys, "score", MODEL, rows, "--estimator", estimator, "--id_column", "customer", *COLUMNS, "--out", out)
    assert [str(found) for found in ids_of(out)] == [str(wanted) for wanted in ids]
    if ids is WHOLE and written == ".parquet":
        assert isinstance(ids_of(out)[0], int)


def test_labels_keep_ids_too(table, tmp_path, capsys):
    from tenfold.systems.activation_uncertainty import read_labels

    for name, ids in (("whole", WHOLE), ("text", TEXT)):
        rows = write(tmp_path / f"{name}.parquet", {"customer": ids, **table})
        arguments = ("label", MODEL, rows, "--passes", "3", "--per_sample", "true", "--id_column", "customer", *COLUMNS)
        done(capsys, *arguments, "--out", tmp_path / name)
        found = read_labels(tmp_path / name).ids.tolist()
        assert sorted(found) == found
        assert set(found) == set(ids)
    rows = write(tmp_path / "twice.csv", {"customer": ["a"] * 50, **table})
    named = ("--id_column", "customer", *COLUMNS)
    done(capsys, "label", MODEL, rows, *named, "--passes", "3", "--out", tmp_path / "twice")
    assert "id a comes twice" in refused(capsys, "fit", MODEL, rows, tmp_path / "twice", *named)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (np.arange(50) + 0.5, "holds double, in which two rows may look alike"),
        ([None, *range(49)], "is missing in row 0"),
        ([[1]] * 50, "ids are whole numbers or texts"),
    ],
)
def test_ids_that_are_none_get_one_line(estimator, table, tmp_path, capsys, column, message):
    rows = write(tmp_path / "rows.parquet", {"customer": column, **table})
    line = refused(capsys, "score", MODEL, rows, "--estimator", estimator, "--id_column", "customer", *COLUMNS)
    assert message in line


def test_types_of_a_csv_file_are_those_of_its_whole_columns(estimator, tmp_path, capsys):
    """Whole numbers in the first block, a fraction and a text id long after it."""
    rows = tmp_path / "rows.csv"
    body = "".join(f"{n},1,2,3,4,5\n" for n in range(120_000))
    rows.write_text(f"key,a,b,c,d,e\n{body}last,33.5,2,3,4,5\n")
    out = tmp_path / "scores.parquet"
    answer = done(capsys, "score", MODEL, rows, "--estimator", estimator, "--id_column", "key", "--out", out)
    assert answer["rows"] == 120_001
    assert ids_of(out)[-2:] == ["119999", "last"]


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("a,b\n1,2\n", COLUMNS, "no column 'c'"),
        ("a,a,b,c,d\n1,2,3,4,5\n", (), "column 'a' 2 times"),
        ("a,b,c,d,e\n1,2,3,4,5\n1,nan,3,4,5\n", (), "NaN or infinite in row 1"),
        ("a,b,c,d,e\n1,2,3,4,\n", (), "missing, NaN or infinite in row 0"),
        ("a,b,c,d,e\n1,2,3,4,x\n", (), "cannot read"),
        ("a,b,c,d,e\n1,2\n", (), "cannot read"),
        ("a,b,c,d\n1,2,3,4\n", (), "cannot be called on a tensor (1, 4)"),
        ("", (), "cannot read"),
        ("a,b,c,d,e\n", (), "holds no rows"),
        ("a,b,c,d,e\n1,2,3,4,5\n", PARTS, "--parts is for batches"),
    ],
)
def test_wrong_tables_get_one_line_and_leave_nothing(estimator, tmp_path, capsys, content, more, message):
    rows, out = tmp_path / "rows.csv", tmp_path / "scores.csv"
    rows.write_text(content)
    line = refused(capsys, "score", MODEL, rows, "--estimator", estimator, "--out", out, *more)
    assert message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]


def test_what_is_read_is_not_overwritten(estimator, table, tmp_path, capsys):
    rows = write(tmp_path / "rows.csv", table)
    before = rows.read_bytes()
    (tmp_path / "link.csv").symlink_to(rows)
    for out in (rows, tmp_path / "link.csv", tmp_path / "." / "rows.csv"):
        line = refused(capsys, "score", MODEL, rows, "--estimator", estimator, "--out", out)
        assert "is the file that is read" in line
    assert rows.read_bytes() == before
    line = refused(capsys, "fit", MODEL, ROWS, estimator.parent / "labels", *PARTS, "--out", estimator)
    assert "holds an estimator already" in line


def test_labels_of_other_rows_are_not_given_back(table, tmp_path, capsys):
    rows = write(tmp_path / "rows.csv", table)
    arguments = ("label", MODEL, rows, "--passes", "3", "--out", tmp_path / "labels")
    assert done(capsys, *arguments) == done(capsys, *arguments)
    last = table["a"].copy()
    last[-1] += 1
    write(rows, {**table, "a": last})
    assert "labels of other rows" in refused(capsys, *arguments)


def test_batches_of_a_function_are_explained(tmp_path, capsys):
    arguments = ("label", MODEL, ROWS, "--passes", "3", "--out", tmp_path / "labels")
    assert "say what each of them is, as with --parts" in refused(capsys, *arguments)
    assert "inputs, ids and labels; got 'x'" in refused(capsys, *arguments, "--parts", "[inputs, x]")
    assert "TypeError" not in refused(capsys, *arguments, "--parts", "[inputs, inputs]")


def test_models_of_a_readers_own(estimator, table, tmp_path, capsys):
    other = "networks_for_tests:tabular_without_dropout"
    rows = write(tmp_path / "rows.csv", table)
    assert "another model" in refused(capsys, "score", other, rows, "--estimator", estimator)
    assert "has no dropout" in refused(capsys, "label", other, rows, "--out", tmp_path / "none")
    added = done(capsys, "label", other, rows, "--add", "['1']", "--rate", "0.1", "--passes", "5", "--out",
                 tmp_path / "added")  # fmt: skip
    assert added["dropout"] == ["1"]
    done(capsys, "fit", other, rows, tmp_path / "added", "--out", tmp_path / "added-estimator")
    scored = done(capsys, "score", other, rows, "--estimator", tmp_path / "added-estimator", "--out",
                  tmp_path / "scores.csv")  # fmt: skip
    assert scored["rows"] == 50
    assert "--weights is for" in refused(capsys, "score", tmp_path, rows, "--weights", rows)
