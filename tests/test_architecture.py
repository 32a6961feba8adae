"""The house rules: arrows point down, never in a circle; imports stay light; public names are typed and explained."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import networkx

from tenfold.catalog import SYSTEMS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
DOCS = ROOT / "docs"
HEAVY = {"lightning", "torchmetrics", "sympy", "transformers", "torch._dynamo", "torch._inductor"}
FILES_OF_A_FOLDER = 14
"""Beside ``__init__``; more are asking for a wing."""
LINES_OF_A_FILE = 450


@cache
def modules():
    found = {}
    for path in sorted((SOURCE / "tenfold").rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return found


@cache
def imports():
    """For each module the modules of tenfold that it imports, anywhere in it."""
    found = {}
    for name, (path, tree) in modules().items():
        wanted = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative imports hide the layer"
                wanted |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[name] = {known for known in map(longest_module, wanted) if known}
    return found


def longest_module(name):
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name if name.startswith("tenfold") else ""


def room_of(name):
    return name.split(".")[2] if name.startswith("tenfold.systems.") else None


def test_arrows_point_down():
    for name, wanted in imports().items():
        for imported in wanted:
            if room_of(imported):
                assert room_of(name) == room_of(imported), f"{name} imports the system {imported}"
                part = name.split(".")[3:4]
                upper = {"cli": 2, "experiment": 1}
                ours, theirs = (upper.get(n.split(".")[3] if n.count(".") > 2 else "", 0) for n in (name, imported))
                assert ours >= theirs, f"{name} looks up to {imported} ({part})"
            if imported == "tenfold.catalog":
                assert name.startswith("tenfold.cli."), f"{name} looks up to the catalogue"
            if imported.startswith("tenfold.cli"):
                assert name == "tenfold.__main__" or name.startswith("tenfold.cli"), f"{name} looks up to the commands"


def test_there_is_no_circle_anywhere():
    graph = networkx.DiGraph((name, wanted) for name, found in imports().items() for wanted in found if wanted != name)
    graph.remove_edges_from([(a, b) for a, b in graph.edges if b == "tenfold"])  # its version
    circles = [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1]
    assert not circles


def test_no_folder_is_crowded_and_no_file_endless():
    count = Counter(path.parent for path, _ in modules().values() if path.name != "__init__.py")
    crowded = {str(folder.relative_to(SOURCE)): n for folder, n in count.items() if n > FILES_OF_A_FOLDER}
    assert not crowded
    long = {name: len(path.read_text().splitlines()) for name, (path, _) in modules().items()}
    assert not {name: lines for name, lines in long.items() if lines > LINES_OF_A_FILE}


def test_the_source_refers_to_nothing_that_is_not_here():
    for name, (path, _) in modules().items():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\(spec [0-9]|\bthe spec\b|spec section", text), f"{name} refers to a spec"


def test_the_tour_of_the_house_names_what_exists():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"\| `(src/[^`]+)` \|", page)
    assert len(named) >= 10
    for place in named:
        assert (ROOT / place).exists(), f"docs/architecture.md names {place}"


LIGHT = """
import sys
loaded = lambda *names: [name for name in names if name in sys.modules]
import tenfold
assert not loaded("torch", "lightning", "plotly", "sklearn", "pydantic"), "import tenfold"
from tenfold.cli import main
for command in (["list", "--json"], ["--help"], ["list"]):
    assert main(command) == 0
    assert not loaded("torch", "lightning", "pydantic", "transformers", "sympy"), command
from tenfold.catalog import SYSTEMS
for system in SYSTEMS:
    system.settings.PRESETS
    assert not loaded("torch", "lightning"), system.id
"""


def test_the_start_is_light():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def public_names():
    import tenfold

    yield from (("tenfold", name, getattr(tenfold, name)) for name in tenfold.__all__)
    for system in SYSTEMS:
        room = importlib.import_module(system.package)
        yield from ((system.package, name, getattr(room, name)) for name in room.__all__)


def takes_arguments(value):
    """Whether a class or function has arguments of its own; those of exceptions are messages."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return False
    parameters = inspect.signature(value).parameters.values()
    return any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def test_public_names_are_explained_and_in_the_docs():
    pages = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    problems = []
    for where, name, value in public_names():
        if inspect.isclass(value) or inspect.isfunction(value):
            text = inspect.getdoc(value) or ""
            if len(text) <= 40:
                problems.append(f"{where}.{name} has no docstring")
            takes = takes_arguments(value)
            if takes and "Args:" not in text and "Attributes:" not in text:
                problems.append(f"{where}.{name} does not explain its arguments")
        if name not in pages:
            problems.append(f"{where}.{name} is not in the docs")
    assert not problems


def test_every_public_package_lists_its_names():
    import tenfold

    assert "attach_exits" in dir(tenfold)
    assert not hasattr(tenfold, "does_not_exist")
    for system in SYSTEMS:
        room = importlib.import_module(system.package)
        assert set(room.__all__) <= set(dir(room)), system.id
        assert callable(room.load), system.id


USES = """
import torch
from torch import nn
from tenfold import UserError, attach_exits, fit, load_results

model = attach_exits(nn.Sequential(), ["0"], example=torch.zeros(1, 1))
results = load_results("results.json")
number: float = results.cost.seconds

attach_exits(3, taps=17, nonsense=True)  # wrong: arguments
results.claims[0].verdict = 3  # wrong: type
text: int = results.system  # wrong: type
"""


def test_a_type_checker_knows_the_public_names(tmp_path):
    from mypy import api

    (tmp_path / "uses.py").write_text(USES)
    (tmp_path / "does_not_exist.py").write_text("import tenfold\ntenfold.does_not_exist\n")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n"
        + "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in
                  ("torch", "numpy", "pydantic", "scipy", "sklearn", "PIL", "plotly", "jinja2", "rich", "lightning"))
    )  # fmt: skip
    said, _, _ = api.run(
        ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path), "--no-error-summary",
         str(tmp_path / "uses.py"), str(tmp_path / "does_not_exist.py")]
    )  # fmt: skip
    wrong = {int(line) for line in re.findall(r"uses\.py:(\d+): error", said)}
    expected = {n for n, line in enumerate(USES.splitlines(), 1) if "# wrong" in line}
    assert wrong == expected, said
    assert "does_not_exist.py:2: error" in said
