"""Pages for people: contrast, tables with headers, and a mark's text beside every mark."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import heldout
from heldout.report import chart, curve_chart, curve_values, forest, nice_ticks
from heldout.report.page import DASHES, PALETTE

TEMPLATES = Path(heldout.__file__).parent / "report" / "templates"


def luminance(colour):
    """Relative luminance. Source: WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def themes():
    """The colours of the light and of the dark page, as their style sheet has them."""
    text = (TEMPLATES / "base.html.jinja").read_text()
    light, dark = text.partition("@media (prefers-color-scheme: dark)")[::2]
    found = [dict(re.findall(r"--([a-z]+): (#[0-9a-f]+)", part.partition("* {")[0])) for part in (light, dark)]
    assert found[0].keys() == found[1].keys()
    return found


def test_the_measure_of_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#fff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the well-known near miss


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "quiet", "good", "bad", "open", "link"])
def test_every_colour_of_text_has_the_contrast_of_aa(theme, name):
    assert contrast(theme[name], theme["paper"]) >= 4.5
    assert contrast(theme[name], theme["card"]) >= 4.5


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_every_colour_of_a_mark_has_the_contrast_of_graphics(theme):
    for colour in [*PALETTE, theme["accent"]]:
        assert contrast(colour, theme["paper"]) >= 3


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.jinja")), ids=lambda file: file.name)
def test_every_header_of_a_table_says_what_it_heads(template):
    for header in re.findall(r"<th\b[^>]*>", template.read_text()):
        assert "scope=" in header, header


class Cells(HTMLParser):
    """The rows of a table: text of the cells, and the positions of marks."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.marks, self.labels = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "tr":
            self.rows.append("")
        if tag == "i" and attributes["class"] in ("dot", "range"):
            self.marks.append((attributes["class"], attributes["style"]))
        if "aria-label" in attributes:
            self.labels.append(attributes["aria-label"])

    def handle_data(self, data):
        if self.rows:
            self.rows[-1] = f"{self.rows[-1]} {data}".strip()


def row(label, group, estimate, low=None, high=None, numbers="", word="", style="quiet"):
    ends = {"estimate": estimate, "low": low, "high": high}
    return {"label": label, "group": group, **ends, "numbers": numbers, "word": word, "style": style}


ROWS = [
    row("a <b>", "iid", 2.0, 0.0, 8.0, numbers="+2", word="helps", style="holds"),
    row("c", "iid", -2.0, numbers="-2"),
    row("c", "far", None, numbers="–"),
]


def test_a_forest_places_all_sets_on_one_axis():
    page = Cells(forest(ROWS, title="gain"))
    # the axis goes from -2 to 8: 10 units for 100 %
    assert page.marks == [("range", "left:20.00%;width:80.00%"), ("dot", "left:40.00%"), ("dot", "left:0.00%")]
    assert [row.split()[0] for row in page.rows[1:]] == ["iid", "a", "c", "far", "c"]


def test_every_mark_of_a_forest_is_text_as_well_and_names_are_escaped():
    page = forest(ROWS)
    assert "a <b>" not in page
    assert [label for label in Cells(page).labels if ":" in label] == ["a <b>: +2, helps", "c: -2", "c: –"]


@pytest.mark.parametrize(
    ("least", "most", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-20, 85.5, [-20, 0, 20, 40, 60, 80, 100]),
        (5, 5, [0, 2, 4, 6, 8, 10]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
        (-3e-5, 1e-5, [-3e-5, -2e-5, -1e-5, 0, 1e-5]),
    ],
)
def test_ticks_are_round_and_hold_the_range(least, most, ticks):
    assert nice_ticks(least, most) == pytest.approx(ticks)


def test_more_arms_than_colours_differ_by_their_dashes():
    arms = [f"arm {i}" for i in range(2 * len(PALETTE) + 1)]
    values = [
        {"arm": arm, "step": s, "mean": i + s, "low": i, "high": i + 2} for i, arm in enumerate(arms) for s in (0, 1)
    ]
    page = curve_chart("loss", values, arms)
    lines = set(re.findall(r'stroke="(#[0-9a-f]{6})" stroke-width="1.8"(?: stroke-dasharray="([\d,]+)")?', page))
    assert len(lines) >= len(arms)
    assert all(arm in page for arm in arms)
    assert len(DASHES) * len(PALETTE) >= 24


def test_an_arm_has_one_colour_in_all_charts_of_a_page():
    def colours(arms):
        values = [{"arm": arm, "step": s, "mean": s, "low": s, "high": s} for arm in arms for s in (0, 1)]
        page = curve_chart("loss", values, arms, page=["first", "second", "third"])
        return set(re.findall(r'stroke="(#[0-9a-f]{6})" stroke-width="1.8"', page))

    assert colours(["third"]) == {PALETTE[2]}
    assert colours(["second", "first"]) == set(PALETTE[:2])


def test_curves_are_means_over_the_seeds_of_an_arm():
    runs = [
        {"arm": "a", "curves": {"loss": [[1, 2.0], [2, None]]}},
        {"arm": "a", "curves": {"loss": [[1, 6.0], [2, 1.0]]}},
    ]
    assert curve_values(runs)["loss"] == [
        {"arm": "a", "step": 1, "mean": 4.0, "low": 2.0, "high": 6.0},
        {"arm": "a", "step": 2, "mean": 1.0, "low": 1.0, "high": 1.0},
    ]


def test_every_text_of_a_chart_takes_the_ink_of_the_page():
    """Black text that the page does not colour is not read in the dark."""
    encoding = {"x": {"field": "a", "type": "quantitative"}, "color": {"field": "b", "type": "nominal"}}
    title = {"text": "Title", "subtitle": "what it is"}
    values = {"values": [{"a": 1, "b": "arm"}]}
    drawn = chart({"title": title, "data": values, "mark": "point", "encoding": encoding})
    texts = re.findall(r"<text\b[^>]*>", drawn)
    assert len(texts) >= 5
    assert all('fill="currentColor"' in text for text in texts), texts
