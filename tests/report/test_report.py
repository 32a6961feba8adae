"""Report pages: everything is in them, nothing comes from outside, and a browser draws them."""

import re
import shutil
import subprocess

import pytest

from tenfold.errors import UserError
from tenfold.report import IndexEntry, write_comparison, write_index, write_report
from tenfold.report.display import number
from tenfold.results import Cost, Plot, Results, Series, Table, claim

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>alert(1)</script> & more"


def make(**changes):
    values = {
        "system": "boosted-exits",
        "preset": "tiny",
        "seed": 0,
        "version": "0.1.0",
        "claims": [
            claim("gain", "It gains", value=1.9, target=">= 0.5", unit="points", baseline="joint", interval=(1.0, 2.8)),
            claim("speed", HOSTILE, value=None, target="> 0", unit="%", baseline="full", note="not measured"),
        ],
        "metrics": {"ours": {"accuracy": 0.91234567, "curve": [1.0, None]}, "joint": {"accuracy": None}},
        "cost": Cost(params=29594, flops=940048, seconds=1.5, peak_memory_mb=100.0),
        "environment": {"torch": "2", "threads": 2, "note": HOSTILE},
        "plots": [
            Plot(id="curve", title="Curve", kind="line", x_label="cost", y_label="y", log_x=True, caption=HOSTILE,
                 series=[Series(name="ours", x=[1, 10, 100], y=[0.5, None, 0.9], error=[0.1, 0.1, 0.1]),
                         Series(name=HOSTILE, x=[1, 10], y=[0.4, 0.8])]),
            Plot(id="exits", title="Exits", kind="bar", x_label="exit", y_label="share",
                 series=[Series(name="ours", x=["exit 1", "exit 2"], y=[60, 40])]),
            Plot(id="cloud", title="Cloud", kind="scatter", x_label="a", y_label="b",
                 series=[Series(name="ours", x=[1, 2], y=[2, 1])]),
        ],
        "tables": [Table(id="t", title="A table", columns=["arm", "value"], rows=[["b", 10.0], ["c", None]])],
        "notes": [HOSTILE],
    }  # fmt: skip
    return Results.model_validate(values | changes)


def without_plotly(page):
    """The page less the library's own script, which is by far its longest."""
    scripts = re.findall(r"<script>.*?</script>", page, flags=re.S)
    longest = max(scripts, key=len)
    return page.replace(longest, "") if len(longest) > 100_000 else page


@pytest.fixture
def pages(tmp_path):
    write_report(make(), tmp_path / "report.html")
    write_index([IndexEntry(make(), "run/report.html", "what it does")], tmp_path / "index.html")
    write_comparison([("one", make()), ("two", make(claims=[]))], tmp_path / "comparison.html")
    write_report(make(claims=[], plots=[], tables=[], notes=[], metrics={}), tmp_path / "bare.html")
    return tmp_path


def test_a_page_tells_everything_and_asks_for_nothing(pages):
    text = (pages / "report.html").read_text()
    for expected in ("It gains", "1.9", "1 to 2.8", "does not hold", "not measured", "0.9123", "29,594"):
        assert expected in text
    for path in pages.glob("*.html"):
        own = without_plotly(path.read_text())
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", own)
        assert "Content-Security-Policy" in own
        assert "<script>alert(1)" not in own


def test_verdicts_are_words_not_colours_alone(pages):
    own = without_plotly((pages / "report.html").read_text())
    assert len(re.findall(r"</svg>\s*holds</span>", own)) == 1
    assert len(re.findall(r"</svg>\s*does not hold</span>", own)) == 1


def test_index_links_to_the_runs(pages):
    assert 'href="run/report.html"' in (pages / "index.html").read_text()


def test_comparison_draws_the_same_plots_into_one(pages):
    own = without_plotly((pages / "comparison.html").read_text())
    assert own.count('class="canvas"') == 3
    assert "one: ours" in own
    assert "two: ours" in own


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_report(make(), tmp_path / "missing" / "report.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (3, "3"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (1e-7, "1e−7"),
        (2.0, "2"),
    ],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize(
    ("page", "plots", "traces"), [("report", 3, 4), ("index", 0, 0), ("comparison", 3, 8), ("bare", 0, 0)]
)
def test_a_browser_draws_every_plot_without_an_error(pages, page, plots, traces):
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={pages / 'profile'}", "--virtual-time-budget=8000", "--enable-logging=stderr", "--dump-dom",
        (pages / f"{page}.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    drawn = done.stdout[done.stdout.index("<main") : done.stdout.index("</main>")]
    assert drawn.count('class="plot-container') == plots
    assert drawn.count('class="trace ') >= traces
    assert 'data-theme="' in done.stdout
