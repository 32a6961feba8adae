"""The Python of the guide runs as it stands there."""

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "docs"
PAGES = [page for page in sorted(GUIDE.glob("*.md")) if "```python" in page.read_text(encoding="utf-8")]


def blocks():
    for page in PAGES:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
            yield pytest.param(code, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("code", blocks())
def test_every_block_runs_on_its_own(code, capsys):
    exec(compile(code, "guide", "exec"), {})
