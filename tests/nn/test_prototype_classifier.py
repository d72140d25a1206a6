import pytest
import torch
import torch.nn.functional as F

from heldout.nn import PrototypeClassifier


def embeddings(n=12, dim=5, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_prototypes_are_running_means_of_all_that_was_taken_in():
    z, y = embeddings(), torch.tensor([0, 2, 2, 0, 0, 2, 1, 2, 0, 1, 2, 2])
    classifier = PrototypeClassifier()
    for rows in (slice(0, 4), slice(4, 6), slice(6, 12)):  # the second class comes last
        classifier.update(z[rows].float(), y[rows])
    assert classifier.counts.tolist() == [4, 2, 6]
    for each in range(3):
        mean = sum(row / row.norm() for row in z[y == each]) / int((y == each).sum())
        torch.testing.assert_close(classifier.prototypes[each].double(), mean, rtol=1e-5, atol=1e-6)


def test_logits_are_scaled_cosines_that_no_length_changes():
    classifier = PrototypeClassifier(scale=4.0)
    classifier.update(embeddings(), torch.arange(12) % 3)
    z = embeddings(3, seed=1)
    naive = [[4 * float(F.cosine_similarity(row, p.double(), dim=0)) for p in classifier.prototypes] for row in z]
    torch.testing.assert_close(classifier.logits(z), torch.tensor(naive, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(classifier.logits(z), classifier.logits(z * 37))
    assert classifier.predict(z).tolist() == torch.tensor(naive).argmax(1).tolist()


def test_a_class_without_an_example_is_never_named():
    classifier = PrototypeClassifier()
    classifier.update(torch.tensor([[1.0, 0.0]]), torch.tensor([2]))
    assert classifier.logits(torch.tensor([[-1.0, 0.0]])).tolist() == [[-torch.inf, -torch.inf, -10.0]]


def test_fresh_prototypes_carry_gradients_and_are_not_kept():
    classifier = PrototypeClassifier()
    classifier.update(torch.eye(2), torch.tensor([0, 1]))
    z = torch.tensor([[1.0, 1.0], [0.2, -1.0]], requires_grad=True)
    y = torch.tensor([1, 3])
    logits = classifier.logits(z, fresh=(z, y))
    assert logits.shape == (2, 4)
    assert logits[0].tolist() == pytest.approx([10 / 2**0.5, 10, -torch.inf, 10 * -0.8 / 2**0.5 / 1.04**0.5])
    (grad,) = torch.autograd.grad(logits[1, 1], z)  # class 1 is made of the first row
    assert grad.abs().sum(1).min() > 0
    assert classifier.counts.tolist() == [1, 1]


def test_forgetting_takes_a_class_out_and_a_restart_brings_all_back():
    classifier, other = PrototypeClassifier(), PrototypeClassifier()
    classifier.update(torch.eye(3), torch.arange(3))
    other.load_state_dict(classifier.state_dict())
    other.forget(torch.tensor([1, 7]))
    assert other.counts.tolist() == [1, 0, 1]
    assert classifier.counts.tolist() == [1, 1, 1]
    assert other.predict(torch.eye(3)).tolist() != [0, 1, 2]


def test_bad_input_is_refused():
    classifier = PrototypeClassifier()
    with pytest.raises(ValueError, match="scale"):
        PrototypeClassifier(scale=0.0)
    with pytest.raises(ValueError, match="update must come before"):
        classifier.logits(torch.ones(1, 2))
    with pytest.raises(ValueError, match="z must"):
        classifier.update(torch.full((1, 2), torch.nan), torch.tensor([0]))
    with pytest.raises(ValueError, match="y must"):
        classifier.update(torch.ones(1, 2), torch.tensor([-1]))
    with pytest.raises(ValueError, match="equally long"):
        classifier.update(torch.ones(2, 2), torch.tensor([0]))
    classifier.update(torch.ones(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="z must hold 2"):
        classifier.logits(torch.ones(1, 3))
    with pytest.raises(ValueError, match="z must hold 2"):
        classifier.update(torch.ones(1, 3), torch.tensor([0]))


def test_a_forgotten_class_begins_anew():
    classifier = PrototypeClassifier()
    classifier.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    classifier.forget(torch.tensor([0]))
    assert classifier.prototypes.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    classifier.update(torch.tensor([[0.0, 5.0]]), torch.tensor([0]))
    assert classifier.prototypes.tolist() == [[0.0, 1.0], [0.0, 1.0]]
