"""Every command of the README and of the page about one's own model, on a stranger's things."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from tenfold.cli import main

arrow = pytest.importorskip("pyarrow")
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/activation-uncertainty-own-model.md"
README = ROOT / "src/tenfold/systems/activation_uncertainty/README.md"


def commands(page):
    """The lines of its shell blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def write_table(path, ids):
    from pyarrow import parquet

    random = np.random.default_rng(0)
    columns = {name: random.normal(size=len(ids)) for name in ("age", "income", "tenure")}
    parquet.write_table(arrow.table({"customer": ids, **columns}), path)


@pytest.mark.parametrize(
    "ids",
    [[9_007_199_254_740_993 + 10**15 * n for n in range(200)], [f"C{n:04}" for n in range(200)]],
    ids=["whole numbers", "texts"],
)
def test_a_table_and_a_model_from_a_function(ids, tmp_path, monkeypatch, capsys):
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("nets", None)
    (code,) = re.findall(r'```python title="nets.py"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "nets.py").write_text(code)
    write_table(tmp_path / "held_out.parquet", ids)
    for words in commands(PAGE):
        assert words[0] == "tenfold"
        assert main(words[1:]) == 0, (words, capsys.readouterr().err)
    assert parquet.read_table("scores.parquet").column("id").to_pylist() == ids
    sys.modules.pop("nets", None)


def test_the_verbs_of_the_readme(finished_run, tmp_path, monkeypatch, capsys):
    from PIL import Image

    run = finished_run("activation-uncertainty").absolute()
    monkeypatch.chdir(tmp_path)
    np.save("held_out.npy", np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8))
    Image.new("L", (8, 8), 100).save("image.png")
    replaced = {"RUN": str(run), "MODEL": str(run), "DATA": "held_out.npy", "rows.parquet": "held_out.npy"}
    verbs = [words[1:] for words in commands(README) if words[0] == "tenfold" and words[1] != "run"]
    assert [words[0] for words in verbs] == ["predict", "export", *["activation-uncertainty"] * 3]
    for words in verbs:
        words = [replaced.get(word, word) for word in words] + (["--out", "onnx"] if words[0] == "export" else [])
        assert main(words) == 0, (words, capsys.readouterr().err)
    assert [path.stem for path in Path().glob("scores.*")] == ["scores"]
