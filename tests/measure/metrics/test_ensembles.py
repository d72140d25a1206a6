import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heldout.measure import balance_temperatures, confidence_gap, correction_table, ensemble_logits


def logits(seed, n=40, classes=5, size=1.0):
    return size * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def confidence(values):
    return float(values.double().softmax(1).amax(1).mean())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.floats(0.1, 10), st.integers(1, 4))
def test_an_ensemble_of_identical_members_is_the_member(seed, temperature, count):
    member = logits(seed)
    torch.testing.assert_close(ensemble_logits([member] * count), member)
    torch.testing.assert_close(ensemble_logits([member] * count, [temperature] * count), member / temperature)


def test_the_ensemble_is_the_mean():
    torch.testing.assert_close(ensemble_logits([logits(0), logits(1)], [1, 2]), (logits(0) + logits(1) / 2) / 2)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.floats(0.01, 100))
def test_a_temperature_follows_the_scale_of_its_member_and_the_ensemble_does_not(seed, factor):
    members = [logits(seed), logits(seed + 1, size=3)]
    plain = balance_temperatures(members, target=0.6)
    scaled = balance_temperatures([members[0] * factor, members[1]], target=0.6)
    assert scaled == pytest.approx([plain[0] * factor, plain[1]], rel=1e-4)
    torch.testing.assert_close(
        ensemble_logits([members[0] * factor, members[1]], scaled),
        ensemble_logits(members, plain),
        rtol=1e-3,
        atol=1e-4,
    )


def test_balanced_members_are_equally_confident():
    members = [logits(seed, size=size) for seed, size in enumerate((1, 2, 5))]
    temperatures = balance_temperatures(members)
    assert temperatures[0] == pytest.approx(1)
    balanced = [confidence(member / t) for member, t in zip(members, temperatures, strict=True)]
    assert balanced == pytest.approx([confidence(members[0])] * 3)
    wanted = balance_temperatures(members, target=0.9)
    assert [confidence(m / t) for m, t in zip(members, wanted, strict=True)] == pytest.approx([0.9] * 3)


def test_the_confidence_gap_is_that_of_the_softmax():
    assert confidence_gap(logits(0, size=4), logits(1)) == pytest.approx(
        confidence(logits(0, size=4)) - confidence(logits(1))
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=30))
def test_the_correction_table_counts_every_example_once(rows):
    a, b, average, labels = torch.tensor(rows).T
    table = correction_table(a, b, average, labels)
    assert len(table.counts) == 8
    assert sum(table.counts.values()) == len(rows)
    by_hand = {"T": True, "F": False}
    for cell, count in table.counts.items():
        wanted = [by_hand[letter] for letter in cell]
        assert count == sum([one == y, two == y, avg == y] == wanted for one, two, avg, y in rows)
    assert table.false_false_true == table.counts["FFT"] / len(rows)
    assert table.true_true_false == table.counts["TTF"] / len(rows)
    assert table.share("???") == 1
    both_wrong, right = ((a != labels) & (b != labels)).double().mean(), (average == labels).double().mean()
    assert table.agreement_by_chance == pytest.approx(float(both_wrong * right))


X = logits(0)
Y = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ensemble_logits([]), r"at least one member|logits must not be empty"),
        (lambda: ensemble_logits([X, X * float("nan")]), "logits must be finite, got nan"),
        (lambda: balance_temperatures([X, X * float("nan")], target=0.5), "logits must be finite"),
        (lambda: confidence_gap(X, X * float("nan")), "reference must be finite, got nan"),
        (lambda: confidence_gap(X * float("inf"), X), "logits must be finite"),
        (lambda: ensemble_logits([X, X[:3]]), r"one shape .* \(40, 5\), \(3, 5\)"),
        (lambda: ensemble_logits([X], [0.0]), "1 positive numbers"),
        (lambda: ensemble_logits([X], [1.0, 1.0]), "1 positive numbers"),
        (lambda: balance_temperatures([X], target=0.1), "between 1/5 and 1"),
        (lambda: balance_temperatures([X], target=1.0), "between 1/5 and 1"),
        (lambda: balance_temperatures([X, X * 0], target=0.5), "all equal"),
        (lambda: balance_temperatures([torch.eye(2).repeat(1, 2)], target=0.9), "tied"),
        (lambda: correction_table(Y, Y, Y[:2], Y), r"one shape \(n,\)"),
        (lambda: correction_table(Y[:0], Y[:0], Y[:0], Y[:0]), "n > 0"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
