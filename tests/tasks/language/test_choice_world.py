"""The nine tasks: right by their own rules, balanced, and held out by prompt."""

import re
from collections import Counter

import pytest

from heldout.lm import word_tokenizer
from heldout.tasks import CHOICE_TASKS, choice_examples, choice_words, random_choices

KINDS = {
    "fruit": "plum pear fig lime date kiwi",
    "tool": "saw file nail drill rake axe",
    "cloth": "hat coat sock scarf shoe belt",
    "dish": "cup bowl plate fork jug pan",
}


def number(word):
    return int(word[1:])


def solved(task, prompt):
    """The right word, worked out from the prompt alone."""
    words = prompt.split()
    if task == "inclusion":
        held, asked = re.fullmatch(r"does (.*) hold (.*) \?", prompt).groups()
        return "yes" if set(asked.split()) <= set(held.split()) else "no"
    if task == "agreement":
        subject, rest = prompt.removeprefix("the ").split(" near the ")
        verb = rest.removesuffix(" right ?").split(" ", 1)[1].removeprefix("s ")
        return "yes" if subject.endswith(" s") != verb.endswith(" s") else "no"
    if task == "parity":
        return "yes" if words.count("tick") % 2 == 0 else "no"
    if task == "order":
        return "yes" if number(words[1]) < number(words[3]) else "no"
    if task == "compare":
        return "more" if number(words[1]) > number(words[3]) else "less"
    if task == "lookup":
        return words[2] if words[-1] in KINDS else words[4]
    if task == "next":
        row = [number(word) for word in words[:-1]]
        return f"n{2 * row[-1] - row[-2]}"
    if task == "category":
        (word,) = [word for word in words[3:-1] if word in KINDS[words[1]].split()]
        return word
    raise AssertionError(task)


@pytest.mark.parametrize("task", [task for task in CHOICE_TASKS if task != "recall"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_answers_follow_from_the_prompt(task, part):
    for example in choice_examples(task, 200, part=part, world=3, seed=1):
        right, wrong = example.options[example.answer], example.options[1 - example.answer]
        assert right == f" {solved(task, example.prompt)}" != wrong


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_distinct_prompts_come_once_and_are_enough_for_the_study(task):
    for part, count in (("train", 180), ("test", 80)):
        for world in range(3):
            found = choice_examples(task, count, part=part, distinct=True, world=world)
            assert len({e.prompt for e in found}) == count
    with pytest.raises(ValueError, match="n must be at most"):
        choice_examples("recall", 400, distinct=True)


@pytest.mark.parametrize("task", CHOICE_TASKS)
def test_no_prompt_is_in_both_parts_and_answers_are_balanced(task):
    train, test = (choice_examples(task, 800, part=part, world=2, seed=5) for part in ("train", "test"))
    assert not {e.prompt for e in train} & {e.prompt for e in test}
    assert 0.4 < sum(e.answer for e in train) / 800 < 0.6
    words = Counter(option for e in train for option in e.options)
    assert (len(words) == 2) == (CHOICE_TASKS[task] != "content")


def test_four_judgements_share_their_words_and_their_order():
    shared = {name for name, kind in CHOICE_TASKS.items() if kind == "shared words"}
    assert len(shared) == 4
    assert {tuple(e.options) for name in shared for e in choice_examples(name, 20)} == {(" no", " yes")}
    assert {tuple(e.options) for e in choice_examples("compare", 20)} == {(" less", " more")}


def test_facts_hold_throughout_a_world_and_differ_between_worlds():
    def facts(world, part, seed=0):
        found = {}
        for e in choice_examples("recall", 4000, part=part, world=world, seed=seed):
            assert found.setdefault(e.prompt, e.options[e.answer]) == e.options[e.answer]
        return found

    one, again, other = facts(1, "both"), facts(1, "train", seed=9), facts(2, "both")
    assert again.items() < one.items()
    assert len(one) == 288
    assert sum(one[key] == other[key] for key in one) < 144


def test_every_prompt_is_of_known_words_and_short():
    tokenizer = word_tokenizer([" ".join(choice_words())])
    for task in CHOICE_TASKS:
        for e in choice_examples(task, 100, part="both"):
            ids = tokenizer(e.prompt + e.options[0])["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) <= 22


def test_the_seed_decides():
    assert (
        choice_examples("order", 5, seed=1)
        == choice_examples("order", 5, seed=1)
        != choice_examples("order", 5, seed=2)
    )


def test_bad_input_is_named():
    for options, name in (
        ({"task": "sums"}, "task"),
        ({"n": 0}, "n"),
        ({"part": "all"}, "part"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ValueError, match=name):
            choice_examples(**{"task": "order", "n": 1} | options)


def test_random_choices_are_of_different_known_words():
    found = random_choices(50, seed=2)
    for example in found:
        words = [*example.prompt.split(), *(option.strip() for option in example.options)]
        assert len(set(words)) == 8
        assert set(words) <= set(choice_words())
    assert found == random_choices(50, seed=2) != random_choices(50, seed=3)
