"""Pages of results: one self-contained HTML file each, which opens without a network."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tenfold.report.plots import figure, merged
from tenfold.results import Plot, Results


@dataclass(frozen=True)
class IndexEntry:
    """A run on an index page.

    Attributes:
        results: of the run.
        href: where its own page is, relative to the index.
        summary: what the system does, in a line.
    """

    results: Results
    href: str
    summary: str


def write_report(results: Results, path: str | Path, title: str | None = None) -> None:
    """Write the page of one run.

    Args:
        results: of the run.
        path: the page; written whole or not at all.
        title: heading; the system's name where ``None``.

    Raises:
        tenfold.errors.UserError: the page cannot be written.
    """
    _write(path, "report.html", title or results.system, results.plots, results=results)


def write_index(entries: Sequence[IndexEntry], path: str | Path) -> None:
    """Write one page about several runs, which links to theirs.

    Args:
        entries: the runs, in order.
        path: the page.

    Raises:
        tenfold.errors.UserError: the page cannot be written.
    """
    _write(path, "index.html", "tenfold", [], entries=entries)


def write_comparison(runs: Sequence[tuple[str, Results]], path: str | Path) -> None:
    """Write one page that sets several runs side by side; plots of the same id are drawn into one.

    Args:
        runs: names and results.
        path: the page.

    Raises:
        tenfold.errors.UserError: the page cannot be written.
    """
    by_id: dict[str, list[tuple[str, Plot]]] = {}
    for name, results in runs:
        for plot in results.plots:
            by_id.setdefault(plot.id, []).append((name, plot))
    claims: dict[str, dict[str, Any]] = {}
    for name, results in runs:
        for claim in results.claims:
            claims.setdefault(claim.statement, {})[name] = claim
    plots = [merged(found) for found in by_id.values()]
    _write(path, "comparison.html", "Comparison of runs", plots, runs=runs, claims=claims)


def _write(path: str | Path, template: str, title: str, plots: Sequence[Plot], **values: Any) -> None:
    from tenfold.run import write_atomically

    page = (
        _environment()
        .get_template(template)
        .render(
            title=title,
            plots=plots,
            figures=_embedded_json({plot.id: figure(plot) for plot in plots}),
            style=_resource("page.css"),
            script=_resource("page.js"),
            plotly=_plotly() if plots else "",
            **values,
        )
    )
    write_atomically(path, page)


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tenfold.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = number
    environment.filters["exact"] = lambda value: "" if value is None else repr(value)
    return environment


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _resource(name: str) -> str:
    return (files("tenfold.report") / "templates" / name).read_text(encoding="utf-8")


def _embedded_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or begins a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def number(value: Any) -> str:
    """A number for people: four digits, thousands apart; other values as they are."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4g}"
