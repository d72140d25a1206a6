"""The whole loop on small languages whose rules are known, each module alone and all together."""

import pytest
import torch
from torch import nn

from heldout.nn import Parse, RuleParser, ShiftReduceParser
from heldout.train import AbductionRecipe, DeductionAbduction, IntDSL, ListDSL, ProgramLibrary
from heldout.train.programs.deduction_abduction import likeliest_sequences
from tests.train.programs.test_dsl import term

# 0 and 1 are A and B, 2 doubles what is before it, 3 joins
DOUBLES = [
    ([0], "A"), ([1], "B"), ([0, 2], "AA"), ([1, 2], "BB"), ([0, 2, 2], "AAAA"), ([1, 2, 2], "BBBB"), ([0, 3, 1], "AB"),
    ([1, 3, 0], "BA"), ([1, 3, 0, 2], "BAA"), ([0, 2, 3, 1], "AAB"), ([0, 3, 0, 2], "AAA"), ([1, 2, 3, 0], "BBA"),
]  # fmt: skip
PAIRS = [(source, tuple(target)) for source, target in DOUBLES]


def heads(symbols):
    """The tree of a sentence of the language."""
    at = list(symbols).index(3) if 3 in symbols else None
    ends = [len(symbols)] if at is None else [at, len(symbols)]
    found = [place + 1 for place in range(len(symbols))]
    for end in ends:
        found[end - 1] = -1 if at is None else at
    if at is not None:
        found[at] = -1
    return found


def library(arities=(0, 0, 1, 2), **options):
    return ProgramLibrary(ListDSL(["A", "B"]), arities, wanted=1, **options)


RECIPE = AbductionRecipe(epochs=16, passes=3, synthesize_every=1, parser_steps=30, parser_batch=128)


@pytest.mark.parametrize("arities", [(0, 0, 1, 2), None])
def test_trees_and_programs_are_learned_from_answers_and_carry_over_to_longer_inputs(arities):
    torch.manual_seed(0)
    machine = DeductionAbduction(ShiftReduceParser(4, embed=16, hidden=64, lr=1e-3), library(arities))
    assert machine.schedule == ("semantics", "syntax")
    history = machine.fit(PAIRS * 4, RECIPE)
    assert [phase.module for phase in history[:3]] == ["semantics", "syntax", "semantics"]
    assert history[0].deduced == 0.0 < history[0].found
    assert [str(machine.programs.learned(symbol).program) for symbol in range(4)] == [
        "cons('A', nil)", "cons('B', nil)", "concat(x0, x0)", "concat(x0, x1)",
    ]  # fmt: skip
    longer = [[0, 2, 3, 1, 2], [1, 3, 0, 2, 2, 2]]
    assert [tree.value for tree in machine.predict(longer)] == [("A", "A", "B", "B"), ("B",) + ("A",) * 8]


def test_learning_is_the_same_again():
    values = []
    for _ in range(2):
        torch.manual_seed(0)
        machine = DeductionAbduction(ShiftReduceParser(4, embed=8, hidden=16, lr=1e-3), library(), seed=5)
        values.append((machine.fit(PAIRS, RECIPE), [tree.heads for tree in machine.predict([[0, 3, 1, 2]])]))
    assert values[0] == values[1]


def test_a_given_parser_is_not_trained():
    machine = DeductionAbduction(RuleParser(heads), library(), schedule=["semantics"])
    machine.fit(PAIRS, AbductionRecipe(epochs=4, passes=1, synthesize_every=1))
    assert machine.predict([[0, 2, 2, 3, 1]])[0].value == tuple("AAAAB")
    with pytest.raises(TypeError, match="fit"):
        DeductionAbduction(RuleParser(heads), library())


def test_without_abduction_only_trees_that_are_right_are_learned_from():
    machine = DeductionAbduction(RuleParser(heads), library(), schedule=["semantics"])
    history = machine.fit(PAIRS, AbductionRecipe(epochs=3, passes=1, abduction=False))
    assert all(phase.found == phase.deduced == 0.0 for phase in history)
    explored = DeductionAbduction(RuleParser(heads), library(explore=True), schedule=["semantics"])
    recipe = AbductionRecipe(epochs=60, passes=1, synthesize_every=1, abduction=False)
    history = explored.fit(PAIRS * 20, recipe)
    assert history[-1].deduced > 0.1
    assert all(phase.found == phase.deduced for phase in history)


def test_programs_are_looked_for_in_every_so_many_phases():
    machine = DeductionAbduction(RuleParser(heads), library(), schedule=["semantics"])
    machine.fit(PAIRS, AbductionRecipe(epochs=2, passes=1, synthesize_every=3))
    assert machine.programs.learned(0).program is None
    assert machine.programs.learned(0).examples == 1
    machine.fit(PAIRS, AbductionRecipe(epochs=1, passes=1, synthesize_every=3))
    assert machine.programs.learned(0).program is not None


def test_a_curriculum_leaves_long_inputs_for_later():
    machine = DeductionAbduction(RuleParser(heads), library(), schedule=["semantics"])
    machine.fit(PAIRS, AbductionRecipe(epochs=2, passes=1, curriculum=[(0, 1), (5, 9)]))
    assert machine.programs.learned(0).examples == 1
    assert machine.programs.learned(2).examples == machine.programs.learned(3).examples == 0
    assert [AbductionRecipe(curriculum=[(0, 1), (5, 9)]).longest(epoch) for epoch in (0, 4, 5, 50)] == [1, 1, 9, 9]
    with pytest.raises(ValueError, match="curriculum"):
        machine.fit(PAIRS[2:], AbductionRecipe(curriculum=[(0, 1)]))


