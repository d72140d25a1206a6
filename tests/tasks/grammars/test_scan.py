"""SCAN against the paper's own examples, its count, and an interpreter by substitution."""

import pytest

from heldout.tasks import SCAN_PRIMITIVES, ScanGrammar, mini_scan


def substituted(source):
    """SCAN's interpretation by rewriting of text, from arXiv:1711.00350, figure 7."""
    actions = {"walk": "W", "look": "O", "run": "R", "jump": "J", "turn": ""}
    for conjunction in (" and ", " after "):
        if conjunction in source:
            first, second = (substituted(part) for part in source.split(conjunction))
            return first + second if conjunction == " and " else second + first
    times = 1
    for word, count in ((" twice", 2), (" thrice", 3)):
        if source.endswith(word):
            source, times = source.removesuffix(word), count
    words = source.split()
    turn = {"left": "<", "right": ">"}.get(words[-1], "")
    act = actions[words[0]]
    if "around" in words:
        return (turn + act) * 4 * times
    return (turn * (2 if "opposite" in words else 1) + act) * times


SIGNS = {"I_WALK": "W", "I_LOOK": "O", "I_RUN": "R", "I_JUMP": "J", "I_TURN_LEFT": "<", "I_TURN_RIGHT": ">"}


def test_scan_has_its_20910_commands_and_each_means_what_the_paper_says():
    pairs = list(ScanGrammar().pairs())
    assert len(pairs) == len(ScanGrammar()) == len({source for source, _ in pairs}) == 20910
    assert max(len(target) for _, target in pairs) == 48
    assert all("".join(SIGNS[a] for a in target) == substituted(" ".join(source)) for source, target in pairs)


def test_the_interpreter_agrees_with_the_generator_on_every_command():
    grammar = ScanGrammar()
    assert all(grammar.interpret(source) == target for source, target in grammar.pairs())


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("jump left", "I_TURN_LEFT I_JUMP"),
        ("jump around right", "I_TURN_RIGHT I_JUMP " * 4),
        ("turn opposite left", "I_TURN_LEFT I_TURN_LEFT"),
        ("jump thrice", "I_JUMP I_JUMP I_JUMP"),
        ("jump opposite left and walk thrice", "I_TURN_LEFT I_TURN_LEFT I_JUMP I_WALK I_WALK I_WALK"),
        ("jump opposite left after walk around left",
         "I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK I_TURN_LEFT I_WALK I_TURN_LEFT I_TURN_LEFT I_JUMP"),
    ],
)  # fmt: skip
def test_the_paper_s_examples(source, target):
    assert ScanGrammar().interpret(source) == tuple(target.split())


def test_samples_are_different_reproducible_and_all_of_them_are_all_commands():
    grammar = mini_scan()
    everything = grammar.sample(len(grammar), seed=1)
    assert sorted(everything) == sorted(grammar.pairs())
    assert grammar.sample(50, seed=3) == grammar.sample(50, seed=3) != grammar.sample(50, seed=4)


def test_a_sample_is_kept_by_its_words_and_costs_nothing_for_what_is_not_drawn():
    many = mini_scan({f"w{i}": f"W{i}" for i in range(20_000)})
    assert len(many) > 10**10
    assert all(many.interpret(source) == target for source, target in many.sample(50, seed=0))
    kept = mini_scan().sample(40, seed=0, keep=lambda source: "jump" in source and "after" in source)
    assert len({source for source, _ in kept}) == 40
    assert all("jump" in source and "after" in source for source, _ in kept)


def test_the_words_of_a_sample_are_drawn_alike():
    first = [source[0] for source, _ in mini_scan().sample(2000, seed=5)]
    assert all(abs(first.count(word) / 2000 - 0.25) < 0.06 for word in SCAN_PRIMITIVES)


def test_mini_scan_has_the_clauses_of_its_definition():
    assert len(mini_scan({"walk": "W", "run": "R", "look": "L"})) == 27 + 2 * 27**2
    assert len(mini_scan(manners=["opposite"])) == 60 + 2 * 60**2


@pytest.mark.parametrize("source", ["", "jump jump", "turn", "jump opposite", "jump around twice", "fly", "and jump",
                                    "jump and", "jump and walk and run", "left jump"])  # fmt: skip
def test_what_is_no_command_is_refused(source):
    with pytest.raises(ValueError, match="source must be a command"):
        ScanGrammar().interpret(source)


def test_turn_and_manners_are_refused_where_the_grammar_has_none():
    for source in ("turn left", "jump around left"):
        with pytest.raises(ValueError, match="source"):
            mini_scan().interpret(source)


def test_unusable_words_and_numbers_are_refused_by_name():
    for primitives in ({}, {"twice": "X"}, {"jump high": "X"}, {"": "X"}):
        with pytest.raises(ValueError, match="primitives"):
            ScanGrammar(primitives)
    with pytest.raises(ValueError, match="manners"):
        ScanGrammar(manners=["upwards"])
    with pytest.raises(ValueError, match="n must be at most 2628"):
        mini_scan().sample(2629)
    with pytest.raises(ValueError, match="at most 0"):
        mini_scan().sample(1, keep=lambda source: False)
