"""Scripted models that follow instructions, or their priors, are told apart exactly."""

from __future__ import annotations

import re

import pytest

from heldout.data import Verbalizer, verbalizer_sets
from heldout.lm import ScriptedLM, TransformersLM, tiny_llama, word_tokenizer
from heldout.measure import VerbalizerManipulation, first_word

TEXTS = [f"fine {i}" for i in range(10)] + [f"awful {i}" for i in range(10)]
LABELS = [1] * 10 + [0] * 10
NAMES = ["bad", "good"]
SETS = verbalizer_sets([["negative", "positive"], ["no", "yes"]])


def follower(prompt, sample):
    mapping = {name: word for word, name in re.findall(r"utput '(\w+)' if the sentence is (\w+)", prompt)}
    return mapping["good" if "fine" in prompt else "bad"]


def prior(prompt, sample):
    """Says the natural word of the pair that is named, or nothing that helps."""
    good = "fine" in prompt
    for bad_word, good_word in (("negative", "positive"), ("no", "yes")):
        if f"'{good_word}'" in prompt:
            return good_word if good else bad_word
    return "hmm"


def test_a_model_that_follows_instructions_is_right_with_all_words():
    report = VerbalizerManipulation(TEXTS, LABELS, NAMES, SETS).run(ScriptedLM(follower))
    assert all(row.accuracy.estimate == 1 for row in report.rows)
    assert report.gap.estimate == 0
    assert report.prior_following is None
    assert report.normalised("neutral") == 1


def test_a_model_that_follows_priors_is_wrong_with_exchanged_words():
    report = VerbalizerManipulation(TEXTS, LABELS, NAMES, SETS).run(ScriptedLM(prior))
    assert report.accuracy("natural").estimate == 1
    assert report.accuracy("unnatural").estimate == 0
    assert report.gap.estimate == 1
    assert report.prior_following == 1
    neutral = [row for row in report.rows if row.verbalizer.kind == "neutral"]
    assert [(row.accuracy.estimate, row.off_format) for row in neutral] == [(0, 1), (0, 1)]
    assert [row["prior_following"] for row in report.table()] == [None] * 4 + [1, 1]


def test_priors_of_three_classes_are_known_without_the_natural_words():
    """Words moved on by one class: the natural word of class y stands for class y - 1."""
    texts, labels = [f"{name} {i}" for name in ("cold", "warm", "hot") for i in range(4)], [0] * 4 + [1] * 4 + [2] * 4
    flipped = [v for v in verbalizer_sets([["low", "middle", "high"]], n_neutral=0) if v.kind == "unnatural"]
    natural = {"cold": "low", "warm": "middle", "hot": "high"}
    lm = ScriptedLM(lambda prompt, k: next(word for name, word in natural.items() if f"{name} " in prompt))
    task = VerbalizerManipulation(texts, labels, ["a", "b", "c"], flipped)
    assert task.run(lm).prior_following == 1
    assert VerbalizerManipulation(texts, labels, ["a", "b", "c"], flipped).run(lm).rows[0].accuracy.estimate == 0


def test_the_order_of_the_words_follows_the_seed():
    orders = {tuple(VerbalizerManipulation(TEXTS, LABELS, NAMES, SETS, seed=k).prompts(SETS[0])) for k in range(4)}
    assert len(orders) == 4


def test_the_deviation_over_verbalizers_is_that_of_a_sample():
    lm = ScriptedLM(lambda prompt, k: "positive" if "'positive'" in prompt else follower(prompt, k))
    report = VerbalizerManipulation(TEXTS, LABELS, NAMES, SETS).run(lm)
    assert [row.accuracy.estimate for row in report.rows[:2]] == [0.5, 1.0]
    assert report.deviation("natural") == pytest.approx(0.5 / 2**0.5)


def test_always_the_first_word_is_chance_because_the_order_changes():
    texts, labels = TEXTS * 10, LABELS * 10
    lm = ScriptedLM(lambda prompt, k: re.search(r"utput '(\w+)'", prompt).group(1))
    report = VerbalizerManipulation(texts, labels, NAMES, SETS).run(lm)
    assert 0.4 < report.accuracy("natural").estimate < 0.6
    assert report.deviation("natural") == 0  # the same order for each set


