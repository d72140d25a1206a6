"""PCFG string edits against the examples of the paper and hand-written ones."""

from collections import Counter

import pytest

from heldout.tasks import EDIT_FUNCTIONS, StringEdits


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("copy A B", "A B"),
        ("reverse A B C", "C B A"),
        ("shift A B C", "B C A"),
        ("echo A B C", "A B C C"),
        ("swap_first_last A B C", "C B A"),
        ("swap_first_last A B C D", "D B C A"),
        ("swap_first_last A", "A"),
        ("repeat A B", "A B A B"),
        ("append A B , C", "A B C"),
        ("prepend A B , C", "C A B"),
        ("remove_first A B , C", "C"),
        ("remove_second A B , C", "A B"),
        ("repeat append A B , C", "A B C A B C"),
        ("append swap_first_last F G H , repeat K L", "H G F K L K L"),
        ("append append A , B , C", "A B C"),
        ("remove_first A , append B , echo C", "B C C"),
    ],
)
def test_functions_do_what_the_paper_says(source, target):
    assert StringEdits().interpret(source) == tuple(target.split())


def test_the_interpreter_agrees_with_the_generator():
    edits = StringEdits(max_functions=7, max_output=60)
    pairs = edits.sample(3000, seed=1)
    assert len({source for source, _ in pairs}) == 3000
    assert all(edits.interpret(source) == target for source, target in pairs)


def test_all_functions_and_numbers_of_calls_occur_and_the_limits_hold():
    edits = StringEdits(max_functions=3, max_letters=2, max_output=6)
    pairs = edits.sample(1500, seed=0)
    assert {token for source, _ in pairs for token in source} >= set(EDIT_FUNCTIONS)
    calls = Counter(sum(token in EDIT_FUNCTIONS for token in source) for source, _ in pairs)
    assert set(calls) == {1, 2, 3}
    assert max(len(target) for _, target in pairs) <= 6


def test_the_same_seed_gives_the_same_pairs_and_another_others():
    edits = StringEdits()
    assert edits.sample(30, seed=2) == edits.sample(30, seed=2) != edits.sample(30, seed=3)


@pytest.mark.parametrize("source", ["", "copy", "append A B", "append A ,", "copy A , B", "jump A", "A ,"])
def test_what_is_no_call_is_refused(source):
    with pytest.raises(ValueError, match="source"):
        StringEdits().interpret(source)


def test_unusable_options_are_refused_by_name():
    with pytest.raises(ValueError, match="letters"):
        StringEdits(letters=["A", "copy"])
    with pytest.raises(ValueError, match="functions"):
        StringEdits(functions=["sort"])
    with pytest.raises(ValueError, match="max_functions"):
        StringEdits(max_functions=0)
    with pytest.raises(ValueError, match="n must be at most"):
        StringEdits(letters=["A"], functions=["copy"], max_functions=1).sample(1000)
