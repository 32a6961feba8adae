"""The three kinds of pages: of one run, of a tour, of runs side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from tenfold.files import write_atomically
from tenfold.report.display import Value, claim_scale, duration, exact, number, target
from tenfold.report.grids import compared_facts_grid, compared_metrics_grid, metrics_grids, table_grid
from tenfold.report.plots import draw, overlay
from tenfold.results import Claim, Cost, Plot, Results, Series, count_verdicts


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
    _write(
        path,
        "report.html",
        title or results.system,
        results.plots,
        results=results,
        tables=[table_grid(table) for table in results.tables],
        metrics=metrics_grids(results.metrics),
    )


def write_index(entries: Sequence[IndexEntry], path: str | Path) -> None:
    """Write one page about several runs, which links to theirs.

    Args:
        entries: the runs, in order.
        path: the page; written whole or not at all.

    Raises:
        tenfold.errors.UserError: the page cannot be written.
    """
    claims = [claim for entry in entries for claim in entry.results.claims]
    seconds = sum(entry.results.cost.seconds for entry in entries)
    _write(path, "index.html", "The tour", [_verdicts_plot(entries)], entries=entries, claims=claims, seconds=seconds)


def _verdicts_plot(entries: Sequence[IndexEntry]) -> Plot:
    systems = [entry.results.system for entry in entries]
    return Plot(
        id="verdicts",
        title="What the claims came to",
        kind="bar",
        x_label="system",
        y_label="claims",
        series=[
            Series(
                name=verdict,
                x=systems,
                y=[sum(claim.verdict == verdict for claim in entry.results.claims) for entry in entries],
            )
            for verdict in ("holds", "not settled", "does not hold")
        ],
        caption="Not settled: the 95 % interval includes the target, or so small a run has none.",
    )


def write_comparison(runs: Sequence[tuple[str, Results]], path: str | Path) -> None:
    """Write one page that sets several runs side by side; plots of the same id and axes are drawn into one.

    Args:
        runs: names and results; the names need not differ.
        path: the page; written whole or not at all.

    Raises:
        tenfold.errors.UserError: the page cannot be written.
    """
    claims: dict[tuple[str, str], list[Claim | None]] = {}
    for position, (_, results) in enumerate(runs):
        for claim in results.claims:
            claims.setdefault((results.system, claim.id), [None] * len(runs))[position] = claim
    _write(
        path,
        "comparison.html",
        "Comparison of runs",
        overlay([(name, results.plots) for name, results in runs]),
        runs=runs,
        claims=list(claims.values()),
        differences=differences(runs),
        grids=[
            compared_metrics_grid(runs),
            compared_facts_grid("Cost", [(name, _cost_facts(results.cost)) for name, results in runs]),
            compared_facts_grid("Environment", [(name, results.environment) for name, results in runs]),
        ],
    )


def differences(runs: Sequence[tuple[str, Results]]) -> str:
    """In what runs differ that should be the same where their numbers are compared; empty where they do not."""
    facts = {
        "system": [results.system for _, results in runs],
        "data": [str(results.environment.get("data", "")) for _, results in runs],
        "preset": [results.preset for _, results in runs],
    }
    other = [f"{name} ({', '.join(dict.fromkeys(values))})" for name, values in facts.items() if len(set(values)) > 1]
    return f"These runs differ in {' and '.join(other)}: their numbers are not of the same thing." if other else ""


def _write(path: str | Path, template: str, title: str, plots: Sequence[Plot], **values: Any) -> None:
    drawings = draw(plots)
    page = (
        _environment()
        .get_template(template)
        .render(
            title=title,
            drawings=drawings,
            figures=_embedded_json({drawing.id: drawing.figure for drawing in drawings}),
            style=_resource("page.css"),
            script=_resource("page.js"),
            plotly=get_plotlyjs() if drawings else "",
            **values,
        )
    )
    write_atomically(path, page)


_VERDICT_CLASSES = {"holds": "holds", "not settled": "open", "does not hold": "fails"}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tenfold.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "exact": exact,
        "target": target,
        "duration": duration,
        "claim_scale": claim_scale,
        "count_verdicts": count_verdicts,
        "verdict_class": lambda claim: _VERDICT_CLASSES[claim.verdict],
        "cost_facts": _cost_facts,
    }
    return environment


def _cost_facts(cost: Cost) -> dict[str, Value]:
    return {
        "parameters": cost.params,
        "operations of one input": cost.flops,
        "time of the run": duration(cost.seconds),
        "peak memory": f"{number(cost.peak_memory_mb)} MiB",
    }


def _resource(name: str) -> str:
    return (files("tenfold.report") / "templates" / name).read_text(encoding="utf-8")


def _embedded_json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
