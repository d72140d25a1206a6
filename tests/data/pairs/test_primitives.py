"""More primitives: every pair that is made means what it says."""

import pytest

from heldout.data import expand_primitives, primitive_copies
from heldout.tasks import SCAN_PRIMITIVES, ScanGrammar, mini_scan

SLOTS = {"walk": "I_WALK", "look": "I_LOOK", "run": "I_RUN"}


def test_the_reference_interpreter_reads_every_expanded_command_as_it_is_stored():
    pairs = ScanGrammar().sample(150, seed=0)
    extended = ScanGrammar({**primitive_copies(SLOTS, 3), "jump": "I_JUMP"})
    found = expand_primitives(pairs, SLOTS, 3)
    assert all(extended.interpret(source) == target for source, target in found)
    expected = sum(3 ** len({word for word in source if word in SLOTS}) for source, _ in pairs)
    assert len(found) == len(set(found)) == expected


def test_every_copy_occurs_and_the_originals_are_among_them():
    pairs = mini_scan().sample(60, seed=0)
    found = expand_primitives(pairs, SLOTS, 4)
    assert set(pairs) <= set(found)
    assert {token for source, _ in found for token in source} >= set(primitive_copies(SLOTS, 4))
    assert not any("jump_1" in source for source, _ in found)


def test_a_number_of_versions_is_drawn_without_repetition():
    pairs = mini_scan().sample(60, seed=0)
    found = expand_primitives(pairs, SLOTS, 20, per_pair=5, seed=1)
    counts = [5 if any(word in SLOTS for word in source) else 1 for source, _ in pairs]
    assert len(found) == len(set(found)) == sum(counts)
    assert set(found) <= set(expand_primitives(pairs, SLOTS, 20))
    assert found == expand_primitives(pairs, SLOTS, 20, per_pair=5, seed=1)
    assert found != expand_primitives(pairs, SLOTS, 20, per_pair=5, seed=2)


def test_versions_are_drawn_of_all_combinations_of_copies():
    pair = [("walk and run", "I_WALK I_RUN")]
    slots = {"walk": "I_WALK", "run": "I_RUN"}
    assert len(expand_primitives(pair, slots, 3, per_pair=8)) == 8
    drawn = [expand_primitives(pair, slots, 3, per_pair=1, seed=seed)[0] for seed in range(60)]
    assert len(set(drawn)) == 9


def test_a_factor_of_1_changes_nothing():
    pairs = mini_scan().sample(30, seed=0)
    assert expand_primitives(pairs, SLOTS, 1) == pairs


def test_unusable_slots_are_refused_by_name():
    with pytest.raises(ValueError, match="slots must occur"):
        expand_primitives([("walk", "I_WALK")], {"fly": "I_FLY"}, 2)
    with pytest.raises(ValueError, match="pairs must not hold copies"):
        expand_primitives([("walk walk_1", "I_WALK")], {"walk": "I_WALK"}, 2)
    with pytest.raises(ValueError, match="slots must not name"):
        primitive_copies({"walk": "W", "walk_1": "V"}, 2)
    for slots in ({"walk": "W", "stroll": "W"}, {"walk": "W", "run": "W_1"}):
        with pytest.raises(ValueError, match="nor two words one target word"):
            expand_primitives([("walk and stroll run", "W W W_1")], slots, 2)
    for factor in (0, -1):
        with pytest.raises(ValueError, match="factor"):
            expand_primitives([("walk", "I_WALK")], {"walk": "I_WALK"}, factor)
    assert SCAN_PRIMITIVES["jump"] == "I_JUMP"
