"""A run's results with everything that a page can show, texts that try to break out of it, and the pages of them."""

import numpy as np
import pytest

from tenfold.report import IndexEntry, write_comparison, write_index, write_report
from tenfold.report.pictures import image_grid, picture
from tenfold.results import Cost, Plot, Results, Series, Table, claim

HOSTILE = "</script><script>alert(1)</script> <b>& more</b> ' \""


def make(**changes):
    values = {
        "system": "boosted-exits",
        "preset": "tiny",
        "seed": 7,
        "version": "0.1.0",
        "claims": [
            claim(
                "gain", "It gains", value=1.98765, target=">= -0.5", unit="points", baseline="joint", interval=(1, 2.8)
            ),
            claim("speed", HOSTILE, value=None, target="> 0", unit="%", baseline="full", note="because " + HOSTILE),
            claim("cost", "It costs less", value=-1, target="> 0", unit="%", baseline="full", chance=False),
        ],
        "metrics": {
            "ours": {"mean_accuracy": 0.91234567, "curve": [1.0, None], "long": [float(n) for n in range(9)]},
            "joint": {"mean_accuracy": None, "only_here": 3},
        },
        "cost": Cost(params=29594, flops=3.25e9, seconds=65.0, peak_memory_mb=100.0),
        "environment": {"torch": "2.15.0", "threads": 20240101, "gpu": None, "note": HOSTILE},
        "plots": [
            Plot(
                id="curve", title="Curve", kind="line", x_label="cost", y_label="y", log_x=True, caption=HOSTILE,
                series=[
                    Series(name="ours", x=[1, 10, 100], y=[0.5, None, 0.9], error=[0.1, 0.1, 0.1]),
                    Series(name=HOSTILE, x=[1, 10], y=[0.4, 0.8]),
                ],
            ),
            Plot(
                id="exits", title="Exits", kind="bar", x_label="exit", y_label="share",
                series=[Series(name="ours", x=[HOSTILE, "exit 2"], y=[60, 40], error=[1, 2])],
            ),
            Plot(
                id="cloud", title="Cloud", kind="scatter", x_label="a", y_label="b",
                series=[Series(name="other", x=[1, 2], y=[2, 1], labels=[HOSTILE, "width=16"])],
            ),
        ],
        "tables": [
            Table(
                id="t", title="A table", caption="of rows", columns=["arm", "value"],
                rows=[["b", 10.0], ["c", None], ["a", 9.25], [HOSTILE, -1.5]],
            ),
            Table(id="none", title="An empty table", columns=["arm", "value"], rows=[]),
        ],
        "pictures": [
            picture("set", "A set", image_grid(np.zeros((2, 1, 4, 4), np.uint8)), alt=HOSTILE, caption=HOSTILE)
        ],
        "summary": "The same at 47 % of the cost.",
        "notes": ["the size of the test set", HOSTILE],
    }  # fmt: skip
    return Results.model_validate(values | changes)


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """A folder with ``report.html``, ``index.html``, ``comparison.html``, and ``bare.html`` of an empty run."""
    folder = tmp_path_factory.mktemp("pages")
    bare = make(claims=[], plots=[], tables=[], pictures=[], notes=[], metrics={}, environment={}, summary="")
    write_report(make(), folder / "report.html", title="A title " + HOSTILE)
    write_report(bare, folder / "bare.html")
    write_index([IndexEntry(make(), "run/report.html", "what it does " + HOSTILE)], folder / "index.html")
    write_comparison([("one", make()), ("two", make(seed=8)), ("one", bare)], folder / "comparison.html")
    return folder


@pytest.fixture
def results_of():
    """Makes results; the arguments replace fields."""
    return make


@pytest.fixture
def hostile():
    """The text that every field of the results holds somewhere."""
    return HOSTILE
