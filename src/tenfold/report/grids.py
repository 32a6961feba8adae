"""Tables as the pages show them: cells with a rounded text, the exact value behind it and a key to sort by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.report.display import MISSING, Value, aligned, exact, is_number, listing
from tenfold.results import Results, Table

Metrics = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """A cell: the text shown, all digits of its number, and the number to sort by where it is one."""

    text: str
    exact: str = ""
    key: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table of a page; ``rows`` hold one cell per column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Whether each column is one of numbers: of the cells that are not missing, at least half hold one."""
        if not self.rows:
            return [False] * len(self.columns)
        columns = [[cell for cell in column if cell.text != MISSING] for column in zip(*self.rows, strict=True)]
        return [0 < len(cells) <= 2 * sum(cell.key is not None for cell in cells) for cells in columns]


def table_grid(table: Table) -> Grid:
    """A table of the results; the numbers of a column are rounded alike."""
    columns = [_cells(column) for column in zip(*table.rows, strict=True)]
    return Grid(table.title, table.columns, list(zip(*columns, strict=True)), table.caption)


def metrics_grids(metrics: Metrics) -> list[Grid]:
    """Metrics of one run: scalars with arms as columns, then those that are lists, a row for each arm of each.

    The numbers of a row are rounded alike. A table without rows is left out.
    """
    names, list_names = _metric_names(metrics.values())
    scalars = [
        [Cell(_words(name)), *_metric_cells([values.get(name) for values in metrics.values()])] for name in names
    ]
    lists = [
        [Cell(_words(name)), Cell(arm), *_metric_cells([values[name]])]
        for name in list_names
        for arm, values in metrics.items()
        if name in values
    ]
    grids = [Grid("Metrics", ["metric", *metrics], scalars), Grid("Lists", ["metric", "arm", "values"], lists)]
    return [grid for grid in grids if grid.rows]


def compared_metrics_grid(runs: Sequence[tuple[str, Results]]) -> Grid:
    """Metrics of several runs: runs as columns, a row for each arm of each metric."""
    arms = list(dict.fromkeys(arm for _, results in runs for arm in results.metrics))
    rows = []
    names, list_names = _metric_names(values for _, results in runs for values in results.metrics.values())
    for name in [*names, *list_names]:
        for arm in arms:
            found = [results.metrics.get(arm, {}) for _, results in runs]
            if any(name in values for values in found):
                rows.append([Cell(_words(name)), Cell(arm), *_metric_cells([values.get(name) for values in found])])
    return Grid("Metrics", ["metric", "arm", *(name for name, _ in runs)], rows)


def compared_facts_grid(title: str, runs: Sequence[tuple[str, Mapping[str, Value]]]) -> Grid:
    """Facts by name of several runs, such as their cost: runs as columns, facts as rows."""
    names = dict.fromkeys(name for _, facts in runs for name in facts)
    rows = [[Cell(name), *_cells([facts.get(name) for _, facts in runs])] for name in names]
    return Grid(title, ["", *(name for name, _ in runs)], rows)


def _cells(values: Sequence[Value]) -> list[Cell]:
    return [
        Cell(text, exact(value), float(value) if isinstance(value, int | float) and is_number(value) else None)
        for value, text in zip(values, aligned(values), strict=True)
    ]


def _metric_cells(values: Sequence[Any]) -> list[Cell]:
    if not any(isinstance(value, list) for value in values):
        return _cells(values)
    return [
        Cell(listing(value), ", ".join(exact(item) or MISSING for item in value))
        if isinstance(value, list)
        else _cells([value])[0]
        for value in values
    ]


def _metric_names(arms: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Names of the metrics that are scalars in every arm, and of the others, in order of appearance."""
    is_list: dict[str, bool] = {}
    for values in arms:
        for name, value in values.items():
            is_list[name] = is_list.get(name, False) or isinstance(value, list)
    return [name for name in is_list if not is_list[name]], [name for name in is_list if is_list[name]]


def _words(name: str) -> str:
    return name.replace("_", " ")
