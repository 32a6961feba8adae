"""Plots of a results file as plotly figures without colours: the page gives them those of its theme."""

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from tenfold.results import Plot, Series

COLOURS = 8
"""Colours of a theme: ``--series-0`` to ``--series-7`` of the style sheet."""

SYMBOLS = {
    "circle": "M4 0A4 4 0 1 1-4 0A4 4 0 1 1 4 0Z",
    "square": "M-3.5-3.5h7v7h-7Z",
    "diamond": "M0-5L5 0 0 5-5 0Z",
    "triangle-up": "M0-4.8L4.6 3.4H-4.6Z",
    "cross": "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3Z",
    "triangle-down": "M0 4.8L4.6-3.4H-4.6Z",
    "pentagon": "M0-4.8L4.6-1.5 2.8 3.9H-2.8L-4.6-1.5Z",
    "x": "M-4.4-2.2L-2.2-4.4 0-2.2 2.2-4.4 4.4-2.2 2.2 0 4.4 2.2 2.2 4.4 0 2.2-2.2 4.4-4.4 2.2-2.2 0Z",
}
"""Markers: plotly's name, and the shape that the legend shows, around the origin."""

_DASHES = {"solid": "", "dash": "6 3", "dot": "2 3", "dashdot": "7 3 2 3"}
_MOST_POINTS_WITH_MARKERS = 40
_LABEL_WIDTH = 48
"""Characters of a line of what a point says of itself."""


@dataclass(frozen=True)
class Look:
    """How the legend shows a series.

    Attributes:
        name: of the series.
        colour: number of its colour in the theme.
        marker: shape of its marker as an SVG path around the origin; empty where it has none.
        dashes: dashes of its line as SVG writes them; ``None`` where it has no line.
    """

    name: str
    colour: int
    marker: str
    dashes: str | None


@dataclass(frozen=True)
class Drawing:
    """A plot of a page.

    Attributes:
        id: unique within the page.
        plot: what is drawn.
        figure: plotly's JSON; each trace's ``meta`` is the number of its colour.
        looks: its legend, one entry per series.
    """

    id: str
    plot: Plot
    figure: dict[str, Any]
    looks: list[Look]


_VERDICT_SLOTS = {"holds": 2, "not settled": 5, "does not hold": 1}
"""Green, grey and orange of the theme, as the claims themselves wear."""


def draw(plots: Sequence[Plot]) -> list[Drawing]:
    """Draw plots; a series that stands in several plots has the same colour in all, so that arms can be followed."""
    slots: dict[str, int] = dict(_VERDICT_SLOTS)
    drawings = []
    for position, plot in enumerate(plots):
        drawn: list[int] = []
        for series in plot.series:
            slot = slots.get(series.name)
            if slot is None or slot in drawn:
                taken = {*drawn, *(slots[other.name] for other in plot.series if other.name in slots)}
                slot = next(free for free in range(len(taken) + 1) if free not in taken)
                slots.setdefault(series.name, slot)
            drawn.append(slot)
        traces = [_trace(plot, series, slot) for series, slot in zip(plot.series, drawn, strict=True)]
        looks = [_look(plot, series, slot) for series, slot in zip(plot.series, drawn, strict=True)]
        figure = go.Figure(data=traces, layout=_layout(plot)).to_plotly_json()
        drawings.append(Drawing(f"plot-{position}", plot, figure, looks))
    return drawings


def overlay(runs: Sequence[tuple[str, Sequence[Plot]]]) -> list[Plot]:
    """Plots of several runs, those of the same id and axes drawn into one; each series says which run it is of.

    Args:
        runs: names and plots of the runs.
    """
    groups: dict[tuple[object, ...], list[tuple[str, Plot]]] = {}
    for name, plots in runs:
        for plot in plots:
            groups.setdefault((plot.id, plot.kind, plot.x_label, plot.y_label), []).append((name, plot))
    return [
        group[0][1].model_copy(
            update={
                "series": [
                    series.model_copy(update={"name": f"{name}: {series.name}"})
                    for name, plot in group
                    for series in plot.series
                ],
                "log_x": all(plot.log_x for _, plot in group),
            }
        )
        for group in groups.values()
    ]


