"""The operations of RASP-L against loops, causality, counting, and what breaks the rules."""

import pytest
import torch

from heldout.measure import rasp
from heldout.measure.algorithms.rasp import LearnabilityError


def sequences(n=7, count=20, seed=0, high=5):
    return torch.randint(0, high, (count, n), generator=torch.Generator().manual_seed(seed))


def aggregated(keys, queries, values, predicate, default, reduction):
    found = []
    for i in range(len(keys)):
        chosen = [values[j] for j in range(i + 1) if predicate(keys[j], queries[i])]
        if not chosen:
            found.append(default)
        elif reduction == "mean":
            found.append(int(sum(chosen) / len(chosen)))
        else:
            found.append(max(chosen) if reduction == "max" else min(chosen))
    return found


@pytest.mark.parametrize("reduction", ["mean", "max", "min"])
@pytest.mark.parametrize("name", ["eq", "lt", "ge"])
@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_attention_is_the_loop_over_places_with_the_default_where_nothing_is_selected(reduction, name, n):
    keys, queries, values = (sequences(n, seed=seed) for seed in range(3))
    values = values - 3  # means are cut towards zero
    found = rasp.kqv(keys, queries, values, getattr(torch, name), -7, reduction)
    predicate = {"eq": lambda k, q: k == q, "lt": lambda k, q: k < q, "ge": lambda k, q: k >= q}[name]
    for row in range(len(keys)):
        parts = (part[row].tolist() for part in (keys, queries, values))
        assert found[row].tolist() == aggregated(*parts, predicate, -7, reduction)


def test_values_beyond_a_byte_and_beyond_what_single_precision_holds_are_aggregated_exactly():
    keys, queries = sequences(9, seed=1), sequences(9, seed=2)
    values = sequences(9, seed=3) * 2**40 + sequences(9, seed=4)
    for reduction in ("mean", "max", "min"):
        found = rasp.kqv(keys, queries, values, torch.eq, -7, reduction)
        for row in range(len(keys)):
            parts = (part[row].tolist() for part in (keys, queries, values))
            wanted = aggregated(*parts, lambda key, query: key == query, -7, reduction)
            assert found[row].tolist() == wanted


def test_a_selection_is_causal_and_its_width_is_its_row_sum():
    x = sequences(9)
    chosen = rasp.select(x, x, torch.le)
    assert not chosen.triu(1).any()
    assert torch.equal(chosen, (x[:, None, :] <= x[:, :, None]).tril())
    assert torch.equal(rasp.sel_width(chosen), chosen.sum(-1))


def test_no_output_depends_on_later_places():
    x = sequences(10, 30)
    changed = x.clone()
    changed[:, 6:] = 4 - changed[:, 6:]

    def everything(x):
        chosen = rasp.select(x, rasp.tok_map(x, lambda token: token + 1), torch.lt)
        return torch.stack(
            [rasp.aggr(chosen, x, -1, each) for each in ("mean", "max", "min")] + [rasp.sel_width(chosen)]
        )

    assert torch.equal(everything(x)[..., :6], everything(changed)[..., :6])
    assert not torch.equal(everything(x), everything(changed))


def test_maps_and_constants_are_elementwise():
    x, y = sequences(seed=1), sequences(seed=2)
    assert torch.equal(rasp.tok_map(x, lambda token: token * 2), 2 * x)
    assert torch.equal(rasp.seq_map(x, y, torch.lt), (x < y).long())
    assert rasp.full(x, 3).unique().tolist() == [3]
    assert rasp.indices(x)[4].tolist() == list(range(7))


def test_operations_are_counted_also_within_traces_and_those_of_an_aggregation_are_two():
    x = sequences(4, 1)[0]
    with rasp.trace() as outer:
        rasp.indices(x)
        with rasp.trace() as inner:
            rasp.kqv(x, x, x, torch.eq)
    rasp.indices(x)
    assert inner.ops == ["select", "aggr"]
    assert outer.ops == ["indices", "select", "aggr"]
    assert rasp.program_length(None, x) == float("inf")


