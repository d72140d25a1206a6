"""Trees of SCAN: none has crossing arcs, and computed from them commands mean what the interpreter says."""

import pytest

from heldout.nn import oracle_steps
from heldout.tasks import (
    SCAN_ARITIES,
    SCAN_PRIMITIVES,
    ScanGrammar,
    command_heads,
    projective_command,
    projective_split,
)

MEANING = {
    "left": lambda x: ("I_TURN_LEFT", *x), "right": lambda x: ("I_TURN_RIGHT", *x), "turn": lambda: (),
    "opposite": lambda x: (x[0], *x), "around": lambda x: 4 * x, "twice": lambda x: 2 * x, "thrice": lambda x: 3 * x,
    "and": lambda x, y: x + y, "after": lambda x, y: y + x,
    **{word: lambda action=action: (action,) for word, action in SCAN_PRIMITIVES.items()},
}  # fmt: skip


def meaning(words, heads, position):
    children = [child for child, head in enumerate(heads) if head == position]
    assert len(children) == SCAN_ARITIES.get(words[position], 0)
    return MEANING[words[position]](*(meaning(words, heads, child) for child in children))


def test_every_command_means_by_its_tree_what_the_interpreter_says():
    for source, target in list(ScanGrammar().pairs())[::7]:
        words = projective_command(source)
        heads = command_heads(words)
        assert meaning(words, heads, heads.index(-1)) == target


def test_every_clause_and_pair_of_clauses_has_a_projective_tree():
    for source, _ in list(ScanGrammar().pairs())[::23]:
        heads = command_heads(projective_command(source))
        assert len(oracle_steps([0] * len(heads), heads, 1)) == 2 * len(heads) - 1


def test_only_manners_move_and_moving_twice_is_moving_once():
    once = projective_command("jump around left twice after walk opposite right")
    assert " ".join(once) == "jump left around twice after walk right opposite"
    assert projective_command(once) == once
    assert projective_command("jump left twice") == ("jump", "left", "twice")


def test_what_has_no_tree_is_refused():
    for words in ("", "and walk", "walk and", "walk and run after look"):
        with pytest.raises(ValueError, match="words"):
            command_heads(words)
    for source in ("jump around", "jump around twice", ""):
        with pytest.raises(ValueError, match="source"):
            projective_command(source)


def test_the_splits_hold_out_what_they_say_and_train_on_every_clause_that_they_may():
    for seed in (0, 1):
        length = projective_split("length", seed=seed)
        assert max(len(target) for _, target in length.train) == 8
        assert {len(target) for _, target in length.test} <= set(range(9, 25))
        jump = projective_split("jump", seed=seed)
        assert [source for source, _ in jump.train if "jump" in source] == [("jump",)]
        assert all("jump" in source and len(source) > 1 for source, _ in jump.test)
        for split, clauses in ((length, 60), (jump, 64)):
            assert (len(split.train), len(split.test)) == (500, 300)
            assert not {source for source, _ in split.train} & {source for source, _ in split.test}
            assert sum(not {"and", "after"} & set(source) for source, _ in split.train) == clauses
            for source, target in split.train[::9] + split.test[::9]:
                heads = command_heads(source)
                assert meaning(source, heads, heads.index(-1)) == target
    assert projective_split("jump", seed=3) == projective_split("jump", seed=3) != projective_split("jump", seed=4)


def test_splits_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="train must be from 60"):
        projective_split("length", train=59)
    with pytest.raises(ValueError, match="test must be at most"):
        projective_split("length", test=10**6)
    with pytest.raises(ValueError, match="kind"):
        projective_split("around")
