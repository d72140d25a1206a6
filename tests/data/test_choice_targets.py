"""Random and flipped targets of choice examples."""

import pytest
from scipy.stats import chisquare

from heldout.data import randomize_targets
from heldout.lm import ChoiceExample


def examples(count, options=2):
    return [ChoiceExample(f"question {k}", [f" {j}" for j in range(options)], k % options) for k in range(count)]


def test_flipping_twice_gives_the_examples_back():
    asked = examples(20)
    flipped = randomize_targets(asked, "flip", seed=3)
    assert all(a.answer != b.answer for a, b in zip(asked, flipped, strict=True))
    assert randomize_targets(flipped, "flip", seed=8) == asked


@pytest.mark.parametrize("options", [2, 3, 5])
def test_random_targets_are_uniform_whatever_the_right_option_is(options):
    asked = examples(6000 // options * options, options)
    drawn = randomize_targets(asked, seed=1)
    for right in range(options):
        counts = [0] * options
        for before, after in zip(asked, drawn, strict=True):
            if before.answer == right:
                counts[after.answer] += 1
        assert chisquare(counts).pvalue > 1e-3


def test_a_flipped_target_is_each_wrong_option_and_never_the_right_one():
    asked = examples(3000, 4)
    counts = [0] * 4
    for before, after in zip(asked, randomize_targets(asked, "flip"), strict=True):
        counts[(after.answer - before.answer) % 4] += 1
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > 1e-3


def test_the_examples_stay_and_the_seed_decides():
    asked = examples(50)
    copy = list(asked)
    first = randomize_targets(asked, seed=0)
    assert asked == copy
    assert [(e.prompt, e.options) for e in first] == [(e.prompt, e.options) for e in asked]
    assert randomize_targets(asked, seed=0) == first != randomize_targets(asked, seed=1)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="examples"):
        randomize_targets([])
    with pytest.raises(ValueError, match="mode"):
        randomize_targets(examples(2), "shuffle")
