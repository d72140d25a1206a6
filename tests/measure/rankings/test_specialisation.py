"""The four numbers by hand, on a table of three models and three domains."""

import math

import pytest

from heldout.measure import specialisation

SCORES = {
    "base": {"law": 0.5, "news": 0.6, "chat": 0.4},
    "lawyer": {"law": 0.9, "news": 0.3, "chat": 0.2},
    "reporter": {"law": 0.4, "news": 0.8, "chat": 0.5},
}
HOMES = {"lawyer": "law", "reporter": "news"}


def test_a_table_by_hand():
    found = specialisation(SCORES, HOMES, general="base")
    law = found["lawyer"]
    assert law.home == "law"
    assert law.gap == pytest.approx(0.9 - 0.25)
    assert law.dsi == pytest.approx((0.9 - 0.25) / (0.9 + 0.25))
    assert law.transfer == pytest.approx(0.3 / 0.8)  # chat is nobody's home
    assert law.retention == pytest.approx((0.3 / 0.6 + 0.2 / 0.4) / 2)
    assert law.forgetting == pytest.approx(1 - law.retention)
    news = found["reporter"]
    assert news.transfer == pytest.approx(0.4 / 0.9)
    assert news.retention == pytest.approx((0.4 / 0.5 + 0.5 / 0.4) / 2)
    assert news.forgetting < 0


def test_equal_scores_identical_models_and_another_unit():
    flat = {"a": {"x": 0.4, "y": 0.4}, "b": {"x": 0.4, "y": 0.4}}
    found = specialisation(flat, {"a": "x", "b": "y"})
    assert found["a"].dsi == found["a"].gap == 0
    assert found["a"].transfer == found["b"].transfer == 1
    assert math.isnan(found["a"].retention)
    assert math.isnan(specialisation(flat, {"a": "x"})["a"].transfer)
    percent = {model: {domain: 100 * score for domain, score in row.items()} for model, row in SCORES.items()}
    own, theirs = specialisation(percent, HOMES)["lawyer"], specialisation(SCORES, HOMES)["lawyer"]
    assert (own.dsi, own.transfer) == pytest.approx((theirs.dsi, theirs.transfer))
    assert own.gap == pytest.approx(100 * theirs.gap)


@pytest.mark.parametrize(
    ("scores", "home", "general", "words"),
    [
        ({"a": {"x": 0.4}}, {"a": "x"}, None, "two domains"),
        ({"a": {"x": 0.4, "y": -0.1}}, {"a": "x"}, None, r"scores\['a'\]"),
        ({"a": {"x": 0.4, "y": math.nan}}, {"a": "x"}, None, "scores must be"),
        ({"a": {"x": 0.4, "y": 0.1}, "b": {"x": 0.4, "z": 0.1}}, {"a": "x"}, None, r"scores\['b'\]"),
        ({"a": {"x": 0.4, "y": 0.1}}, {"b": "x"}, None, "home names 'b'"),
        ({"a": {"x": 0.4, "y": 0.1}}, {"a": "z"}, None, r"home\['a'\]"),
        ({"a": {"x": 0.4, "y": 0.1}}, {"a": "x"}, "c", "general names 'c'"),
        ({"a": {"x": 0.4, "y": 0.1}, "b": {"x": 0.4, "y": 0.1}}, {"a": "x", "b": "x"}, None, "one model"),
        ({"a": {"x": 0.4, "y": 0.1}, "b": {"x": 0.4, "y": 0.0}}, {"a": "x", "b": "y"}, None, "above 0"),
        ({"a": {"x": 0.4, "y": 0.1}}, {}, None, "home"),
    ],
)
def test_what_cannot_be_judged_is_refused(scores, home, general, words):
    with pytest.raises((ValueError, TypeError), match=words):
        specialisation(scores, home, general=general)


def test_where_nothing_is_known_anywhere_there_is_no_specialising():
    assert specialisation({"a": {"x": 0.0, "y": 0.0}}, {"a": "x"})["a"].dsi == 0
