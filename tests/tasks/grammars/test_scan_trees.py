"""Trees of SCAN: none has crossing arcs, and computed from them commands mean what the interpreter says."""

import pytest

from heldout.nn import oracle_steps
from heldout.tasks import SCAN_ARITIES, SCAN_PRIMITIVES, ScanGrammar, command_heads, projective_command

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
