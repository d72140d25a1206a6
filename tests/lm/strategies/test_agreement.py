import random
import re

import numpy as np
import pytest

from heldout.language_model import Completion
from heldout.lm import (
    ScriptedLM,
    TransformersLM,
    Usage,
    agreement_template,
    character_ngrams,
    last_number,
    last_sentences,
    sample_paths,
    self_agreement,
    self_consistency,
    semantic_vote,
    tiny_llama,
    usage_of,
    word_tokenizer,
)

WORDS = ["zero", "one", "two", "three", "four", "five"]


def parse(text):
    found = [int(word) if word.isdigit() else WORDS.index(word) for word in re.findall(r"\w+", text)
             if word.isdigit() or word in WORDS]  # fmt: skip
    return found[-1] if found else None


def counter(prompt, sample=0):
    """A model that counts by meaning."""
    paths = re.findall(r"Reasoning path \d+: (.*)", prompt)
    return str(self_consistency(paths, parse).answer)


def worded(value, rng):
    return rng.choice([str(value), WORDS[value], f"It is {WORDS[value]}.", f"The answer is {value}."])


def test_paths_that_are_all_the_same_give_their_answer_with_n_plus_1_calls():
    lm = ScriptedLM(lambda prompt, k: counter(prompt) if "Reasoning path" in prompt else "2 and 2 make 4.", price=2.0)
    (found,) = self_agreement(lm, ["2 + 2?"], n=6)
    assert found.answer == "4"
    assert found.paths == ("2 and 2 make 4.",) * 6
    assert found.usage.calls == len(lm.calls) == 7
    assert found.usage.tokens == 6 * 5 + 1
    assert found.usage.cost == 2 * 31
    assert found.usage.prompt_tokens == len(["2", "+", "2?", "Let's", "think", "step", "by", "step."]) + len(
        lm.calls[-1].split()
    )


def test_a_model_that_counts_by_meaning_equals_self_consistency_ties_included():
    rng = random.Random(0)
    paths = [[worded(rng.randint(0, 3), rng) for _ in range(rng.randint(2, 9))] for _ in range(1000)]
    found = self_agreement(ScriptedLM(counter), ["?"] * 1000, paths=paths, seed=3)
    votes = [self_consistency(row.paths, parse) for row in found]
    assert [row.answer for row in found] == [str(vote.answer) for vote in votes]
    ties = [sorted(vote.votes.values())[-2:] for vote in votes]
    assert sum(len(two) == 2 and two[0] == two[1] for two in ties) > 100


@pytest.mark.parametrize("p", [0.4, 0.6])
def test_the_majority_of_independent_paths_is_as_accurate_as_simulated(p):
    rng, draw, n, count = random.Random(1), np.random.default_rng(0), 9, 2000
    right = draw.random((200_000, n)) < p
    answers = np.where(right, 0, draw.integers(1, 6, right.shape))
    votes = (answers[..., None] == np.arange(6)).sum(1)
    most = votes == votes.max(1, keepdims=True)
    expected = (most[:, 0] / most.sum(1)).mean()
    rows = [[0 if rng.random() < p else rng.randint(1, 5) for _ in range(n)] for _ in range(count)]
    paths = [[worded(value, rng) for value in row] for row in rows]
    got = np.mean([self_consistency(row, parse).answer == 0 for row in paths])
    assert abs(got - expected) < 3 * np.sqrt(expected * (1 - expected) / count)


def test_paths_that_are_given_are_not_sampled_and_cost_nothing():
    lm = ScriptedLM(["7"])
    (found,) = self_agreement(lm, ["?"], paths=[["7", "seven", "8"]], shuffle=False)
    assert found.paths == ("7", "seven", "8")
    assert found.usage.calls == len(lm.calls) == 1


