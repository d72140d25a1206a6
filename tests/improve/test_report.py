"""The report of a search: the same numbers on the page, in Markdown and at any width of a terminal."""

from io import StringIO

import pytest
from rich.console import Console

from heldout.improve.report import print_improvement, to_html, to_markdown, word

TESTS = ["iid", "a long name of a shifted test set", "noise"]


def entry(gain, low, high, verdict, **more):
    return {"score": 0.5 + gain, "baseline": 0.5, "gain": gain, "low": low, "high": high, "verdict": verdict,
            "seeds_needed": more.pop("seeds_needed", None), "no_difference": 0.01, **more}  # fmt: skip


def document(metric="accuracy", finalists=2, scale=1.0):
    tests = [*TESTS, "mean of shifts"]
    found = [entry(0.02 * scale, 0.01 * scale, 0.03 * scale, "helps"),
             entry(-0.3 * scale, -0.4 * scale, -0.2 * scale, "hurts"),
             entry(0.0, 2.8e-17, 2.8e-17, "no difference"),
             entry(0.05 * scale, -0.01 * scale, 0.11 * scale, "not decided", seeds_needed=9)]  # fmt: skip
    rows = [
        {"method": f"method{i}+with_a_long_name", "validation": 0.9, "seeds": 3, "training_cost": 1.5,
         "inference_cost": 2.0, "tests": dict(zip(tests, found))}
        for i in range(finalists)
    ]  # fmt: skip
    for row in rows:
        row["tests"]["iid"] |= {"tuned_gain": 0.01 * scale, "tuned_low": 0.0, "tuned_high": 0.02 * scale}
    curves = [{"arm": row["method"], "step": step, "mean": 1 / step, "low": 0.1, "high": 1.0}
              for row in rows for step in (1, 2)]  # fmt: skip
    return {
        "title": "mine", "file": "mine.py", "verdict": "It <helps>.", "winner": "method0+with_a_long_name",
        "metric": {"name": metric, "higher_is_better": True}, "test_sets": TESTS, "plan": None, "seconds": 3.0,
        "baseline": {"validation": 0.9, "tests": {name: {"score": 0.5} for name in TESTS}}, "finalists": rows,
        "warnings": ["a warning"], "failed": [], "screening": [], "curves": {"training loss": curves},
        "environment": {"python": "3", "platform": "x", "cpus": 2, "versions": {}}, "complete": False,
        "methods": [{"method": "sam", "status": "not tried", "detail": "the budget did not allow it"},
                    {"method": "drm", "status": "not applicable", "detail": "it needs domains"}],
        "report": "r.html",
    }  # fmt: skip


def test_the_tuned_baseline_is_shown_with_its_scores():
    found = document()
    assert "tuned baseline |" not in to_markdown(found)
    found["tuned"] = {"validation": 0.93, "tests": {name: {"score": 0.765} for name in TESTS}}
    assert "| tuned baseline | 76.5 % | 76.5 % |" in to_markdown(found)
    page = to_html(found)
    assert '<th scope="col">tuned baseline</th>' in page
    assert "93.0 %" in page
    console = Console(record=True, width=100, file=StringIO())
    print_improvement(found, console)
    assert any("over tuned" in line and "76.5 %" in line for line in console.export_text().splitlines())


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(("metric", "scale"), [("accuracy", 1.0), ("mse", 1.0), ("my_own_metric", 1.2345e-05)])
def test_every_number_is_read_at_80_columns(metric, scale, width):
    console = Console(record=True, width=width, file=StringIO())
    print_improvement(document(metric, scale=scale), console)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    gains = {"accuracy": ["+2.0", "+1.0 to +3.0", "-40.0 to -20.0", "0.0 to 0.0"],
             "mse": ["+0.020", "+0.010 to +0.030", "-0.40 to -0.20", "0 to 0"],
             "my_own_metric": ["+2.47e-07", "+1.23e-07 to +3.7e-07", "0 to 0"]}[metric]  # fmt: skip
    assert all(text in shown for text in gains)
    assert "e-17" not in shown
    assert "open: ~9" in shown
    assert "seeds" in shown
    assert "★ method0+with_a_long_name  training 1.5 ×, inference 2 ×" in shown
    assert "in the order of their validation scores" in " ".join(shown.split())


def test_the_page_has_all_test_sets_on_one_axis_and_says_what_was_not_tried():
    page = to_html(document(finalists=9))
    assert page.count('class="axis"') == 1
    assert page.count('class="track holds"') == 9
    assert page.count('class="track contradicted"') == 9
    assert page.count("over the tuned baseline</th>") == 9
    assert page.count('class="dot"') == 9 * 5
    assert "Not tried: 1" in page
    assert "This search is not complete" in page
    assert "Training loss by epoch" in page
    assert "It &lt;helps&gt;." in page
    assert "e-17" not in page


def test_words_and_signs_stand_beside_colours_on_the_page():
    page = to_html(document(finalists=1))
    for numbers, told in (("+2.0 [+1.0, +3.0]", "helps"), ("-30.0 [-40.0, -20.0]", "hurts")):
        assert f'aria-label="method0+with_a_long_name{" ★"}: {numbers}, {told}"' in page
        assert f"<span>{numbers}</span>" in page


def test_markdown_tells_gains_with_intervals_and_words():
    text = to_markdown(document())
    assert "| 52.0 % (+2.0 [+1.0, +3.0], helps) |" in text
    assert "55.0 % (+5.0 [-1.0, +11.0], open: ~9 seeds)" in text
    assert "| drm | not applicable | it needs domains |" in text
    assert "e-17" not in text


def test_an_open_gain_says_how_many_seeds_would_decide():
    assert word({"verdict": "not decided", "seeds_needed": None}) == "open: > 200 seeds"
