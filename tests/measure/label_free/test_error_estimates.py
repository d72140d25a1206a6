import math

import pytest
import torch

from heldout.measure import atc_error, average_confidence, average_entropy, disagreement, doc_error

ESTIMATES = [average_confidence, average_entropy]


def drawn(rows, classes=4, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, classes, generator=generator)).softmax(1)


def test_confidence_and_entropy_by_hand():
    probs = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    assert average_confidence(probs) == pytest.approx(0.85)
    by_hand = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)) / 2
    assert average_entropy(probs) == pytest.approx(by_hand, rel=1e-6)
    assert average_entropy(torch.full((3, 4), 0.25)) == pytest.approx(math.log(4))


def naive_atc(source, labels, probs, score):
    known = [score(row) for row in source.double().tolist()]
    wrong = sum(
        max(range(len(r)), key=r.__getitem__) != y for r, y in zip(source.tolist(), labels.tolist(), strict=True)
    )
    limits = sorted(known)
    limit = limits[wrong] if wrong < len(limits) else math.inf
    return sum(score(row) < limit for row in probs.double().tolist()) / len(probs)


@pytest.mark.parametrize("seed", range(6))
def test_atc_is_the_naive_count(seed):
    source, probs = drawn(57, seed=seed), drawn(41, seed=100 + seed, scale=1.0)
    labels = torch.randint(4, (57,), generator=torch.Generator().manual_seed(seed))
    negative_entropy = lambda row: sum(p * math.log(p) for p in row if p > 0)  # noqa: E731
    assert atc_error(source, labels, probs) == naive_atc(source, labels, probs, max)
    assert atc_error(source, labels, probs, "entropy") == naive_atc(source, labels, probs, negative_entropy)


def test_atc_of_the_source_is_its_error():
    source = drawn(200)
    labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(3))
    error = (source.argmax(1) != labels).double().mean().item()
    assert atc_error(source, labels, source) == error == doc_error(source, labels, source)
    assert atc_error(source, labels, source, "entropy") == error


def test_a_model_that_is_always_right_or_never():
    source = drawn(20)
    right = source.argmax(1)
    assert atc_error(source, right, drawn(20, scale=3.0)) <= 0.2
    assert atc_error(source, (right + 1) % 4, drawn(20)) == 1.0
    assert atc_error(source, right, source) == 0.0


def test_doc_adds_lost_confidence_and_is_cut():
    source, labels = torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 0])
    assert doc_error(source, labels, torch.tensor([[0.5, 0.5]])) == pytest.approx(0.5 + 0.8 - 0.5)
    assert doc_error(source, labels, torch.tensor([[1.0, 0.0]])) == pytest.approx(0.3)
    assert doc_error(source, torch.tensor([1, 0]), torch.tensor([[0.5, 0.5]])) == 1.0
    assert doc_error(source, torch.tensor([0, 1]), torch.tensor([[1.0, 0.0]])) == 0.0


def test_disagreement_counts_decisions():
    first, second = drawn(50), drawn(50, seed=1)
    assert disagreement(first, second) == (first.argmax(1) != second.argmax(1)).double().mean().item()
    assert disagreement(first, first) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_and_gradients_are_taken_as_they_are(dtype):
    probs = drawn(9).to(dtype).requires_grad_()
    assert average_confidence(probs) == pytest.approx(probs.detach().double().amax(1).mean().item())
    assert 0 <= atc_error(probs, torch.zeros(9, dtype=torch.int64), probs) <= 1


@pytest.mark.parametrize(
    "probs", [torch.zeros(0, 3), torch.ones(3), torch.ones(2, 2), torch.tensor([[math.nan, 1.0]]), torch.zeros(2, 0)]
)
def test_what_is_no_probability_is_refused(probs):
    source, labels = torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0, 1])
    for estimate in ESTIMATES:
        with pytest.raises(ValueError, match="probs"):
            estimate(probs)
    with pytest.raises(ValueError, match="probs"):
        atc_error(source, labels, probs)
    with pytest.raises(ValueError, match="source_probs"):
        doc_error(probs, labels, source)
    with pytest.raises(ValueError, match="second"):
        disagreement(source, probs)


@pytest.mark.parametrize(
    "labels", [torch.tensor([0]), torch.tensor([0, 2]), torch.tensor([0, -1]), torch.tensor([0.0, 1])]
)
def test_labels_that_cannot_be_are_refused(labels):
    with pytest.raises(ValueError, match="source_labels"):
        atc_error(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), labels, torch.tensor([[0.5, 0.5]]))


def test_classes_must_be_the_same():
    with pytest.raises(ValueError, match="2 classes"):
        doc_error(torch.tensor([[0.9, 0.1]]), torch.tensor([0]), drawn(3))
    with pytest.raises(ValueError, match="one shape"):
        disagreement(drawn(3), drawn(4))
