import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from heldout.data import soft_labels
from heldout.losses import ConfidenceLoss, soft_cross_entropy
from heldout.train import (
    Recipe,
    class_probabilities,
    disjoint_splits,
    fit_soft_labels,
    label_with,
    weak_to_strong,
)

ADAM = Recipe(epochs=15, batch_size=32, optimizer=functools.partial(torch.optim.Adam, lr=0.03))


def world(n=900, seed=0):
    """Three classes by the larger of three sums; a model of two of the six inputs makes errors of its own."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return x, torch.stack([x[:, 0] + x[:, 1], x[:, 2] + x[:, 3], x[:, 4] + x[:, 5]], 1).argmax(1)


class Some(nn.Module):
    def __init__(self, inputs, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inputs = inputs
            self.body = nn.Sequential(nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))
            self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x[:, : self.inputs]))


def parts(data=None):
    x, y = data or world()
    return disjoint_splits((x, y), (200, 400, 300))


@functools.cache
def found():
    return weak_to_strong(Some(3), Some(6), *parts(), fit=ADAM, seed=1)


def accuracy(model, data):
    y = data.dataset.tensors[1]
    return (class_probabilities(model, data).argmax(1) == y[data.indices]).double().mean().item()


def test_each_step_is_that_of_the_parts():
    a, b, test = parts()
    options = {"epochs": 15, "batch_size": 32, "optimizer": ADAM.optimizer, "seed": 1}
    weak = fit_soft_labels(Some(3), a, F.cross_entropy, **options).module
    student = fit_soft_labels(Some(6), label_with(weak, b), soft_cross_entropy, **options).module
    ceiling = fit_soft_labels(Some(6), b, F.cross_entropy, **options).module
    scores = {"weak": accuracy(weak, test), "student": accuracy(student, test), "ceiling": accuracy(ceiling, test)}
    result = found()
    assert result.accuracy == scores
    assert result.weak_label_accuracy == accuracy(weak, b)
    gap = (scores["student"] - scores["weak"]) / (scores["ceiling"] - scores["weak"])
    assert result.gap_recovered.estimate == pytest.approx(gap)
    assert result.gap_recovered.low < gap < result.gap_recovered.high
    assert result.agreement["student_accuracy"] == scores["student"]
    assert result.agreement["weak_accuracy"] == scores["weak"] < scores["ceiling"]
    assert [len(result.histories[name]) for name in ("weak", "student", "ceiling")] == [15, 15, 15]
    assert not any(model.training for model in (result.weak, result.student, result.ceiling))


def test_models_that_are_given_stay_as_they_are():
    weak, strong = Some(3).train(), Some(6).train()
    before = copy.deepcopy([weak.state_dict(), strong.state_dict()])
    weak_to_strong(weak, strong, *parts(), fit=Recipe(epochs=1), probe=True)
    weak_to_strong(weak, strong, *parts(), fit=Recipe(epochs=1))
    for model, state in zip((weak, strong), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(part.training for part in model.modules())


def test_a_trained_weak_model_is_taken_as_it_is():
    again = weak_to_strong(found().weak, Some(6), None, *parts()[1:], fit=ADAM, seed=1)
    assert again.accuracy == found().accuracy
    assert sorted(again.histories) == ["ceiling", "student"]


def test_only_students_get_the_loss_and_hard_labels_are_the_most_probable():
    seen = []

    def loss(logits, targets, progress):
        seen.append((targets, progress))
        return soft_cross_entropy(logits, targets)

    result = weak_to_strong(Some(3), Some(6), *parts(), fit=Recipe(epochs=2, batch_size=100), loss=loss, soft=False)
    assert len(seen) == 8
    assert [p for _, p in seen] == pytest.approx([i / 8 for i in range(8)])
    targets = torch.cat([t for t, _ in seen[:4]])
    taught = class_probabilities(result.weak, parts()[1]).argmax(1)
    assert torch.equal(targets.sum(0), soft_labels(taught, 3).sum(0))
    assert set(targets.unique().tolist()) == {0, 1}


def test_confidence_moves_the_student_away_from_its_supervisors_errors():
    confident = weak_to_strong(found().weak, Some(6), None, *parts()[1:], fit=ADAM, seed=1, loss=ConfidenceLoss(0.75))
    assert confident.accuracy["ceiling"] == found().accuracy["ceiling"]
    assert confident.accuracy["student"] != found().accuracy["student"]


def test_each_bootstrapped_student_labels_for_the_next():
    a, b, test = parts()
    calls = []

    def train(model, data, loss):
        calls.append((model.inputs, data, loss))
        return fit_soft_labels(model, data, loss, epochs=3, seed=0).module

    result = weak_to_strong(Some(2), Some(6), a, b, test, bootstrap=[Some(3), Some(4)], fit=train)
    assert [inputs for inputs, *_ in calls] == [2, 3, 4, 6, 6]
    assert list(result.accuracy) == ["weak", "bootstrap1", "bootstrap2", "student", "ceiling"]
    labels = [torch.stack([data[i][1] for i in range(len(data))]) for _, data, _ in calls]
    torch.testing.assert_close(labels[1], class_probabilities(result.weak, b))
    assert not torch.equal(labels[2], labels[1])
    assert not torch.equal(labels[3], labels[2])
    assert torch.equal(labels[4], world()[1][b.indices])
    with torch.no_grad():
        middle = fit_soft_labels(Some(3), calls[1][1], soft_cross_entropy, epochs=3, seed=0).module
    torch.testing.assert_close(labels[2], class_probabilities(middle, b))


def test_a_probe_changes_the_last_layer_only():
    strong = Some(6)
    result = weak_to_strong(Some(3), strong, *parts(), fit=ADAM, probe=True)
    for name, value in result.student.state_dict().items():
        same = torch.equal(value, strong.state_dict()[name])
        assert same == (not name.startswith("head")), name
    assert result.accuracy["student"] == accuracy(result.student, parts()[2])
    assert not torch.equal(result.student.head.weight, result.ceiling.head.weight)


def test_a_probe_is_a_linear_layer_on_features():
    _, b, test = parts()
    strong = Some(6, seed=4).eval()

    def features(data):
        x, y = data.dataset.tensors
        with torch.no_grad():
            return strong.body(x[data.indices]), y[data.indices]

    probed = weak_to_strong(found().weak, strong, None, b, test, fit=ADAM, probe=True, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        head = nn.Linear(16, 3)
    views = (b, test)
    plain = weak_to_strong(found().weak, head, None, features(b), features(test), fit=ADAM, weak_views=views, seed=3)
    assert probed.accuracy == plain.accuracy


def test_a_function_may_train_in_place():
    def train(model, data, loss):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(20):
            x = torch.stack([data[i][0] for i in range(len(data))])
            y = torch.stack([data[i][1] for i in range(len(data))])
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()

    result = weak_to_strong(Some(3), Some(6), *parts(), fit=train)
    assert result.histories["student"] == []
    assert result.accuracy["ceiling"] > 0.6
    assert not result.student.training
    with pytest.raises(TypeError, match="fit must return"):
        weak_to_strong(Some(3), Some(6), *parts(), fit=lambda *_: 3)


class Sentences(Dataset):
    """Token ids as a tokenizer gives them; the label is by which of two words comes more often."""

    def __init__(self, start, n, vocabulary=20):
        generator = torch.Generator().manual_seed(start)
        self.ids = torch.randint(2, vocabulary, (n, 10), generator=generator)
        self.labels = ((self.ids < 11).sum(1) > 5).long()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, position):
        ids = self.ids[position]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": self.labels[position]}


@functools.cache
def bert(width):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("probe", [False, True])
def test_two_transformers_classifiers_are_taken(probe):
    recipe = Recipe(epochs=3, batch_size=16, optimizer=functools.partial(torch.optim.AdamW, lr=3e-3))
    data = Sentences(1, 96), Sentences(2, 96), Sentences(3, 64)
    result = weak_to_strong(bert(8), bert(24), *data, fit=recipe, loss=ConfidenceLoss(0.5), probe=probe, min_gap=1e-6)
    assert set(result.accuracy) == {"weak", "student", "ceiling"}
    assert len(result.histories["student"]) == 3
    assert all(0 <= v <= 1 for v in result.accuracy.values())
    said = class_probabilities(result.student, data[2]).argmax(1)
    assert result.accuracy["student"] == (said == data[2].labels).double().mean().item()


def test_without_a_gap_there_is_no_share_of_it():
    with pytest.warns(UserWarning, match="min_gap"):
        result = weak_to_strong(Some(3), Some(3), *parts(), fit=Recipe(epochs=1), min_gap=0.9)
    assert math.isnan(result.gap_recovered.estimate)


def test_bad_input_is_named():
    (a, b, test), (x, y) = parts(), world()
    quick = {"fit": Recipe(epochs=1)}
    with pytest.raises(ValueError, match="data_b and data_a must be disjoint, they share 50"):
        weak_to_strong(Some(3), Some(6), (x[:100], y[:100]), (x[50:200], y[50:200]), (x[300:], y[300:]), **quick)
    with pytest.raises(ValueError, match="data_b and test must be disjoint"):
        weak_to_strong(Some(3), Some(6), a, b, Subset(b.dataset, b.indices[:5]), **quick)
    with pytest.raises(ValueError, match="weak and strong must have the same classes, got 3 and 2"):
        weak_to_strong(Some(3), nn.Linear(6, 2), a, b, test, **quick)
    with pytest.raises(ValueError, match=r"bootstrap\[0\]"):
        weak_to_strong(Some(3), Some(6), a, b, test, bootstrap=[nn.Linear(6, 2)], **quick)
    with pytest.raises(ValueError, match="test"):
        weak_to_strong(Some(3), Some(6), a, b, (torch.randn(10, 6), torch.full((10,), 3)), **quick)
    with pytest.raises(ValueError, match="data_b must have class labels"):
        weak_to_strong(Some(3), Some(6), a, (torch.randn(10, 6), torch.rand(10)), test, **quick)
    with pytest.raises(ValueError, match="data_a"):
        weak_to_strong(Some(3), Some(6), TensorDataset(x[:0], y[:0]), b, test, **quick)
    with pytest.raises(ValueError, match="leave the loss"):
        weak_to_strong(Some(3), Some(6), a, b, test, fit=Recipe(loss=F.cross_entropy))
    with pytest.raises(ValueError, match="weak_views"):
        weak_to_strong(Some(3), Some(6), a, b, test, weak_views=(a, test), **quick)
    with pytest.raises(ValueError, match="seed"):
        weak_to_strong(Some(3), Some(6), a, b, test, seed=-1, **quick)
    with pytest.raises(ValueError, match="min_gap"):
        weak_to_strong(Some(3), Some(6), a, b, test, min_gap=0.0, **quick)
