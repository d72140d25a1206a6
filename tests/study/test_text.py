import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heldout.report.study import load_results, print_results, to_html, to_markdown
from heldout.study import Study, at_least, higher_is_better, log_curve, log_figure, run_study
from heldout.study.text import plain, plain_name, plain_text

NASTY = "\x1b[31mred\x1b[0m\x07 nul\x00 c1\x9b31m title\x1b]0;x\x07 over\u202eride \u2066isolate\u2069"
PLAIN = "red nul c1 title override isolate"


def test_terminal_sequences_go_as_a_whole_and_control_characters_one_by_one():
    assert plain_text(NASTY) == PLAIN
    assert plain_text("a\tb\r\nc\rd\ud800") == "a\tb\ncd?"
    assert plain_name("a\tb\nc") == "a b c"
    assert plain_text("naïve – Übung, 日本, 👩‍🔬") == "naïve – Übung, 日本, 👩‍🔬"
    assert plain({NASTY: [NASTY, 1, None, {"a": NASTY}]}) == {PLAIN: [PLAIN, 1, None, {"a": PLAIN}]}


def test_an_unterminated_string_sequence_costs_no_text():
    assert plain_text("\x1b]0;the error") == "0;the error"


@given(st.text())
def test_nothing_that_is_left_controls_anything(text):
    left = plain_text(text)
    assert not [c for c in left if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert not {unicodedata.bidirectional(c) for c in left} & {
        *("LRE", "RLE", "LRO", "RLO"),
        *("PDF", "LRI", "RLI", "FSI", "PDI"),
    }
    assert plain_text(left) == left
    left.encode()


def run(arm, seed, profile):
    log_curve(NASTY, 0, 1.0)
    log_curve(NASTY, 1, 2.0)
    log_figure(NASTY, {"title": NASTY, "mark": "bar", "data": {"values": [{NASTY: NASTY}]}, "encoding": {}})
    if arm["fails"]:
        raise RuntimeError(NASTY)
    return {NASTY: 1.0}


@pytest.fixture(scope="module")
def results():
    study = Study(
        slug="nasty",
        arms={NASTY: {"fails": False}, "fails": {"fails": True}},
        run=run,
        metrics={NASTY: higher_is_better},
        claims=[at_least(NASTY, on=NASTY, value=0.5)],
        optional={NASTY},
        title=NASTY,
    )
    return run_study(study, seeds=2, on="in-process")


def is_plain(text):
    return plain_text(text) == text


def test_no_control_character_of_a_study_or_a_run_reaches_a_report(results, tmp_path):
    from rich.console import Console

    assert len(results.runs) == 2
    assert results.metric(PLAIN, PLAIN) == {0: 1.0, 1: 1.0}
    assert results.failed[0]["error"] == f"RuntimeError: {PLAIN}"
    assert results.claims[0].verdict == "holds"
    page = to_html(results)
    assert is_plain(page)
    assert "cannot be drawn" not in page
    assert is_plain(to_markdown(results))
    console = Console(record=True, width=80)
    print_results(results, console)
    assert is_plain(console.export_text())
    results.save(tmp_path)
    assert is_plain((tmp_path / "results.json").read_text())


def test_a_results_file_of_somebody_else_is_made_plain_as_it_is_read(results, tmp_path):
    path = results.save(tmp_path)
    path.write_text(path.read_text().replace(PLAIN, r"\u001b[31mred\u0007 \u202e"))
    loaded = load_results(tmp_path)
    assert is_plain(str(loaded.to_json()).replace("\\", ""))
    assert "red " in loaded.arms


def test_names_that_differ_only_in_control_characters_are_refused():
    with pytest.raises(ValueError, match="two arms are named 'a'"):
        Study(slug="s", arms={"a": {}, "a\x07": {}}, run=run, metrics={"x": higher_is_better})
    with pytest.raises(ValueError, match="two metrics are named 'x'"):
        Study(slug="s", arms={"a": {}}, run=run, metrics={"x": higher_is_better, "x\x00": higher_is_better})
    with pytest.raises(ValueError, match="non-empty"):
        Study(slug="s", arms={"\x00": {}}, run=run, metrics={"x": higher_is_better})
