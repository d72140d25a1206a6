import re

import pytest
from rich.console import Console

from heldout.report.page import chart, interval_bar
from heldout.report.study import load_results, print_results, to_html, to_markdown, write_report
from heldout.study import Study, better, higher_is_better, log_curve, log_figure, lower_is_better, run_study

EVIL = "<img src=x onerror=alert(1)>|../../etc"


def run(arm, seed, profile):
    for step in range(5):
        log_curve(f"loss {EVIL}", step, 1.0 / (step + 1) + seed)
    log_figure(
        "bars",
        {
            "data": {"values": [{"a": EVIL, "b": 1}]},
            "mark": "bar",
            "encoding": {"x": {"field": "a", "type": "nominal"}, "y": {"field": "b", "type": "quantitative"}},
        },
    )
    if arm["level"] > 0.9:
        raise RuntimeError(EVIL)
    return {EVIL: arm["level"] + 0.01 * seed, "cost": 1.0}  # fmt: skip


@pytest.fixture(scope="module")
def results():
    study = Study(
        slug="evil",
        title=EVIL,
        arms={"plain": {"level": 0.1}, EVIL: {"level": 0.5}, "fails": {"level": 1.0}},
        run=run,
        metrics={EVIL: higher_is_better, "cost": lower_is_better},
        claims=[better(EVIL, than="plain", on=EVIL, margin=0.1)],
    )
    return run_study(study, seeds=3)


def test_names_are_escaped_everywhere_on_the_page(results):
    page = to_html(results)
    assert "<img" not in page
    assert "<script" not in page
    assert page.count("&lt;img") > 5


def test_the_page_needs_no_network(results):
    page = to_html(results)
    assert not re.search(r'(?:src|href)\s*=\s*"(?!#)', page)
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_page_shows_verdicts_before_plots_and_failures_with_their_traceback(results):
    page = to_html(results)
    assert page.index("holds</div>") < page.index('class="marks"') < page.index("Values by seed")
    assert "3 failed" in page
    assert "Traceback" in page or "RuntimeError" in page


def test_markdown_and_terminal_show_every_arm_and_verdict(results):
    text = to_markdown(results)
    assert "| holds |" in text
    assert "<img" not in text
    console = Console(record=True, width=200)
    print_results(results, console)
    shown = console.export_text()
    assert "holds" in shown
    assert "failed" in shown
    assert EVIL in shown


def test_results_are_read_back_as_they_were_written(results, tmp_path):
    results.save(tmp_path)
    page = write_report(results, tmp_path)
    again = load_results(tmp_path)
    assert again == results
    assert to_html(again) == page.read_text()


def test_a_figure_that_cannot_be_drawn_is_a_note_on_the_page():
    assert "cannot be drawn" in chart({"mark": {"type": "nothing <b>"}, "data": {"values": [{"a": 1}]}})
    remote = chart({"mark": "point", "data": {"url": "http://localhost:9/data.json"}, "encoding": {}})
    assert "localhost" not in remote or "cannot be drawn" in remote


def test_a_bar_tells_its_interval_in_words_too():
    assert "circle" in interval_bar(1.0, 0.5, 1.5)
    assert 'aria-label="1 [0.5, 1.5], against 0"' in interval_bar(1.0, 0.5, 1.5)
    assert interval_bar(None, None, None) == ""


def test_a_large_study_is_reported_quickly():
    import time

    study = Study(
        slug="large", arms={f"arm {i}": {"level": i} for i in range(10)},
        run=lambda arm, seed, profile: {"score": arm["level"] + seed % 7}, metrics={"score": higher_is_better},
    )  # fmt: skip
    many = run_study(study, seeds=200)
    started = time.perf_counter()
    assert len(to_html(many)) < 3_000_000
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("width", [40, 80, 200])
def test_long_names_of_metrics_wrap_and_no_column_vanishes(width):
    names = [f"accuracy on the shifted test set number {i}" for i in range(9)] + ["a_name_without_any_space_" * 3]
    study = Study(slug="wide", arms={"a rather long name of an arm": {}, "b": {}},
                  run=lambda *_: {name: 10.0 + i for i, name in enumerate(names)},
                  metrics=dict.fromkeys(names, higher_is_better), seeds=1)  # fmt: skip
    console = Console(record=True, width=width)
    print_results(run_study(study, on="in-process"), console)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    words = shown.split()
    assert "…" not in shown
    assert all(str(10 + i) in words for i in range(10))
    assert "seconds" in words
