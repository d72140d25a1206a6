"""Answers that are kept on disk are asked for once."""

from __future__ import annotations

import sqlite3
from collections import UserDict

import pytest

from heldout.language_model import taken_options
from heldout.lm import CachedLM, ScriptedLM, TransformersLM, tiny_llama, word_tokenizer


def counting():
    return ScriptedLM(lambda prompt, k: f"{prompt} {k}", scores=lambda prompt, text: -float(len(text)))


def test_only_what_is_not_there_is_asked_for(tmp_path):
    lm = counting()
    cached = CachedLM(lm, tmp_path / "deep" / "answers.db")
    first = cached.generate(["a", "b"], 2)
    assert cached.generate(["b", "c", "a"], 2) == [first[1], lm.generate(["c"], 2)[0], first[0]]
    assert (cached.hits, cached.misses) == (2, 3)
    assert CachedLM(lm, tmp_path / "deep" / "answers.db").generate(["a"], 2) == first[:1]


@pytest.mark.parametrize(
    "other",
    [{"n": 2}, {"temperature": 0.5}, {"stop": ["x"]}, {"max_tokens": 3}, {"temperature": 1.0, "seed": 1}],
)
def test_every_option_makes_another_answer(tmp_path, other):
    cached = CachedLM(counting(), tmp_path / "answers.db")
    cached.generate(["a"])
    cached.generate(["a"], temperature=1.0, seed=0)
    cached.generate(["a"], **other)
    assert cached.misses == 3


def test_the_seed_does_not_matter_where_nothing_is_sampled(tmp_path):
    cached = CachedLM(counting(), tmp_path / "answers.db")
    cached.generate(["a"], seed=0)
    cached.generate(["a"], seed=1)
    assert cached.misses == 1


def test_another_model_gets_its_own_answers(tmp_path):
    one = CachedLM(ScriptedLM(["one"]), tmp_path / "answers.db", identity="one")
    two = CachedLM(ScriptedLM(["two"]), tmp_path / "answers.db", identity="two")
    assert [lm.generate(["a"])[0][0].text for lm in (one, two)] == ["one", "two"]


def test_chat_messages_and_texts_are_different_prompts(tmp_path):
    cached = CachedLM(counting(), tmp_path / "answers.db")
    cached.generate(["a"])
    cached.generate([[{"role": "user", "content": "a"}]])
    assert cached.misses == 2


def test_scores_are_kept_too(tmp_path):
    cached = CachedLM(counting(), tmp_path / "answers.db")
    assert cached.score(["a", "b"], [["x", "yy"], ["x"]]) == [[-1.0, -2.0], [-1.0]]
    assert cached.score(["a", "b"], [["x", "yy"], ["x"]]) == [[-1.0, -2.0], [-1.0]]
    assert (cached.hits, cached.misses) == (2, 2)
    with pytest.raises(ValueError, match="continuations of each prompt"):
        cached.score(["a"], [])


def test_more_prompts_than_one_query_holds(tmp_path):
    cached = CachedLM(counting(), tmp_path / "answers.db")
    prompts = [f"p{i}" for i in range(2000)]
    assert cached.generate(prompts) == cached.generate(prompts)
    assert cached.hits == 2000


def test_a_model_without_identity_needs_one(tmp_path):
    class Nameless:
        generate = score = None

    with pytest.raises(ValueError, match="identity="):
        CachedLM(Nameless(), tmp_path / "answers.db")


def test_the_scripted_model_says_when_it_has_no_answer():
    with pytest.raises(KeyError, match="no answer to 'b'"):
        ScriptedLM({"a": "x"}).generate(["b"])
    with pytest.raises(IndexError, match="all of its 1 answers"):
        ScriptedLM(["x"]).generate(["a", "b"])
    with pytest.raises(ValueError, match="no scores"):
        ScriptedLM(["x"]).score(["a"], [["b"]])
    ((cut,),) = ScriptedLM(["one two three . four"], price=2.0).generate(["a b"], stop=["."], max_tokens=2)
    assert (cut.text, cut.tokens, cut.prompt_tokens, cut.cost, cut.finish_reason) == ("one two", 2, 2, 4.0, "length")