@pytest.mark.parametrize(
    ("text", "found"),
    [("nothing", -1), ("NO.", 0), ("not yes", 1), ("yes, no", 1), ("", -1), ("yesno", -1)],
)
def test_the_first_whole_word_counts(text, found):
    assert first_word(text, ["no", "yes"]) == found


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("答案是肯定的。", ["否定", "肯定"], 1),
        ("不是。", ["是", "不是"], 1),
        ("はい、そうです", ["いいえ", "はい"], 1),
        ("คำตอบคือใช่ครับ", ["ไม่", "ใช่"], 1),
        ("答案是yes", ["no", "yes"], 1),
        ("<think> no, or no? </think> yes", ["no", "yes"], 1),
        ("so no </think> yes", ["no", "yes"], 1),
        ("yes <think> no", ["no", "yes"], 1),
        ("<think> no", ["no", "yes"], -1),
        ("<thinking> no </thinking> yes", ["no", "yes"], 1),
        ("<THINK> no </Think> yes", ["no", "yes"], 1),
        ("yes <Thinking> no", ["no", "yes"], 1),
    ],
)
def test_words_are_found_in_any_script_and_not_in_thoughts(text, words, found):
    assert first_word(text, words) == found


def test_the_best_scored_word_wins_and_lengths_are_divided_by():
    lm = ScriptedLM([], scores=lambda prompt, word: {" no": -2.0, " yes": -3.0}[word])
    one = [Verbalizer(("no", "yes"))]
    options = {"mode": "score"}
    assert set(VerbalizerManipulation(TEXTS, LABELS, NAMES, one, **options).run(lm).rows[0].answers) == {0}
    options["length"] = {"no": 1.0, "yes": 3.0}.__getitem__
    assert set(VerbalizerManipulation(TEXTS, LABELS, NAMES, one, **options).run(lm).rows[0].answers) == {1}


def test_scores_belong_to_their_own_texts_in_whatever_order_words_are_named():
    lm = ScriptedLM([], scores=lambda prompt, word: float(word.strip() == follower(prompt, 0)))
    report = VerbalizerManipulation(TEXTS, LABELS, NAMES, SETS, mode="score", seed=5).run(lm)
    assert all(row.answers == tuple(LABELS) for row in report.rows)


@pytest.mark.parametrize("count", [4, 6, 8, 10, 20, 22])
@pytest.mark.parametrize("seed", range(5))
def test_calibration_leaves_a_perfect_model_perfect_on_few_texts(count, seed):
    def score(prompt, word):
        first = re.search(r"utput '(\w+)'", prompt).group(1) == word.strip()
        return float(word.strip() == follower(prompt, 0)) + 3 * first

    half = count // 2
    task = VerbalizerManipulation(
        [f"{word} {i}" for word in ("fine", "awful") for i in range(half)],
        [1] * half + [0] * half,
        NAMES,
        SETS[:1],
        mode="score",
        calibrate=True,
        seed=seed,
    )
    assert task.run(ScriptedLM([], scores=score)).accuracy("natural").estimate == 1


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_each_class_stands_at_each_place_equally_often_in_the_texts_of_every_class(classes):
    names = [f"class{i}" for i in range(classes)]
    words = Verbalizer(tuple(f"word{i}" for i in range(classes)))
    labels = [i % classes for i in range(classes * 2 * classes)]
    texts = [f"text {i}" for i in range(len(labels))]
    for options in ({}, {"mode": "score", "calibrate": True}):
        task = VerbalizerManipulation(
            texts, labels, names, [words], template=lambda text, pairs: " ".join(word for word, _ in pairs), **options
        )
        named = [prompt.split() for prompt in task.prompts(words)]
        for label in range(classes):
            of_class = [order for order, y in zip(named, labels, strict=True) if y == label]
            for place in range(classes):
                assert sorted(order[place] for order in of_class) == sorted(2 * words.words)


