import os
import signal

import pytest

from heldout.report import chart, drawing, to_html
from heldout.report.drawing import DrawingError, draw, stop_drawing
from heldout.study import Study, higher_is_better, run_study

SPEC = {"mark": "point", "data": {"values": [{"x": 1}]}, "encoding": {"x": {"field": "x", "type": "quantitative"}}}


@pytest.fixture(autouse=True)
def _stopped():
    yield
    stop_drawing()


def test_all_charts_of_a_page_are_drawn_by_one_process_that_ends_with_it(monkeypatch):
    started = []
    monkeypatch.setattr(drawing, "_Drawer", lambda make=drawing._Drawer: started.append(make()) or started[-1])
    metrics = {"a": higher_is_better, "b": higher_is_better}
    study = Study(slug="s", arms={"x": {}}, run=lambda *_: {"a": 1, "b": 2}, metrics=metrics, seeds=2)
    page = to_html(run_study(study, on="in-process"))
    assert page.count("<figure><svg") == 2
    assert len(started) == 1
    assert started[0]._process.poll() is not None


def test_a_drawing_process_that_aborts_costs_one_chart_and_is_replaced():
    draw(SPEC)
    os.kill(drawing._drawer._process.pid, signal.SIGABRT)
    note = chart(SPEC)
    assert "cannot be drawn: the drawing process ended: killed by SIGABRT" in note
    assert chart(SPEC).startswith("<svg")


def test_a_drawing_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(drawing, "_PROGRAM", "import time; time.sleep(600)")
    monkeypatch.setattr(drawing, "_PATIENCE", 0.2)
    with pytest.raises(DrawingError, match="not drawn after"):
        draw(SPEC)


def test_control_characters_in_a_chart_do_not_reach_the_drawing_code():
    title = "\x1b[31mred\x1b[0m \x07bell \x00nul"
    assert "red bell nul" in chart({**SPEC, "title": title})
