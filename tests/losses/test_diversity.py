import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heldout.losses import dbat_disagreement, divdis_mi, prior_match


def random_probs(batch=16, hypotheses=3, classes=4, seed=0, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(batch, hypotheses, classes, generator=generator, dtype=torch.float64)
    return logits.softmax(-1)


def mi_by_loops(probs):
    batch, hypotheses, classes = probs.shape
    total, pairs = 0.0, 0
    for i in range(hypotheses):
        for j in range(i + 1, hypotheses):
            pairs += 1
            for c in range(classes):
                for d in range(classes):
                    joint = sum(probs[b, i, c] * probs[b, j, d] for b in range(batch)) / batch
                    total += joint * (joint / (probs[:, i, c].mean() * probs[:, j, d].mean())).log()
    return total / pairs


@pytest.mark.parametrize("shape", [(5, 2, 2), (8, 3, 4), (1, 4, 3)])
def test_mi_is_that_of_the_double_loop(shape):
    probs = random_probs(*shape)
    torch.testing.assert_close(divdis_mi(probs), mi_by_loops(probs))


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_mi_of_equal_certain_uniform_hypotheses_is_ln_c(classes):
    certain = torch.eye(classes).repeat(6, 1)
    for hypotheses in (2, 4):
        probs = certain.unsqueeze(1).expand(-1, hypotheses, -1)
        assert divdis_mi(probs).item() == pytest.approx(math.log(classes), abs=1e-6)


def test_mi_of_independent_hypotheses_is_zero():
    first = torch.eye(2).repeat_interleave(2, 0)
    second = torch.eye(2).repeat(2, 1)
    assert divdis_mi(torch.stack([first, second], 1)).item() == pytest.approx(0, abs=1e-6)
    constant = random_probs(1, 3, 4).expand(32, -1, -1)
    assert divdis_mi(constant).item() == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(2, 5), st.floats(0.1, 30))
def test_mi_is_not_negative_and_does_not_depend_on_the_order(seed, hypotheses, classes, sharpness):
    probs = random_probs(12, hypotheses, classes, seed, sharpness).float()
    value = divdis_mi(probs)
    assert value >= -1e-6
    torch.testing.assert_close(divdis_mi(probs.flip(1)), value, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(divdis_mi(probs.flip(2)), value, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(divdis_mi(probs.flip(0)), value, atol=1e-6, rtol=1e-5)


def test_gradients_are_right():
    logits = torch.randn(6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    prior = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    torch.autograd.gradcheck(lambda z: divdis_mi(z.softmax(-1)), logits)
    torch.autograd.gradcheck(lambda z: prior_match(z.softmax(-1), prior), logits)
    earlier = random_probs(6, 2, 3)
    torch.autograd.gradcheck(lambda z: dbat_disagreement(z[:, 0].softmax(-1), earlier), logits)


def test_gradients_stay_finite_at_certainty():
    probs = torch.eye(2).repeat(4, 1).unsqueeze(1).repeat(1, 2, 1).requires_grad_()
    (divdis_mi(probs) + prior_match(probs) + dbat_disagreement(probs[:, 0], probs[:, 1:])).backward()
    assert probs.grad.isfinite().all()


def test_prior_match_is_a_sum_of_divergences():
    probs, prior = random_probs(), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    mean = probs.mean(0)
    torch.testing.assert_close(prior_match(probs, prior), (mean * (mean / prior).log()).sum())
    uniform = prior.new_full((4,), 0.25)
    torch.testing.assert_close(prior_match(probs), prior_match(probs, uniform))
    assert prior_match(prior.expand(5, 2, 4), prior).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_dbat_is_that_of_the_formula(classes):
    probs = random_probs(10, 3, classes)
    new, old = probs[:, 0], probs[:, 1:]
    expected = []
    for b in range(10):
        for m in range(2):
            c = old[b, m].argmax()
            p1, p2 = old[b, m, c], new[b, c]
            expected.append(-(p1 * (1 - p2) + (1 - p1) * p2 + 1e-7).log())
    torch.testing.assert_close(dbat_disagreement(new, old), torch.stack(expected).mean())


def test_dbat_at_its_landmarks():
    one, other, half = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    assert dbat_disagreement(one, other[:, None]).item() == pytest.approx(0, abs=1e-6)
    assert dbat_disagreement(one, half[:, None]).item() == pytest.approx(math.log(2), abs=1e-6)
    assert dbat_disagreement(half, one[:, None]).item() == pytest.approx(math.log(2), abs=1e-6)
    assert dbat_disagreement(one, one[:, None]).item() == pytest.approx(-math.log(1e-7), abs=1e-3)


def test_dbat_gives_no_gradient_to_earlier_hypotheses():
    probs = random_probs().requires_grad_()
    dbat_disagreement(probs[:, 0], probs[:, 1:]).backward()
    assert probs.grad[:, 0].abs().sum() > 0
    assert probs.grad[:, 1:].abs().sum() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: divdis_mi(torch.randn(8, 2, 3)), "sum to one .*softmax the logits"),
        (lambda: divdis_mi(torch.full((8, 2, 3), math.nan)), "sum to one"),
        (lambda: divdis_mi(torch.tensor([[[2.0, -1.0], [0.5, 0.5]]])), "values from -1"),
        (lambda: divdis_mi(torch.ones(8, 1, 2) / 2), "at least 2 hypotheses, got 1"),
        (lambda: divdis_mi(torch.ones(8, 2) / 2), r"must be \(batch, hypotheses, classes\)"),
        (lambda: divdis_mi(torch.ones(0, 2, 2) / 2), "not empty"),
        (lambda: divdis_mi(torch.ones(8, 2, 1)), "2 or more classes"),
        (lambda: prior_match(torch.ones(8, 2, 2) / 2, torch.ones(3) / 3), "each of the 2 classes"),
        (lambda: prior_match(torch.ones(8, 2, 2) / 2, torch.ones(2)), "prior must hold probabilities"),
        (lambda: dbat_disagreement(torch.randn(8, 2), torch.ones(8, 1, 2) / 2), "p_new must hold probabilities"),
        (lambda: dbat_disagreement(torch.ones(8, 2) / 2, torch.randn(8, 1, 2)), "p_old must hold probabilities"),
        (lambda: dbat_disagreement(torch.ones(7, 2) / 2, torch.ones(8, 1, 2) / 2), r"p_new must be .*\(8, 2\)"),
    ],
)
def test_what_is_no_set_of_probabilities_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