def test_an_answer_is_written_up_to_its_end_or_to_the_limit():
    successor = lambda x: rasp.tok_map(x, lambda token: token + 1)  # noqa: E731
    assert rasp.decode(successor, torch.tensor([1]), 4) == [2, 3]
    assert rasp.decode(successor, torch.tensor([1]), 99, max_new=3) == [2, 3, 4]


EXAMPLES = [torch.arange(n) % 3 for n in (1, 4, 9, 12)]


def half(x):
    return rasp.tok_map(rasp.indices(x), lambda i: i // 2)


def every_other(x):
    return rasp.tok_map(rasp.indices(x), lambda i: i % 2 == 0)


def count_parity(x):
    ones = rasp.sel_width(rasp.select(x, rasp.full(x, 1), torch.eq))
    return rasp.tok_map(ones, lambda count: count % 2)


def sum_of_places(x):
    return rasp.seq_map(rasp.indices(x), rasp.indices(x), torch.add)


def far_apart(x):
    places = rasp.indices(x)
    return rasp.kqv(places, places, x, lambda key, query: key == query - 3)


def mean_place(x):
    return rasp.kqv(x, x, rasp.indices(x), torch.eq)


def too_large(x):
    return rasp.tok_map(x, lambda token: token * 100)


def from_elsewhere(x):
    return rasp.tok_map(x % 2, lambda token: token)


def looks_ahead(x):
    return rasp.tok_map(x, lambda token: token + (token.flip(-1) * 0 + len(token)))


def another_program_for_long_inputs(x):
    return rasp.indices(x) if len(x) < 5 else rasp.tok_map(rasp.indices(x), lambda i: i + 1)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (half, "no arithmetic on indices"),
        (every_other, "no arithmetic on indices"),
        (count_parity, "no arithmetic on indices or counts"),
        (sum_of_places, "seq_map must do no arithmetic"),
        (far_apart, "by their order alone"),
        (mean_place, "must not average indices"),
        (too_large, r"in \[-128, 127\], got \[0, 200\] of tok_map"),
        (from_elsewhere, "by the operations of rasp alone"),
        (looks_ahead, "must not look ahead"),
        (another_program_for_long_inputs, "the same operations|must not look ahead"),
        (lambda x: rasp.indices(x)[:1], "of the shape of its input|by the operations"),
    ],
)
def test_what_breaks_a_rule_is_refused(program, said):
    with pytest.raises(LearnabilityError, match=said):
        rasp.check_learnable(program, EXAMPLES)


@pytest.mark.parametrize(
    "program",
    [
        lambda x: rasp.tok_map(rasp.indices(x), lambda i: i + 1),
        lambda x: rasp.tok_map(rasp.indices(x), lambda i: i >= 3),
        lambda x: rasp.seq_map(rasp.indices(x), x, torch.minimum),
        lambda x: rasp.tok_map(x, lambda token: token % 2),
        lambda x: rasp.kqv(rasp.indices(x), rasp.indices(x), x, torch.le, reduction="max"),
        lambda x: rasp.kqv(x, x, rasp.indices(x), torch.eq, reduction="min"),
    ],
)
def test_what_keeps_the_rules_passes(program):
    rasp.check_learnable(program, EXAMPLES)


def test_rules_are_checked_only_there():
    assert count_parity(torch.tensor([1, 1, 0])).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: rasp.select(x, x[:-1], torch.eq), "keys and queries must be of one shape"),
        (lambda x: rasp.select(x.float(), x, torch.eq), "keys must be int64"),
        (lambda x: rasp.select(x, x, torch.add), "predicate must give truth values"),
        (lambda x: rasp.tok_map(x, lambda token: token / 2), "function must give integers"),
        (lambda x: rasp.aggr(x, x), "selection must be bool"),
        (lambda x: rasp.aggr(rasp.select(x, x, torch.eq), x[:-1]), "selection and values must match"),
        (lambda x: rasp.indices(x[:0]), "x must"),
        (lambda x: rasp.decode(rasp.indices, x[None], 0), "prompt must have 1 dimension"),
        (lambda x: rasp.check_learnable(rasp.indices, []), "examples"),
    ],
)
def test_bad_input_is_refused_by_name(call, said):
    with pytest.raises((ValueError, TypeError), match=said):
        call(torch.tensor([1, 0, 1]))


