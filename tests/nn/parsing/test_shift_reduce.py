"""The parser against one that takes one sentence and one transition at a time; what it learns, and how it draws."""

import copy

import pytest
import torch

from heldout.nn import Parse, ParseState, RuleParser, ShiftReduceParser


def parser(**options):
    torch.manual_seed(0)
    return ShiftReduceParser(5, embed=8, hidden=16, **options)


SENTENCES = [[0, 1, 2, 3], [4], [2, 2, 0], [1, 0, 3, 4, 2, 2, 1]]


def test_sentences_together_are_parsed_as_each_alone_by_the_likeliest_transition():
    model = parser()
    for sentence, parse in zip(SENTENCES, model.parse(SENTENCES), strict=True):
        state, total = ParseState(sentence), 0.0
        while not state.finished:
            scores = model(torch.tensor([state.features(5)]))[0]
            for move, legal in enumerate(state.legal()):
                if not legal:
                    scores[move] = -torch.inf
            total += scores.log_softmax(0).max().item()
            state.advance(int(scores.argmax()))
        assert parse.symbols == tuple(sentence)
        assert parse.heads == tuple(state.heads)
        assert parse.log_probability == pytest.approx(total, abs=1e-5)


def test_drawn_trees_are_as_frequent_as_their_transitions_are_likely():
    model = parser(dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    drawn = model.parse([[0, 1, 2]] * 4000, sample=True, generator=generator)
    heads = [parse.heads for parse in drawn]
    likely = {parse.heads: 0.0 for parse in drawn}
    for way in {(parse.heads, round(parse.log_probability, 4)) for parse in drawn}:
        likely[way[0]] += torch.tensor(way[1]).exp().item()
    assert sum(likely.values()) == pytest.approx(1, abs=0.01)
    assert all(abs(heads.count(each) / 4000 - share) < 0.04 for each, share in likely.items())
    again = model.parse([[0, 1, 2]] * 50, sample=True, generator=torch.Generator().manual_seed(0))
    assert again == model.parse([[0, 1, 2]] * 50, sample=True, generator=torch.Generator().manual_seed(0))


def test_it_learns_trees_by_context_and_parses_longer_sentences_alike():
    torch.manual_seed(0)
    model = ShiftReduceParser(5, embed=16, hidden=64, lr=0.01)
    # 1 takes what is on its left; 2 takes both sides
    known = [Parse((0, 1), (1, -1)), Parse((0, 1, 2, 0), (1, 2, -1, 2)), Parse((0, 2, 0, 1), (1, -1, 3, 1)),
             Parse((0, 1, 1), (1, 2, -1))]  # fmt: skip
    losses = model.fit(known, steps=200, batch_size=64, seed=1)
    assert losses[-1] < 0.1 < losses[0]
    assert [parse.heads for parse in model.parse([each.symbols for each in known])] == [each.heads for each in known]
    assert model.parse([[0, 1, 1, 2, 0, 1, 1]])[0].heads == (1, 2, 3, -1, 5, 6, 3)


def test_fitting_is_the_same_again_and_leaves_the_global_state_and_the_mode_alone():
    first, second = parser(), parser()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    known = [Parse((0, 1), (1, -1))]
    torch.manual_seed(3)
    losses = first.fit(known, steps=3, seed=5)
    after = torch.rand(1)
    torch.manual_seed(4)
    assert second.fit(known, steps=3, seed=5) == losses
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), after)
    first.train()
    first.parse([[0]])
    assert first.training


def test_dropout_keeps_the_mean_of_the_hidden_units():
    model = parser(dropout=0.5)
    features = torch.zeros(1, 18, dtype=torch.int64)
    whole = model(features)
    twice = [torch.zeros(1, 16), torch.full((1, 16), 2.0)]
    assert torch.allclose((model(features, twice[0]) + model(features, twice[1])) / 2, whole, atol=1e-6)


def test_with_arities_trees_that_they_allow_are_drawn_more_often():
    def share(arities):
        model = parser(arities=arities)
        drawn = model.parse([[0, 1, 2, 3, 4]] * 200, sample=True, generator=torch.Generator().manual_seed(0))
        return sum(parse.heads == (1, 2, 3, -1, 3) for parse in drawn) / 200

    assert share([0, 1, 1, 2, 0]) > 0.25 > 0.15 > share(None)


def test_a_given_parser_says_what_its_function_says():
    given = RuleParser(lambda symbols: [-1] + [0] * (len(symbols) - 1))
    assert given.parse([[3, 4], [1]]) == [Parse((3, 4), (-1, 0)), Parse((1,), (-1,))]
    with pytest.raises(ValueError, match="heads"):
        RuleParser(lambda symbols: [0]).parse([[1]])


def test_bad_input_is_refused_by_name():
    model = parser()
    for sentences, words in (([], "sentences"), ([[]], "empty"), ([[5]], "sentences"), ([[-1]], "sentences")):
        with pytest.raises(ValueError, match=words):
            model.parse(sentences)
    with pytest.raises(ValueError, match="two symbols"):
        model.fit([Parse((0,), (-1,))])
    with pytest.raises(ValueError, match="projective"):
        model.fit([Parse((0, 0, 0, 0), (2, 3, -1, 2))])
    with pytest.raises(ValueError, match="arities"):
        ShiftReduceParser(3, arities=[0, 1])
    with pytest.raises(ValueError, match="features"):
        model(torch.full((1, 18), 6))