def test_scores_that_are_no_numbers_are_refused_with_the_prompt():
    def scored(bad, word, **options):
        lm = ScriptedLM([], scores=lambda p, w: bad if "fine 3" in p and w.strip() in word else -1.0)
        VerbalizerManipulation(TEXTS, LABELS, NAMES, SETS[:1], mode="score", **options).run(lm)

    for bad in (float("nan"), float("inf")):
        for options in ({}, {"calibrate": True}):
            with pytest.raises(ValueError, match=r"scores of the words are .*fine 3.*must be finite"):
                scored(bad, ["positive"], **options)
    scored(-float("inf"), ["positive"])
    for words, options in ((["positive", "negative"], {}), (["positive"], {"calibrate": True})):
        with pytest.raises(ValueError, match=r"-inf.*fine 3.*must be finite"):
            scored(-float("inf"), words, **options)
    with pytest.raises(ValueError, match="length must be positive"):
        scored(-1.0, [], length=lambda word: 0)


def test_calibration_takes_away_what_a_word_scores_whatever_the_text():
    def score(prompt, word):
        """The word that is right is likelier by one nat; "positive" and "yes" are by ten, and more if named first."""
        liked = word.strip() in ("positive", "yes")
        first = re.search(r"utput '(\w+)'", prompt).group(1) == word.strip()
        return float(word.strip() == follower(prompt, 0)) + 10 * liked + 3 * first

    texts, labels = TEXTS * 4, LABELS * 4
    raw, calibrated = (
        VerbalizerManipulation(texts, labels, NAMES, SETS[:2], mode="score", calibrate=calibrate)
        .run(ScriptedLM([], scores=score))
        .accuracy("natural")
        .estimate
        for calibrate in (False, True)
    )
    assert (raw, calibrated) == (0.5, 1.0)


def test_a_constant_on_all_logits_changes_nothing():
    tokenizer = word_tokenizer([*TEXTS, "foo bar"])
    model = tiny_llama(tokenizer, dim=16, layers=1)
    task = VerbalizerManipulation(
        TEXTS, LABELS, NAMES, [Verbalizer(("foo", "bar"))], template=lambda text, pairs: text, mode="score", lead=""
    )
    before = task.run(TransformersLM(model, tokenizer)).rows[0].answers
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 7.0)
    assert task.run(TransformersLM(model, tokenizer)).rows[0].answers == before


def test_reasoning_comes_before_the_answer():
    def think(prompt, sample):
        return follower(prompt, sample) if prompt.endswith("Therefore, the output is") else "The sentence is clear."

    lm = ScriptedLM(think)
    report = VerbalizerManipulation(TEXTS, LABELS, NAMES, SETS[:1], cot=True).run(lm)
    assert report.accuracy("natural").estimate == 1
    assert "The sentence is clear." in lm.calls[-1]


def test_what_cannot_be_measured_is_refused():
    for change, message in [
        ({"labels": LABELS[:-1]}, "as many"),
        ({"labels": [*LABELS[:-1], 2]}, "from 0 to 1"),
        ({"verbalizers": []}, "at least one verbalizer"),
        ({"verbalizers": [Verbalizer(("a", "b", "c"))]}, "3 words for 2 classes"),
        ({"verbalizers": [Verbalizer(("not", "nothing"))]}, "beginning of 'nothing'"),
        ({"mode": "guess"}, "mode must be"),
        ({"calibrate": True}, "calibrate needs mode='score'"),
    ]:
        arguments = {"labels": LABELS, "verbalizers": SETS, **change}
        labels, sets = arguments.pop("labels"), arguments.pop("verbalizers")
        with pytest.raises(ValueError, match=message):
            VerbalizerManipulation(TEXTS, labels, NAMES, sets, **arguments)
    with pytest.warns(UserWarning, match=r"\[1, 19\] texts"):
        VerbalizerManipulation(TEXTS, [0] + [1] * 19, NAMES, SETS)
    VerbalizerManipulation(TEXTS, LABELS, NAMES, [Verbalizer(("not", "nothing"))], mode="score")
    with (
        pytest.warns(UserWarning, match=r"\[2, 1\] texts"),
        pytest.raises(ValueError, match="at least 2 texts"),
    ):
        VerbalizerManipulation(TEXTS[:3], [1, 0, 0], NAMES, SETS, mode="score", calibrate=True)
