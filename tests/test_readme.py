"""The README does what it says."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["outputs"].exits.shape == (64,)
    assert names["outputs"].stage_sizes[0] == 64


def test_two_commands_stand_on_the_first_screen_and_ci_runs_them():
    first = "\n".join(README.splitlines()[:20])
    assert re.search(r"^pip install uv && uv run tenfold tour", first, re.MULTILINE)
    assert re.search(r"^pip install uv && uv run pytest", first, re.MULTILINE)
    assert "grep -m1" in (ROOT / ".ci" / "run").read_text()


def test_files_that_are_named_exist():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page.name} points to {target}"
