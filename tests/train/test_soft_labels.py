import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

import heldout
from heldout.data import all_targets, gather
from heldout.losses import ConfidenceLoss, soft_cross_entropy
from heldout.train import (
    Relabelled,
    check_disjoint,
    class_probabilities,
    disjoint_splits,
    fit_soft_labels,
    label_with,
    reads_progress,
    relabelled,
)

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 3


class Rows(Dataset):
    """Dicts, one at a time."""

    def __len__(self):
        return len(X)

    def __getitem__(self, position):
        return {"inputs": X[position], "label": int(Y[position]), "other": position}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)

    def forward(self, inputs, other=None):
        return self.head(self.drop(self.norm(self.first(inputs)).relu()))


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def expected(model):
    model.eval()
    with torch.no_grad():
        return model(X).softmax(1)


@pytest.mark.parametrize(
    "data", [(X, Y), TensorDataset(X, Y), Rows(), [(x, int(y)) for x, y in zip(X, Y, strict=True)]]
)
def test_labels_are_the_predictions_in_order_and_inputs_stay(data):
    model = net().train()
    model.norm.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    labelled = label_with(model, data)
    assert model.training
    assert model.drop.training
    assert not model.norm.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    inputs, targets = gather(labelled, torch.arange(50))
    torch.testing.assert_close(targets, expected(model))
    assert not targets.requires_grad
    assert torch.equal(inputs["inputs"] if isinstance(inputs, dict) else inputs, X)
    hard = label_with(model, data, soft=False)
    assert torch.equal(all_targets(hard), targets.argmax(1))
    assert all_targets(hard).dtype == torch.int64


def test_a_view_is_labelled_in_its_own_order():
    model, order = net(), [7, 3, 3, 40]
    labelled = label_with(model, Subset(TensorDataset(X, Y), order))
    torch.testing.assert_close(all_targets(labelled), expected(model)[order])
    assert torch.equal(labelled[0][0], X[7])


def test_tensor_data_stay_tensor_data_and_the_rest_is_not_copied():
    assert isinstance(relabelled((X, Y), Y), TensorDataset)
    rows = relabelled(Rows(), torch.eye(3)[Y])
    assert isinstance(rows, Relabelled)
    assert rows[4]["other"] == 4
    assert torch.equal(rows[4]["label"], torch.eye(3)[1])
    assert "labels" not in rows[4]


def test_parts_share_nothing_and_classes_are_as_frequent_in_each():
    a, b = disjoint_splits((X, Y), (20, 0.5), seed=3)
    assert (len(a), len(b)) == (20, 25)
    assert not set(a.indices) & set(b.indices)
    assert all_targets(a).bincount().max() - all_targets(a).bincount().min() <= 1
    assert disjoint_splits((X, Y), seed=4)[0].indices != disjoint_splits((X, Y), seed=3)[0].indices
    check_disjoint(a=a, b=b)


def test_shared_examples_are_found_in_views_and_slices():
    base = TensorDataset(X, Y)
    with pytest.raises(ValueError, match=r"train and test must be disjoint, they share 2 examples"):
        check_disjoint(
            train=Subset(base, [1, 2, 3]), other=Subset(base, [0]), test=Subset(Subset(base, [3, 2, 9]), [0, 1])
        )
    with pytest.raises(ValueError, match="share 10"):
        check_disjoint(a=(X[:30], Y[:30]), b=(X[20:], Y[20:]))
    with pytest.raises(ValueError, match="share 50"):
        check_disjoint(a=base, b=(X, Y.clone()))
    with pytest.raises(ValueError, match=r"a and b must be disjoint, they share 5 examples"):
        check_disjoint(a=(X[::2], Y[::2]), b=(X[:10], Y[:10]))
    check_disjoint(a=(X[::2], Y[::2]), b=(X[1::2], Y[1::2]))
    check_disjoint(a=(X[:25], Y[:25]), b=(X[25:], Y[25:]), c=Rows())


def test_a_fit_on_soft_labels_is_fit_with_their_cross_entropy():
    soft = expected(net(5))
    found = fit_soft_labels(net(), (X, soft), epochs=3, batch_size=16, seed=2)
    other = heldout.fit(net(), (X, soft), loss=soft_cross_entropy, epochs=3, batch_size=16, seed=2)
    for name, value in other.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[name], value)


def test_class_indices_are_taken_as_well():
    found = fit_soft_labels(net(), (X, Y), epochs=2, seed=2)
    other = heldout.fit(net(), (X, Y), epochs=2, seed=2)
    assert found.history[-1]["loss"] == other.history[-1]["loss"]


def test_a_loss_learns_how_far_training_is():
    seen = []

    def loss(logits, targets, progress):
        seen.append(progress)
        return soft_cross_entropy(logits, targets)

    fit_soft_labels(net(), (X, expected(net(5))), loss, epochs=2, batch_size=10)
    assert seen == pytest.approx([step / 10 for step in range(10)])
    assert reads_progress(loss)
    assert reads_progress(ConfidenceLoss())
    assert not reads_progress(F.cross_entropy)


def test_a_student_of_soft_labels_becomes_like_its_teacher():
    teacher = nn.Linear(4, 3)
    data = label_with(teacher, (X, Y))
    adam = lambda module: torch.optim.Adam(module.parameters(), lr=0.05)  # noqa: E731
    student = fit_soft_labels(nn.Linear(4, 3), data, optimizer=adam, epochs=150, batch_size=25).module
    assert (class_probabilities(student, (X, Y)) - class_probabilities(teacher, (X, Y))).abs().max() < 0.02


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="targets of data"):
        fit_soft_labels(net(), (X, torch.randn(50, 3)))
    with pytest.raises(ValueError, match="targets of data"):
        fit_soft_labels(net(), (X, torch.full((50, 3), torch.nan)))
    with pytest.raises(ValueError, match="3 values"):
        fit_soft_labels(net(), (X, torch.full((50, 2), 0.5)))
    with pytest.raises(ValueError, match="data"):
        label_with(net(), (X[:0], Y[:0]))
    with pytest.raises(ValueError, match="classes"):
        label_with(nn.Linear(4, 1), (X, Y))
    with pytest.raises(ValueError, match="not finite"):
        label_with(net(), (X * torch.nan, Y))
    with pytest.raises(ValueError, match="equally long"):
        relabelled((X, Y), Y[:3])
    with pytest.raises(ValueError, match="equally long"):
        Relabelled(Rows(), Y[:3])
    with pytest.raises(TypeError, match="labels"):
        Relabelled([{"inputs": 1}], Y[:1])[0]
    with pytest.raises(TypeError, match="inputs, target"):
        Relabelled([X[0]], Y[:1])[0]
    with pytest.raises(ValueError, match="data"):
        disjoint_splits((X[:0], Y[:0]))
    with pytest.raises(ValueError, match="labels"):
        disjoint_splits((X, torch.rand(50)))
