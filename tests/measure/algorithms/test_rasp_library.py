"""The library of RASP-L against loops over random sequences."""

import pytest
import torch

from heldout.measure import rasp, rasp_library

N = (1, 2, 5, 12)


def first(x, token, upto, default):
    return next((j for j in range(upto + 1) if x[j] == token), default)


def last(x, token, upto, default):
    return next((j for j in reversed(range(upto + 1)) if x[j] == token), default)


def mode_so_far(x, i):
    """The token whose count so far was the largest, and got there last."""
    best = None
    for j in range(i + 1):
        count = x[: j + 1].count(x[j])
        if best is None or count >= best[0]:
            best = (count, x[j])
    return best[1]


def after_first(x, y, z, i, offset, default):
    at = first(x, y[i], i, None)
    return default if at is None or at + offset > i else z[at + offset]


def before_first(x, y, z, i, offset, default):
    at = first(x, y[i], i, None)
    return z[at - offset] if at is not None and at >= offset else default


NAIVE = {
    "shift_right": (lambda x, y, z: rasp_library.shift_right(x, 2, 9), lambda x, y, z, i: x[i - 2] if i >= 2 else 9),
    "cumsum": (lambda x, y, z: rasp_library.cumsum(x), lambda x, y, z, i: sum(each != 0 for each in x[: i + 1])),
    "where": (lambda x, y, z: rasp_library.where(x, y, z), lambda x, y, z, i: y[i] if x[i] else z[i]),
    "mask": (lambda x, y, z: rasp_library.mask(x, y, 7), lambda x, y, z, i: x[i] if y[i] else 7),
    "maximum": (lambda x, y, z: rasp_library.maximum(x), lambda x, y, z, i: max(x[: i + 1])),
    "minimum": (lambda x, y, z: rasp_library.minimum(x), lambda x, y, z, i: min(x[: i + 1])),
    "argmax": (lambda x, y, z: rasp_library.argmax(x), lambda x, y, z, i: last(x, max(x[: i + 1]), i, None)),
    "num_prev": (lambda x, y, z: rasp_library.num_prev(x, y), lambda x, y, z, i: x[: i + 1].count(y[i])),
    "has_seen": (lambda x, y, z: rasp_library.has_seen(x, y), lambda x, y, z, i: int(y[i] in x[: i + 1])),
    "firsts": (lambda x, y, z: rasp_library.firsts(x, y, -2), lambda x, y, z, i: first(x, y[i], i, -2)),
    "lasts": (lambda x, y, z: rasp_library.lasts(x, y, -2), lambda x, y, z, i: last(x, y[i], i, -2)),
    "first_true": (lambda x, y, z: rasp_library.first_true(x), lambda x, y, z, i: first(x, 1, i, -1)),
    "index_select": (
        lambda x, y, z: rasp_library.index_select(x, y, 8),
        lambda x, y, z, i: x[y[i]] if 0 <= y[i] <= i else 8,
    ),
    "mode": (lambda x, y, z: rasp_library.mode(x), lambda x, y, z, i: mode_so_far(x, i)),
    "binary_mode": (
        lambda x, y, z: rasp_library.binary_mode(rasp.tok_map(x, lambda t: t % 2)),
        lambda x, y, z, i: int(2 * sum(each % 2 for each in x[: i + 1]) >= i + 1),
    ),
    "induct": (
        lambda x, y, z: rasp_library.induct(x, y, z, 2, 6),
        lambda x, y, z, i: after_first(x, y, z, i, 2, 6),
    ),
    "induct_prev": (
        lambda x, y, z: rasp_library.induct_prev(x, y, z, 1, 5),
        lambda x, y, z, i: before_first(x, y, z, i, 1, 5),
    ),
}


@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("name", NAIVE)
def test_a_library_function_is_the_loop_over_places(name, n):
    function, naive = NAIVE[name]
    x, y, z = (torch.randint(0, 4, (40, n), generator=torch.Generator().manual_seed(seed)) for seed in (n, 50, 60))
    found = function(x, y, z)
    for row in range(len(x)):
        lists = [part[row].tolist() for part in (x, y, z)]
        assert found[row].tolist() == [naive(*lists, i) for i in range(n)]


@pytest.mark.parametrize("name", NAIVE)
def test_a_library_function_of_tokens_keeps_the_rules(name):
    if name == "index_select":
        pytest.skip("its places are indices, which the input is not")
    examples = [torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(n)) for n in (1, 3, 8, 12)]
    rasp.check_learnable(
        lambda x: NAIVE[name][0](
            rasp.tok_map(x, lambda t: t),
            rasp.tok_map(x, lambda t: t + 0),
            rasp.tok_map(x, lambda t: 3 - t),
        ),
        examples,
    )


@pytest.mark.parametrize("name", ["shift_right", "induct", "induct_prev"])
def test_offsets_below_1_are_refused(name):
    x = torch.tensor([1, 2])
    arguments = (x,) if name == "shift_right" else (x, x, x)
    with pytest.raises(ValueError, match="at least 1"):
        getattr(rasp_library, name)(*arguments, 0)


def test_what_is_not_zero_is_true_below_zero_too():
    truth, x, y = torch.tensor([-2, 0, 1, -1]), torch.tensor([5, 6, 7, 8]), torch.tensor([1, 2, 3, 4])
    assert rasp_library.cumsum(truth).tolist() == [1, 1, 2, 3]
    assert rasp_library.where(truth, x, y).tolist() == [5, 2, 7, 8]
    assert rasp_library.mask(x, truth, 9).tolist() == [5, 9, 7, 8]


def test_the_default_of_the_first_true_place_is_the_one_that_is_asked_for():
    assert rasp_library.first_true(torch.tensor([0, 2, 1]), 7).tolist() == [7, 7, 2]