def test_the_same_seed_gives_the_same_paths_and_order():
    tokenizer = word_tokenizer(["a b c d ; = ."])
    lm = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1), tokenizer)

    def run(seed):
        return self_agreement(
            lm, ["a b"], n=4, prompt=lambda q: q, template=lambda q, paths: f"{q} {' ; '.join(paths)} =", max_tokens=5,
            temperature=1.0, seed=seed,
        )  # fmt: skip

    assert run(0) == run(0)
    assert run(0)[0].paths != run(1)[0].paths


def test_shuffling_changes_the_order_alone():
    paths = [[str(i) for i in range(8)]] * 2
    one, other = self_agreement(ScriptedLM(lambda p, k: "0"), ["?"] * 2, paths=paths)
    assert sorted(one.paths) == sorted(other.paths) == paths[0]
    assert one.paths != other.paths != tuple(paths[0])


LONG = "First I add. Then I think about it. So it is {}."


def test_paths_are_cut_to_their_last_sentences_before_any_is_dropped():
    paths, lm = [[LONG.format(i) for i in range(4)]], ScriptedLM(lambda p, k: "1")
    options = {"template": "{question} {paths}", "shuffle": False}
    words = lambda kept: 1 + sum(3 + len(path.split()) for path in kept)  # noqa: E731

    def run(limit):
        return self_agreement(lm, ["?"], paths=paths, max_prompt_tokens=limit, **options)[0]

    whole, two, one = words(paths[0]), 1 + 4 * (3 + 9), 1 + 4 * (3 + 4)
    assert (run(whole).cut, run(whole).dropped) == (None, 0)
    assert (run(whole - 1).cut, run(whole - 1).dropped) == (2, 0)
    assert (run(two - 1).cut, run(two - 1).dropped) == (1, 0)
    assert run(two - 1).paths == tuple(f"So it is {i}." for i in range(4))
    fewer = run(one - 1)
    assert (fewer.cut, fewer.dropped, len(fewer.paths)) == (1, 1, 3)
    with pytest.raises(ValueError, match="the last prompt of question 0 has 15 tokens of at most 14"):
        run(14)


def test_a_path_of_limited_length_keeps_its_last_sentence():
    for limit, kept in ((30, LONG), (9, "Then I think about it. So it is {}."), (1, "So it is {}.")):
        (found,) = self_agreement(
            ScriptedLM(["1"]), ["?"], paths=[[LONG.format(1), LONG.format(2)]], max_path_tokens=limit, shuffle=False
        )
        assert found.paths == (kept.format(1), kept.format(2))


def test_the_limit_of_a_local_model_is_its_context():
    tokenizer = word_tokenizer(["a b . ; ="])
    lm = TransformersLM(tiny_llama(tokenizer, dim=16, layers=1, context=16), tokenizer)
    (found,) = self_agreement(
        lm,
        ["a"],
        paths=[["a a a .\nb", "b b b .\na", "b"]],
        template=lambda q, p: f"{q} {' ; '.join(p)} =",
        max_tokens=1,
    )
    assert (found.cut, found.dropped) == (None, 0)
    (found,) = self_agreement(
        lm, ["a"], paths=[["a a a a .\nb"] * 3], template=lambda q, p: f"{q} {' ; '.join(p)} =", max_tokens=1
    )
    assert (found.cut, found.paths) == (1, ("b",) * 3)


def test_demonstrations_stand_before_the_last_prompt():
    lm = ScriptedLM(["7"])
    self_agreement(lm, ["3 + 4?"], paths=[["7", "8"]], template="{question} {paths} =>", shuffle=False,
                   demonstrations=[("1 + 1?", ["2", "two"], "2")])  # fmt: skip
    assert lm.calls[0] == (
        "1 + 1? Reasoning path 1: 2\nReasoning path 2: two => 2\n\n3 + 4? Reasoning path 1: 7\nReasoning path 2: 8 =>"
    )


def test_another_model_may_read_the_paths():
    (found,) = self_agreement(ScriptedLM(["a", "b"]), ["?"], n=2, aggregator=ScriptedLM(["b"]))
    assert (found.answer, found.usage.calls) == ("b", 3)