def _trace(plot: Plot, series: Series, slot: int) -> go.Bar | go.Scatter | go.Scatter3d:
    if plot.kind == "points":
        return go.Scatter3d(
            name=_literal(series.name),
            x=series.x,
            y=series.y,
            z=series.z,
            meta=slot % COLOURS,
            mode="markers",
            marker={"size": 1.8} | ({"color": series.colours} if series.colours is not None else {}),
        )
    common = {
        "name": _literal(series.name),
        "x": [_literal(x) if isinstance(x, str) else x for x in series.x],
        "y": series.y,
        "error_y": {"type": "data", "array": series.error, "thickness": 1.2, "width": 3} if series.error else None,
        "meta": slot % COLOURS,
        "hovertext": [_wrapped(label, _LABEL_WIDTH) for label in series.labels] if series.labels else None,
    }
    if plot.kind == "bar":
        return go.Bar(**common, marker={"pattern": {"shape": ["", "/", "\\", "x"][slot // COLOURS % 4]}})
    marker = {"symbol": list(SYMBOLS)[slot % len(SYMBOLS)], "size": 8}
    if plot.kind == "scatter":
        return go.Scatter(**common, mode="markers", marker=marker, opacity=0.8)
    line = {"width": 2, "dash": list(_DASHES)[slot // COLOURS % len(_DASHES)]}
    return go.Scatter(**common, mode="lines+markers" if _has_markers(series) else "lines", marker=marker, line=line)


def _look(plot: Plot, series: Series, slot: int) -> Look:
    shape = list(SYMBOLS.values())[slot % len(SYMBOLS)]
    if plot.kind == "line":
        dashes = list(_DASHES.values())[slot // COLOURS % len(_DASHES)]
        return Look(series.name, slot % COLOURS, shape if _has_markers(series) else "", dashes)
    return Look(series.name, slot % COLOURS, SYMBOLS["square"] if plot.kind == "bar" else shape, None)


def _has_markers(series: Series) -> bool:
    return len(series.x) <= _MOST_POINTS_WITH_MARKERS


def _layout(plot: Plot) -> go.Layout:
    if plot.kind == "points":
        axes = {"xaxis": plot.x_label, "yaxis": plot.y_label, "zaxis": plot.z_label}
        return go.Layout(
            margin={"l": 0, "r": 0, "t": 0, "b": 0},
            paper_bgcolor="rgba(0,0,0,0)",
            showlegend=False,
            scene={
                "aspectmode": "data",
                "dragmode": "turntable",
                # From behind the observer, a little above: what is far lies far.
                "camera": {"eye": {"x": 0.0, "y": -2.0, "z": 0.7}},
                **{axis: {"title": {"text": _literal(label)}, "showspikes": False} for axis, label in axes.items()},
            },
        )
    abscissae = [x for series in plot.series for x in series.x]
    numbers = [x for x in abscissae if not isinstance(x, str)]
    shared = len({tuple(series.x) for series in plot.series}) == 1
    if plot.kind == "bar" or len(numbers) < len(abscissae):
        categories = list(dict.fromkeys(_literal(x) if isinstance(x, str) else x for x in abscissae))
        texts = [_wrapped(str(x), 14) for x in dict.fromkeys(abscissae)]
        x_axis: dict[str, Any] = {"type": "category", "tickvals": categories, "ticktext": texts}
    elif plot.log_x and all(x > 0 for x in numbers):  # a logarithmic axis would silently drop the others
        x_axis = {"type": "log", "tickformat": "~s" if min(numbers, default=1) >= 1 else "~g"}
    else:
        x_axis = {"type": "linear", "exponentformat": "SI" if max(map(abs, numbers), default=0) >= 1000 else "power"}
    return go.Layout(
        margin={"l": 48, "r": 12, "t": 12, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="x unified" if plot.kind != "scatter" and shared and len(plot.series) > 1 else "closest",
        showlegend=False,  # the page has its own, which wraps and takes the keyboard
        barmode="group",
        bargap=0.28,
        bargroupgap=0.06,
        xaxis=x_axis | _axis(plot.x_label) | {"zeroline": False, "showgrid": plot.kind != "bar"},
        yaxis=_axis(plot.y_label) | {"zeroline": plot.kind == "bar"},
    )


def _axis(label: str) -> dict[str, Any]:
    return {"title": {"text": _literal(label), "standoff": 12}, "automargin": True, "hoverformat": ",.5~r"}


def _wrapped(text: str, width: int) -> str:
    return "<br>".join(map(_literal, textwrap.wrap(text, width, break_long_words=False)))


def _literal(text: str) -> str:
    """Text that plotly, which reads some HTML, shows as it stands."""
    return html.escape(text, quote=False)
