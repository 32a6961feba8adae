"""Pages hold everything, escape everything and ask for nothing."""

import re
from html.parser import HTMLParser

import pytest

from tenfold.errors import UserError
from tenfold.report import IndexEntry, differences, write_comparison, write_index, write_report
from tenfold.report.grids import table_grid
from tenfold.report.plots import COLOURS, draw, overlay
from tenfold.results import Plot, Series, Table

PAGES = ("report", "index", "comparison", "bare")


class Reader(HTMLParser):
    """Texts, elements and scripts of a page."""

    def __init__(self, page):
        super().__init__()
        self.text, self.elements, self.scripts, self.style, self.open = "", [], [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open == "script":
            self.scripts[-1] += data
        elif self.open == "style":
            self.style += data
        else:
            self.text += f"{data} "

    def all(self, tag, **attributes):
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(k) == v for k, v in attributes.items())
        ]


@pytest.fixture(scope="session")
def read(pages):
    return {name: Reader((pages / f"{name}.html").read_text(encoding="utf-8")) for name in PAGES}


def test_a_report_tells_everything(read, hostile):
    text = " ".join(read["report"].text.replace("\u00a0", " ").split())
    for expected in (
        "A title", "tenfold 0.1.0", "preset tiny · seed 7 · 1 min 5 s · 1 holds, 1 not settled, 1 does not hold",
        "It gains", "1.988 points", "95 % interval 1 to 2.8", "Target ≥ −0.5", "Baseline joint", "not measured",
        "because", "Curve", "Exits", "Cloud", "A table", "of rows", "10.00", "9.25", "−1.50", "mean accuracy", "0.9123",
        "1 · –", "0 … 8 (9 values)", "only here", "29,594", "3.25 G", "100 MiB", "2.15.0", "20240101",
        "the size of the test set", "A set",
    ):  # fmt: skip
        assert expected in text
    # title (twice), statement, note of the claim, legend, captions (plot, picture), table, environment, notes
    assert text.count(" ".join(hostile.split())) == 10
    shown = read["report"].all("img", alt=hostile)
    assert len(shown) == 1 and shown[0]["src"].startswith("data:image/png;base64,iVBOR")
    assert read["report"].all("td", title="0.91234567")


def test_verdicts_are_words_and_icons(pages):
    own = (pages / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'class="verdict holds"><svg[^>]*><path[^>]*></svg>holds</span>', own)) == 1
    assert len(re.findall(r'class="verdict open"><svg[^>]*><path[^>]*></svg>not settled</span>', own)) == 1
    assert len(re.findall(r'class="verdict fails"><svg[^>]*><path[^>]*></svg>does not hold</span>', own)) == 1


def test_a_page_opens_with_what_the_reader_gets_and_the_first_plot(read, pages):
    own = (pages / "report.html").read_text(encoding="utf-8")
    opening = own[own.index('id="opening"') : own.index('id="claims"')]
    assert "The same at 47 % of the cost" in opening and opening.count("<figure") == 1


def test_a_table_without_rows_says_so():
    empty = table_grid(Table(id="t", title="t", columns=["a", "b"], rows=[]))
    assert empty.numeric == [False, False] and list(empty.rows) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_nothing_and_runs_nothing_strange(read, name):
    page = read[name]
    for _, attributes in page.elements:
        for key in ("src", "href", "action", "data"):
            assert not re.match(r"\s*(https?:)?//|\s*javascript:", attributes.get(key) or "")
    assert not re.search(r"https?://|@import|url\(", page.style)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none';") and "http" not in policy
    libraries = [script for script in page.scripts if len(script) > 100_000]
    assert len(libraries) == (name in ("report", "comparison", "index"))
    own = [script for script in page.scripts if script not in libraries]
    assert len(own) == 2 and "<script" not in "".join(own) and "alert(1)</script>" not in "".join(own)
    assert page.all("html", lang="en") and page.all("meta", name="viewport") and len(page.all("h1")) == 1


def test_a_page_of_nothing_has_only_its_cost(read):
    assert [attributes.get("id") for attributes in read["bare"].all("section")] == ["cost"]


def test_an_index_links_to_the_runs_and_counts_the_claims(read):
    assert read["index"].all("a", href="run/report.html")
    text = " ".join(read["index"].text.replace("\u00a0", " ").split())
    for expected in (
        "1 system in 1 min 5 s: 1 holds, 1 not settled, 1 does not hold.",
        "what it does",
        "It gains",
        "1.988 points",
        "not settled",
    ):
        assert expected in text


def test_a_comparison_has_a_column_for_each_run_even_of_the_same_name(read):
    text = " ".join(read["comparison"].text.split())
    assert "metric arm one two one" in text
    assert text.count("It gains") == 1 and text.count("1.988") == 2
    assert "seed 7" in text and "seed 8" in text
    assert len(read["comparison"].all("figure")) == 3
    for series in ("one: ours", "two: ours", "one: other", "two: other"):
        assert series in text


