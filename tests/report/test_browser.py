"""A browser draws the pages, and their buttons work."""

import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


def open_page(path, profile):
    """The page's elements after its scripts ran, and what the browser logged."""
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom",
        path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<main" in done.stdout, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("page", "plots", "traces"), [("report", 3, 4), ("index", 1, 3), ("comparison", 3, 8), ("bare", 0, 0)]
)
def test_every_plot_is_drawn_without_an_error(pages, tmp_path, page, plots, traces):
    elements, log = open_page(pages / f"{page}.html", tmp_path)
    assert "CONSOLE" not in log
    drawn = elements[elements.index("<main") : elements.index("</main>")]
    assert len(re.findall(r'<div class="canvas[^>]*>.{0,400}?<svg class="main-svg"', drawn, flags=re.S)) == plots
    shown = len(re.findall(r'class="trace (scatter|bars)', drawn))
    assert shown == traces
    assert "<b>" not in drawn, "plotly read a text as HTML"


DRIVER = """<script>
const seen = {};
const canvas = document.getElementById("plot-0");
const lines = () => canvas.querySelectorAll(".trace.scatter").length;
const body = document.querySelector("#tables table").tBodies[0];
const column = () => [...body.rows].map((row) => row.cells[1].textContent);
const look = () => [getComputedStyle(document.body).color, canvas.querySelector(".trace .point").style.fill];
seen.lines = [lines()];
const legend = document.querySelector(".legend button");
for (const step of [1, 2]) { legend.click(); seen.lines.push(lines()); }
seen.themes = [look()];
for (const step of [1, 2]) { document.getElementById("theme").click(); seen.themes.push(look()); }
seen.columns = [column()];
const head = document.querySelector("#tables thead th:nth-child(2) button");
for (const step of [1, 2]) { head.click(); seen.columns.push(column()); }
window.dispatchEvent(new Event("beforeprint"));
seen.printed = [canvas.querySelector(".main-svg").getAttribute("width"), ...look()];
window.dispatchEvent(new Event("afterprint"));
seen.pictures = [...document.querySelectorAll("#pictures img")].map((image) => image.naturalWidth);
seen.overflow = document.documentElement.scrollWidth - window.innerWidth;
document.body.dataset.seen = JSON.stringify(seen);
</script></body>"""


def test_buttons_toggle_series_change_the_theme_and_sort(pages, tmp_path):
    page = (pages / "report.html").read_text(encoding="utf-8")
    (tmp_path / "driven.html").write_text(page.replace("</body>", DRIVER), encoding="utf-8")
    elements, log = open_page(tmp_path / "driven.html", tmp_path / "profile")
    assert "CONSOLE" not in log
    seen = json.loads(re.search(r'data-seen="([^"]*)"', elements)[1].replace("&quot;", '"'))
    assert seen["lines"] == [2, 1, 2]
    first, second, third = seen["themes"]
    assert first == third and first[0] != second[0] and first[1] != second[1]
    assert seen["columns"] == [
        ["10.00", "–", "9.25", "−1.50"],
        ["−1.50", "9.25", "10.00", "–"],
        ["10.00", "9.25", "−1.50", "–"],
    ]
    light = next(look for look in seen["themes"] if look[0] == "rgb(28, 34, 38)")
    assert seen["printed"] == ["640", *light]
    assert seen["pictures"] == [80]  # decoded, in spite of the page's policy
    assert seen["overflow"] <= 0
