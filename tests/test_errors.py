"""The validators: what passes, what does not, and that every message names the argument."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from heldout.errors import (
    check_at_least,
    check_between,
    check_different,
    check_dimensions,
    check_fields,
    check_finite,
    check_fraction,
    check_labels,
    check_nonempty,
    check_nonnegative,
    check_one_of,
    check_positive,
    check_same_length,
    check_values,
    checked,
)

NAN, INF = float("nan"), float("inf")
CASES = [
    (check_finite, (), [1, 2.0, "text", None, torch.ones(3), torch.tensor([1]), [1.0, [2.0]], {"a": 1.0}],
     [NAN, INF, torch.tensor([INF]).half(), torch.tensor([1.0, NAN]), [[NAN]], {"a": [INF]}, np.array([1, NAN])]),
    (check_nonempty, (), [[1], "a", {1: 1}, torch.zeros(1), torch.tensor(0.0), None],
     [[], "", {}, torch.zeros(2, 0), np.zeros(0)]),
    (check_values, (), [[1.0], torch.zeros(1)], [[], [NAN], torch.zeros(0)]),
    (check_positive, (), [1, 0.1, [1, 2], torch.ones(2, 2), None],
     [0, -1, NAN, INF, [1, 0], [[1], [-1]], "1", torch.tensor([1, 0])]),
    (check_nonnegative, (), [0, 1.5, torch.zeros(2)], [-1, NAN, INF, np.array([0, -1])]),
    (check_between, (-1, 1), [-1, 0.5, 1, torch.tensor(0.5)], [-1.1, NAN, [0, 2]]),
    (check_fraction, (), [0, 1, [0.5, 0.5], torch.tensor([0.5])], [1.01, -0.01, NAN, torch.tensor([2.0])]),
    (check_at_least, (2,), [2, INF, [3, 4]], [1, NAN, [2, 1]]),
    (check_labels, (3,), [[0, 2], torch.tensor([2, 1]), np.array([0]), [True, False], None, 2],
     [[0, 3], torch.tensor([-1]), torch.tensor([0.0]), np.array([1.0]), [0.5], ["a"], "a", 3]),
    (check_labels, (), [[10**9]], [[-1], [1.0], [NAN]]),
    (check_dimensions, (1, 2), [torch.zeros(3), np.zeros((1, 2))], [torch.zeros(()), torch.zeros(1, 1, 1)]),
    (check_one_of, (("a", "b"),), ["a", None], ["c", 1, []]),
]  # fmt: skip


@pytest.mark.parametrize(("validator", "options", "good", "bad"), CASES, ids=lambda each: getattr(each, "__name__", ""))
def test_a_validator_passes_what_is_allowed_and_names_what_is_not(validator, options, good, bad):
    for value in good:
        validator(*options, spread=value)
    for value in bad:
        with pytest.raises(ValueError, match=r"^spread must "):
            validator(*options, spread=value)


def test_the_first_value_that_is_not_allowed_is_told():
    with pytest.raises(ValueError, match=r"labels must be integers from 0 to 1, got 7$"):
        check_labels(2, labels=torch.tensor([[0, 1], [7, -1]]))
    with pytest.raises(ValueError, match=r"x must be finite, got inf$"):
        check_finite(x=[torch.tensor([0.0]), torch.tensor([1.0, INF])])


def test_every_argument_is_looked_at():
    with pytest.raises(ValueError, match="second must be positive"):
        check_positive(first=1, second=0)


def test_lengths_are_compared_and_both_arguments_named():
    check_same_length(a=[1, 2], b=torch.zeros(2, 3), c=None)
    with pytest.raises(ValueError, match="a and b must be equally long, got 2 and 3"):
        check_same_length(a=[1, 2], b=torch.zeros(3))


@checked
def _scaled(values: "list[float]", factor: float = 2.0, *, shift: int | None = None) -> list[float]:
    """Scales."""
    return [factor * value + (shift or 0) for value in values]


def test_a_checked_function_is_otherwise_the_same():
    assert _scaled([1.0], 3, shift=1) == [4.0]
    assert _scaled.__doc__ == "Scales."
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        _scaled()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((None,), {}, TypeError, "values must be a sequence of numbers, got None"),
        (([1.0, "a"],), {}, TypeError, "values must be a sequence of numbers, got 'a' at 1"),
        (([1.0], NAN), {}, ValueError, "factor must be a number, got nan"),
        (([1.0],), {"shift": 0.5}, TypeError, "shift must be an integer or None, got 0.5"),
    ],
)
def test_a_checked_function_refuses_what_its_annotations_do_not_say(arguments, options, error, words):
    with pytest.raises(error, match=f"^{words}$"):
        _scaled(*arguments, **options)


@dataclass(frozen=True)
class _Record:
    rho: float
    name: "str | None" = None

    def __post_init__(self):
        check_fields(self)


def test_fields_of_a_record_are_checked_by_their_annotations():
    assert _Record(0.5).rho == 0.5
    with pytest.raises(TypeError, match="rho must be a number, got 'a'"):
        _Record("a")
    with pytest.raises(ValueError, match="rho must be a number, got nan"):
        _Record(NAN)
    with pytest.raises(TypeError, match="name must be text or None, got 3"):
        _Record(1.0, 3)


def test_entries_that_come_twice_are_told():
    check_different(degrees=[0, 15, 30])
    with pytest.raises(ValueError, match="degrees must be different from each other, got 15 twice"):
        check_different(degrees=[0, 15, 15])
