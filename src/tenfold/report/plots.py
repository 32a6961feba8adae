"""Plots of a results file as plotly figures without colours: the page gives them those of its theme."""

from collections.abc import Sequence
from typing import Any

from tenfold.results import Plot, Series


def figure(plot: Plot) -> dict[str, Any]:
    """A plot as plotly's JSON: ``{"data": [...], "layout": {...}}``."""
    import plotly.graph_objects as go

    shown = go.Figure(layout=go.Layout(template=None))
    for series in plot.series:
        shown.add_trace(_trace(plot, series))
    shown.update_layout(
        margin={"l": 56, "r": 16, "t": 8, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="x unified" if plot.kind == "line" and len(plot.series) > 1 else "closest",
        showlegend=len(plot.series) > 1,
        legend={"orientation": "h", "yanchor": "top", "y": -0.22, "xanchor": "left", "x": 0},
        barmode="group",
        bargap=0.3,
        xaxis={"title": {"text": plot.x_label}, "type": _axis_type(plot), "zeroline": False, "automargin": True},
        yaxis={"title": {"text": plot.y_label}, "zeroline": plot.kind == "bar", "automargin": True},
    )
    return shown.to_plotly_json()


def merged(plots: Sequence[tuple[str, Plot]]) -> Plot:
    """Plots of the same id from several runs, drawn into one; each series says which run it is of."""
    first = plots[0][1]
    series = [item.model_copy(update={"name": f"{run}: {item.name}"}) for run, plot in plots for item in plot.series]
    return first.model_copy(update={"series": series, "caption": first.caption})


def _axis_type(plot: Plot) -> str:
    if plot.kind == "bar" or any(isinstance(x, str) for series in plot.series for x in series.x):
        return "category"
    return "log" if plot.log_x else "linear"


def _trace(plot: Plot, series: Series) -> Any:
    import plotly.graph_objects as go

    error = {"type": "data", "array": series.error, "visible": True, "thickness": 1.2, "width": 3}
    common = {"name": series.name, "x": series.x, "y": series.y, "error_y": error if series.error else None}
    if plot.kind == "bar":
        return go.Bar(**common)
    return go.Scatter(**common, mode="markers" if plot.kind == "scatter" else _line_mode(series))


def _line_mode(series: Series) -> str:
    return "lines+markers" if len(series.x) <= 40 else "lines"