def test_further_options_reach_the_model_and_make_another_answer(tmp_path):
    class TopK(ScriptedLM):
        def generate(self, prompts, n=1, *, top_k=0, **options):
            self.answers = lambda prompt, sample: str(top_k)
            return ScriptedLM(self.answers).generate(prompts, n, **options)

    lm = CachedLM(TopK({}), tmp_path / "answers.db")
    assert [lm.generate(["a"], temperature=1.0, top_k=k)[0][0].text for k in (3, 5, 3)] == ["3", "5", "3"]
    assert lm.hits == 1
    assert taken_options(lm, top_k=1, repetition_penalty=1.2) == {"top_k": 1}


def test_messages_of_any_mapping_are_told_apart_by_what_they_say(tmp_path):
    cached = CachedLM(ScriptedLM(lambda prompt, k: prompt[0]["content"]), tmp_path / "answers.db")
    for kind in (UserDict, dict):
        found = cached.generate([[kind(role="user", content=text)] for text in ("a", "b")])
        assert [row[0].text for row in found] == ["a", "b"]
    assert (cached.hits, cached.misses) == (2, 2)


@pytest.mark.parametrize(
    "value",
    [
        '[{"text": "x", "tokens": 1.5}]',
        '[{"text": "x", "tokens": -5}]',
        '[{"text": "x", "cost": NaN}]',
        '[{"text": "x", "cost": true}]',
        "",
        "{",
        "[]",
        "null",
        "[{}]",
        '[{"text": 3}]',
        '[{"text": "a", "what": 1}]',
        "[1, 2]",
    ],
)
def test_damaged_answers_are_asked_for_again(tmp_path, value):
    cached = CachedLM(counting(), tmp_path / "answers.db")
    expected = cached.generate(["a"]), cached.score(["a"], [["x"]])
    with sqlite3.connect(tmp_path / "answers.db") as file:
        file.execute("UPDATE answers SET value = ?", (value,))
    with pytest.warns(UserWarning, match="answers.db has 1 damaged"):
        assert (cached.generate(["a"]), cached.score(["a"], [["x"]])) == expected
    assert cached.misses == 4
    assert (cached.generate(["a"]), cached.score(["a"], [["x"]])) == expected
    assert cached.misses == 4


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "answers.db").write_text("not a database, but long enough to look at" * 10)
    with pytest.raises(OSError, match=r"answers\.db as a file of kept answers"):
        CachedLM(counting(), tmp_path / "answers.db")


PROMPTS = ["a b c", "c a", "b b b a", "c c", "a", "b c a b"]


def local():
    tokenizer = word_tokenizer(["a b c d e f"])
    return TransformersLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer, batch_size=2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("method", ["generate", "score"])
def test_a_local_model_that_is_broken_off_keeps_the_batches_that_ended(tmp_path, monkeypatch, method, error):
    lm = local()
    arguments = ([["d"]] * len(PROMPTS),) if method == "score" else ()
    expected = getattr(lm, method)(PROMPTS, *arguments)
    cached, whole, asked = CachedLM(lm, tmp_path / "answers.db"), getattr(lm, method), []

    def breaking(prompts, *more, **options):
        asked.append(list(prompts))
        if len(asked) == 3:
            raise error
        return whole(prompts, *more, **options)

    monkeypatch.setattr(lm, method, breaking)
    with pytest.raises(error):
        getattr(cached, method)(PROMPTS, *arguments)
    assert [len(part) for part in asked] == [2, 2, 2]
    found = getattr(cached, method)(PROMPTS, *arguments)
    assert sorted(asked[3]) == sorted(asked[2])
    assert cached.hits == 4
    if method == "generate":
        assert found == expected
    else:
        assert [row[0] for row in found] == pytest.approx([row[0] for row in expected], rel=1e-5)


def test_samples_of_a_local_models_batches_are_drawn_apart(tmp_path):
    drawn = CachedLM(local(), tmp_path / "answers.db").generate(["a b", "b a", "c a", "a c"], temperature=5.0)
    alone = local().generate(["a b", "b a"], temperature=5.0)
    texts = [row[0].text for row in drawn]
    assert len(set(texts)) == 4
    again = CachedLM(local(), tmp_path / "again.db")
    assert [row[0].text for row in again.generate(["a b", "b a", "c a", "a c"], temperature=5.0)] == texts
    assert CachedLM(local(), tmp_path / "two.db").generate(["a b", "b a"], temperature=5.0) == alone