def test_braces_in_a_path_reach_no_other_field():
    assert agreement_template("{question}|{paths}")("{paths}", ["{question}"]) == "{paths}|Reasoning path 1: {question}"


def test_bad_input_is_named():
    lm = ScriptedLM(lambda p, k: "1")
    with pytest.raises(ValueError, match="got n=1"):
        sample_paths(lm, ["?"], 1)
    with pytest.warns(UserWarning, match="temperature 0"):
        sample_paths(lm, ["?"], 2, temperature=0.0)
    with pytest.raises(ValueError, match=r"needs \{paths\}"):
        self_agreement(lm, ["?"], n=2, template="{question}")
    with pytest.raises(ValueError, match="question 1 needs at least 2 paths with text"):
        self_agreement(lm, ["?", "?"], paths=[["a", "b"], ["a", " "]])
    with pytest.raises(ValueError, match="got 1 for 2 questions"):
        self_agreement(lm, ["?", "?"], paths=[["a", "b"]])
    with pytest.raises(ValueError, match="template whose prompts are texts"):
        self_agreement(lm, ["?"], paths=[["a", "b"]], template=lambda q, p: [{"role": "user", "content": q}],
                       demonstrations=[("?", ["a", "b"], "a")])  # fmt: skip


def test_a_model_that_ignores_n_is_an_error():
    class Single:
        def generate(self, prompts, n=1, **options):
            return [[Completion("a")] for _ in prompts]

    with pytest.raises(ValueError, match="gave 1 of 5 paths for prompt 0"):
        sample_paths(Single(), ["?"], 5)


@pytest.mark.parametrize("weights", [[-1, -1, -1, -2], [1, 1, 1, float("nan")], [1, 1, 1, float("inf")]])
def test_weights_of_a_vote_are_finite_and_not_negative(weights):
    with pytest.raises(ValueError, match="weights must be finite and not negative"):
        self_consistency(["7", "7", "7", "8"], last_number, weights)


def test_a_vote_without_weight_is_none():
    with pytest.raises(ValueError, match="sum_of_weights must be positive"):
        self_consistency(["7", "8"], last_number, [0, 0.0])


def test_self_consistency_weighs_and_counts_what_it_cannot_parse():
    vote = self_consistency(["1", "2", "?", "2"], last_number, weights=[5.0, 1.0, 9.0, 1.0])
    assert (vote.answer, vote.votes, vote.unparsed) == (1.0, {1.0: 5.0, 2.0: 2.0}, 1)
    assert self_consistency(["?"], last_number).answer is None
    with pytest.raises(ValueError, match="at least one path"):
        self_consistency([], last_number)
    with pytest.raises(ValueError, match="each of 1 paths, got 2"):
        self_consistency(["1"], last_number, weights=[1, 2])


def test_semantic_vote_takes_the_middle_of_the_largest_cluster():
    vectors = {"a": (1, 0.1), "b": (1, 0), "c": (1, -0.1), "d": (-1, 0), "e": (-1, 0)}
    assert semantic_vote(list("daebc"), lambda texts: np.array([vectors[text] for text in texts]), 0.9) == "b"
    assert semantic_vote(["it is red", "blue", "red it is"], character_ngrams) == "it is red"
    with pytest.raises(ValueError, match=r"\(paths, dim\) for 1 paths"):
        semantic_vote(["a"], lambda texts: np.zeros(3))
    with pytest.raises(ValueError, match="at least one path"):
        semantic_vote([], character_ngrams)


def test_sentences_end_at_marks_and_lines():
    assert last_sentences("It is 3.5. No!\nSo 4", 2) == "No! So 4"
    assert last_sentences("one") == "one"


def test_usages_add_up():
    one = usage_of([Completion("a", tokens=2, prompt_tokens=3, cost=0.5)])
    assert one + one == Usage(2, 6, 4, 1.0)