class Picture(nn.Module):
    """A classifier with BatchNorm and dropout, as a user's may have them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))

    def forward(self, x):
        return self.layers(x)


def pictures(symbols, generator):
    return torch.eye(6)[symbols] * 3 + 0.3 * torch.randn(len(symbols), 6, generator=generator)


def test_perception_is_learned_from_answers_of_sums_where_the_rest_is_known():
    generator = torch.Generator().manual_seed(0)
    programs = ProgramLibrary(IntDSL(), [0, 0, 0, 2], wanted=1)
    for symbol in range(3):
        programs.give(symbol, term("succ(" * symbol + "zero" + ")" * symbol), 0)
    programs.give(3, term("rec0(x1, succ(r))"), 2)
    torch.manual_seed(0)
    machine = DeductionAbduction(
        RuleParser(lambda symbols: [1, -1, 1] if len(symbols) == 3 else [-1]), programs, Picture(), ["perception"]
    )
    sentences = [[x] for x in range(3)] * 10 + [[x, 3, y] for x in range(3) for y in range(3)] * 4
    examples = [(pictures(each, generator), sum(s for s in each if s < 3)) for each in sentences]
    machine.perception.train()
    machine.fit(examples, AbductionRecipe(epochs=25, passes=1, perception_steps=15, perception_lr=0.01))
    assert machine.perception.training
    trees = machine.predict([inputs for inputs, _ in examples])
    right = sum(tree.value == answer for tree, (_, answer) in zip(trees, examples, strict=True))
    assert right / len(examples) > 0.9
    assert sum(tree.symbols == each for tree, each in zip(trees, sentences, strict=True)) / len(examples) > 0.9


def test_perception_with_dropout_is_learned_the_same_again_whatever_was_drawn_before():
    weights = []
    for before in (1, 2):
        torch.manual_seed(0)
        picture = Picture()
        torch.manual_seed(before)
        machine = DeductionAbduction(RuleParser(lambda symbols: [-1]), library((0, 0, 0, 0)), picture, seed=2,
                                     schedule=["semantics", "perception"])  # fmt: skip
        examples = [
            (pictures([n % 2], torch.Generator().manual_seed(n)), ("A", "B")[n % 2 : n % 2 + 1]) for n in range(8)
        ]
        machine.fit(examples, AbductionRecipe(epochs=4, passes=1, synthesize_every=1, perception_steps=3))
        weights.append(picture.layers[-1].weight.detach().clone())
    assert torch.equal(*weights)


def test_the_next_likely_symbols_are_tried_where_the_likeliest_have_no_value():
    class Unsure(nn.Module):
        def forward(self, x):
            return torch.tensor([[2.0, 1.9, -3.0, -3.0]]).expand(len(x), -1)

    programs = library()
    programs.give(1, term("cons('B', nil)"), 0)
    machine = DeductionAbduction(RuleParser(lambda symbols: [-1]), programs, Unsure(), ["semantics"])
    (first,) = machine.predict([torch.zeros(1, 2)])
    (second,) = machine.predict([torch.zeros(1, 2)], tries=2)
    assert first.symbols == [0]
    assert second.symbols == [1]
    assert second.value == ("B",)


def test_sequences_come_in_the_order_of_their_likelihood():
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).log_softmax(1)
    ways = list(likeliest_sequences(scores))
    totals = [sum(scores[place, symbol].item() for place, symbol in enumerate(way)) for way in ways]
    assert totals == sorted(totals, reverse=True)
    assert len({tuple(way) for way in ways}) == 64


def test_bad_input_is_refused_by_name():
    machine = DeductionAbduction(RuleParser(heads), library(), schedule=["semantics"])
    for examples, words in (([], "examples"), ([([], ("A",))], "examples")):
        with pytest.raises(ValueError, match=words):
            machine.fit(examples)
    with pytest.raises(TypeError, match="examples must be a tuple"):
        machine.fit([([0], 3)])
    for options in ({"epochs": 0}, {"timeout": 0.0}, {"passes": 0}, {"perception_lr": 0.0}, {"buffer": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            AbductionRecipe(**options)
    for curriculum in ([(5, 9), (0, 3)], [(0, 3), (0, 5)], [(0, 0)], [(-1, 3)]):
        with pytest.raises(ValueError, match="curriculum"):
            AbductionRecipe(curriculum=curriculum)
    seeing = DeductionAbduction(RuleParser(lambda symbols: [-1]), library(), Picture(), ["semantics"])
    with pytest.raises(ValueError, match="perception must be finite"):
        seeing.predict([torch.full((1, 6), torch.nan)])
    with pytest.raises(ValueError, match="schedule"):
        DeductionAbduction(RuleParser(heads), library(), schedule=[])
    with pytest.raises(TypeError, match="parser"):
        DeductionAbduction(None, library())
    with pytest.raises(ValueError, match="inputs"):
        machine.predict([])
    with pytest.raises(ValueError, match="tries"):
        machine.predict([[0]], tries=0)
    assert Parse((0,), (-1,)).log_probability == 0.0