@pytest.mark.parametrize("span", [253, 254, 255, 256])
@pytest.mark.parametrize("low", [-300, 0])
def test_values_at_the_end_of_a_byte_are_aggregated_exactly(span, low):
    values = torch.tensor([low, low + span, low + 7])
    keys, queries = torch.tensor([1, 1, 2]), torch.tensor([1, 1, 5])
    for reduction, wanted in (("max", [low, low + span, -9]), ("min", [low, low, -9])):
        assert rasp.kqv(keys, queries, values, torch.eq, -9, reduction).tolist() == wanted


def equal_and_large(x):
    places = rasp.indices(x)
    return rasp.kqv(places, places, x, lambda key, query: (key == query) & (key > 2))


def token_before_place(x):
    return rasp.kqv(x, rasp.indices(x), x, lambda key, query: key == query - 1)


def place_before_token(x):
    return rasp.kqv(rasp.indices(x), x, x, lambda key, query: key == query - 1)


def parity_of_a_place_and_a_token(x):
    return rasp.seq_map(rasp.indices(x), x, lambda place, token: (place + token) % 2)


def two_constants(x):
    return rasp.seq_map(rasp.indices(x), x, lambda place, token: torch.where(place % 2 == 0, 50, 60))


def first_place_looks_ahead(x):
    return rasp.tok_map(x, lambda token: token + (torch.arange(len(token)) == 0) * (len(token) > 1))


def an_operation_more_where_the_input_is_long(x):
    if len(x) > 1:
        rasp.full(x, 1)
    return rasp.tok_map(x, lambda token: token + 1)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (lambda x: rasp.tok_map(rasp.indices(x), lambda i: i + 2), "no arithmetic on indices"),
        (lambda x: rasp.tok_map(rasp.indices(x), lambda i: i - 2), "no arithmetic on indices"),
        (equal_and_large, "by their order alone"),
        (token_before_place, "by their order alone"),
        (place_before_token, "by their order alone"),
        (parity_of_a_place_and_a_token, "seq_map must do no arithmetic"),
        (two_constants, "seq_map must do no arithmetic"),
        (first_place_looks_ahead, "must not look ahead: place 0"),
        (an_operation_more_where_the_input_is_long, "the same operations"),
        (lambda x: rasp.full(x, 128), r"got \[128, 128\] of full"),
        (lambda x: rasp.full(x, -129), r"got \[-129, -129\] of full"),
    ],
)
def test_what_breaks_a_rule_by_little_is_refused(program, said):
    with pytest.raises(LearnabilityError, match=said):
        rasp.check_learnable(program, EXAMPLES)


@pytest.mark.parametrize("value", [128, -129])
def test_inputs_that_do_not_fit_into_eight_bits_are_refused(value):
    with pytest.raises(LearnabilityError, match="of the input"):
        rasp.check_learnable(lambda x: rasp.tok_map(x, lambda token: token * 0), [torch.tensor([0, value])])


@pytest.mark.parametrize(
    "program",
    [
        lambda x: rasp.full(x, 127),
        lambda x: rasp.full(x, -128),
        lambda x: rasp.tok_map(rasp.indices(x), lambda i: i == 3),
        lambda x: rasp.tok_map(rasp.indices(x), lambda i: i <= 3),
    ],
)
def test_what_just_keeps_the_rules_passes(program):
    rasp.check_learnable(program, EXAMPLES)


def test_a_token_that_is_chosen_beside_an_index_stays_a_token():
    def program(x):
        token = rasp.tok_map(x, lambda token: token + 1)
        rasp.seq_map(token, rasp.indices(x), lambda one, _: one)
        return rasp.tok_map(token, lambda one: one * 3)

    rasp.check_learnable(program, EXAMPLES)


def test_the_mean_of_two_indices_is_refused_and_that_of_one_is_not():
    rasp.check_learnable(mean_place, [torch.tensor([0, 1])])
    with pytest.raises(LearnabilityError, match="must not average indices"):
        rasp.check_learnable(mean_place, [torch.tensor([0, 0])])
