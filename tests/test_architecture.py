"""The house rules: arrows point down, imports stay light, public names are explained."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.catalog import SYSTEMS

SOURCE = Path(__file__).parents[1] / "src"
DOCS = Path(__file__).parents[1] / "docs"
SYSTEM_ROOMS = "tenfold.systems."


def modules():
    for path in sorted((SOURCE / "tenfold").rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imported_by(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name):
    return name.split(".")[2] if name.startswith(SYSTEM_ROOMS) else None


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_arrows_point_down(name, path):
    for imported in imported_by(path):
        if room_of(imported):
            assert room_of(name) == room_of(imported), f"{name} imports the system {imported}"
        if imported.startswith("tenfold.catalog"):
            assert name == "tenfold.cli", f"{name} looks up to the catalogue"
        assert not imported.startswith("tenfold.cli") or name == "tenfold.__main__"


def loaded_by(statement):
    code = f"{statement}; import sys; print(*sorted(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_of_the_package_loads_nothing_heavy():
    assert not loaded_by("import tenfold") & {"torch", "lightning", "plotly", "sklearn", "pydantic"}


def test_listing_the_systems_does_not_load_torch():
    assert "torch" not in loaded_by("import tenfold.cli as cli; cli.main(['list', '--json'])")


def public_names():
    import tenfold

    yield from (("tenfold", name, getattr(tenfold, name)) for name in tenfold.__all__)
    for system in SYSTEMS:
        room = importlib.import_module(system.package)
        yield from ((system.package, name, getattr(room, name)) for name in room.__all__)


@pytest.mark.parametrize(
    ("where", "name", "value"), public_names(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_public_names_are_explained_and_in_the_docs(where, name, value):
    if inspect.isclass(value) or inspect.isfunction(value):
        text = inspect.getdoc(value) or ""
        assert len(text) > 40, f"{where}.{name} has no docstring"
        exception = inspect.isclass(value) and issubclass(value, Exception)
        if not exception and any(p != "self" for p in inspect.signature(value).parameters):
            assert "Args:" in text or "Attributes:" in text, f"{where}.{name} does not explain its arguments"
    pages = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    assert name in pages, f"{where}.{name} is not in the docs"