def test_runs_of_different_data_are_not_compared_in_silence(results_of, tmp_path):
    one, other = results_of(), results_of().model_copy(update={"environment": {"data": "other"}})
    assert differences([("a", one), ("b", one)]) == ""
    assert "differ in data" in differences([("a", one), ("b", other)])
    write_comparison([("a", one), ("b", other)], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "not of the same thing" in page
    # On a phone the runs stand below each other, each cell under its run's name.
    assert page.count('<td data-run="a">') == page.count('<td data-run="b">') == len(one.claims)


def test_plots_of_other_axes_are_not_drawn_over_each_other(results_of):
    curve = results_of().plots[0]
    other = curve.model_copy(update={"y_label": "something else"})
    assert [len(plot.series) for plot in overlay([("a", [curve]), ("b", [curve]), ("c", [other])])] == [4, 2]


def test_a_column_is_one_of_numbers_where_half_of_what_it_holds_is():
    rows = [["a", 0.5, None, "x"], ["b", 0.25, None, 1], ["c", "everyone", None, None]]
    grid = table_grid(Table(id="t", title="t", columns=["1", "2", "3", "4"], rows=rows))
    assert grid.numeric == [False, True, False, True]
    assert [row[1].text for row in grid.rows] == ["0.50", "0.25", "everyone"]
    assert [row[1].key for row in grid.rows] == [0.5, 0.25, None]


def line(*names, **changes):
    series = [Series(name=name, x=[1.0, 2.0], y=[1.0, 2.0]) for name in names]
    return Plot(id="p", title="t", kind="line", x_label="x", y_label="y", series=series).model_copy(update=changes)


def test_verdicts_wear_the_colours_of_the_claims():
    bars = [Series(name=name, x=["a"], y=[1]) for name in ("holds", "not settled", "does not hold")]
    plot = Plot(id="verdicts", title="", kind="bar", x_label="", y_label="", series=bars)
    assert [look.colour for look in draw([plot])[0].looks] == [2, 5, 1]  # green, grey, orange


def test_a_series_has_the_same_colour_in_every_plot_and_no_two_look_alike():
    many = [str(n) for n in range(COLOURS + 2)]
    drawings = draw(
        [line("ours", "joint"), line("other"), line("joint", "new", "ours"), line("ours", "other"), line(*many)]
    )
    colours = [{look.name: look.colour for look in drawing.looks} for drawing in drawings]
    assert colours[0]["ours"] == colours[2]["ours"] == colours[3]["ours"]
    assert colours[0]["joint"] == colours[2]["joint"]
    for drawing in drawings:
        traces = drawing.figure["data"]
        assert [trace["meta"] for trace in traces] == [look.colour for look in drawing.looks]
        assert len({(trace["meta"], trace["line"]["dash"]) for trace in traces}) == len(traces)


def test_an_axis_is_logarithmic_only_where_every_point_can_be_shown():
    zero = Series(name="z", x=[0.0, 10.0], y=[1.0, 2.0])
    axes = [draw([plot])[0].figure["layout"]["xaxis"]["type"] for plot in (
        line("a", log_x=True), line("a", log_x=True, series=[zero]), line("a"), line("a", kind="bar"),
    )]  # fmt: skip
    assert axes == ["log", "linear", "linear", "category"]


def test_points_in_space_keep_their_own_colours():
    cloud = Series(name="a", x=[1, 2], y=[3, 4], z=[5, 6], colours=["#00ff10", "#1c2226"])
    plot = Plot(id="c", title="C", kind="points", x_label="x", y_label="y", z_label="<z>", series=[cloud])
    (drawing,) = draw([plot])
    (trace,) = drawing.figure["data"]
    assert trace["type"] == "scatter3d" and list(trace["z"]) == [5, 6]
    assert list(trace["marker"]["color"]) == ["#00ff10", "#1c2226"]
    scene = drawing.figure["layout"]["scene"]
    assert scene["aspectmode"] == "data" and scene["zaxis"]["title"]["text"] == "&lt;z&gt;"
    for changes, words in (
        ({"z": None}, "points have z"),
        ({"z": [1]}, "different lengths"),
        ({"colours": ["red", "#000000"]}, "pattern"),
    ):
        with pytest.raises(ValueError, match=words):
            Plot.model_validate(plot.model_dump() | {"series": [cloud.model_dump() | changes]})


def test_plots_without_points_are_drawn_empty(results_of, tmp_path):
    empty = [line(), line(series=[Series(name="a", x=[], y=[])]), line(series=[Series(name="a", x=[1.0], y=[None])])]
    write_report(results_of(plots=empty, pictures=[]), tmp_path / "report.html")
    assert len(Reader((tmp_path / "report.html").read_text(encoding="utf-8")).all("figure")) == 3


def test_a_page_that_cannot_be_written_leaves_nothing(results_of, tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_report(results_of(), tmp_path / "missing" / "report.html")
    with pytest.raises(UserError, match="cannot write"):
        write_index([IndexEntry(results_of(), "a.html", "s")], tmp_path / "missing" / "index.html")
    assert list(tmp_path.iterdir()) == []


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return sum(
        weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
        for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_texts_and_lines_stand_out_in_both_themes(read, theme):
    pairs = re.findall(r"--([a-z0-9-]+): light-dark\((#\w{6}), (#\w{6})\)", read["bare"].style)
    colours = {name: luminance(both[theme]) for name, *both in pairs}

    def contrast(one, other):
        low, high = sorted((colours[one], colours[other]))
        return (high + 0.05) / (low + 0.05)

    for ink in ("ink", "soft", "accent"):
        assert min(contrast(ink, ground) for ground in ("paper", "card", "grid")) >= 4.5
    assert contrast("good", "good-wash") >= 4.5 and contrast("bad", "bad-wash") >= 4.5
    assert min(contrast(f"series-{n}", "card") for n in range(COLOURS)) >= 3
