import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout import fit
from heldout.train import distillation


def data(rows=200, seed=0):
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return x, ((x[:, 0] * x[:, 1]) > 0).long()


def network(width, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2))


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=0.02)


RECIPE = {"epochs": 2, "batch_size": 50, "optimizer": adam, "seed": 0}


def by_hand(student, teacher, rows, order, *, weight, temperature):
    optimizer = adam(student)
    for batch in order:
        x, y = (each[batch] for each in rows)
        s, t = student(x) / temperature, (teacher(x) / temperature).detach()
        kl = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean()
        loss = (1 - weight) * F.cross_entropy(student(x), y) + weight * temperature**2 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


@pytest.mark.parametrize(("weight", "temperature"), [(0.9, 4.0), (0.3, 1.0), (1.0, 2.0)])
def test_it_is_the_loss_written_out(weight, temperature):
    rows, teacher = data(40), network(16, seed=1)
    method = distillation(teacher, weight=weight, temperature=temperature)
    fitted = fit(network(4), rows, method, **{**RECIPE, "batch_size": 40, "schedule": "constant"})
    expected = by_hand(network(4), teacher, rows, [torch.arange(40)] * 2, weight=weight, temperature=temperature)
    for own, other in zip(fitted.module.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-5)


def test_without_weight_it_is_plain_training():
    rows = data()
    plain, taught = (fit(network(4), rows, m, **RECIPE) for m in (None, distillation(network(8), weight=0.0)))
    for own, other in zip(plain.module.parameters(), taught.module.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-6)


def test_the_teacher_stays_as_it_is_and_answers_in_evaluation_mode():
    teacher = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.9), nn.ReLU(), nn.Linear(16, 2)).train()
    before = copy.deepcopy(teacher.state_dict())
    fit(network(4), data(), distillation(teacher), **RECIPE)
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("width", [16, 4])
def test_features_are_learned_and_the_projection_is_dropped(width):
    rows, teacher = data(), network(16, seed=1)
    method = distillation(teacher, weight=0.0, feature_weight=50.0, layer="1", teacher_layer="1")
    recipe = {**RECIPE, "epochs": 60}
    fitted, plain = fit(network(width), rows, method, **recipe), fit(network(width), rows, **recipe)
    assert list(fitted.module.state_dict()) == list(network(width).state_dict())
    assert not fitted.module[1]._forward_hooks

    def unexplained(module):  # of the teacher's features, by the best linear map of the student's
        with torch.no_grad():
            own, taught = module[:2](rows[0]), teacher[:2](rows[0])
            own = torch.cat([own, torch.ones(len(own), 1)], 1)
            return float((own @ torch.linalg.pinv(own) @ taught - taught).square().mean() / taught.var(0).mean())

    assert unexplained(fitted.module) < 0.7 * unexplained(plain.module)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_teacher_may_be_of_another_precision(dtype):
    hint = {"feature_weight": 1.0, "layer": "1", "teacher_layer": "1"}
    fitted = fit(network(4), data(40), distillation(network(16).to(dtype), **hint), **RECIPE)
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in fitted.module.parameters())


class Pictures(nn.Module):
    def __init__(self, channels, stride=1):
        super().__init__()
        self.first, self.head = nn.Conv2d(1, channels, 3, stride, padding=1), nn.Linear(channels, 2)

    def forward(self, x):
        return self.head(self.first(x).relu().mean((2, 3)))


def test_features_of_pictures_are_projected_by_channel():
    x = torch.randn(12, 1, 6, 6)
    rows = (x, (x.mean((1, 2, 3)) > 0).long())
    hint = {"feature_weight": 1.0, "layer": "first", "teacher_layer": "first"}
    fitted = fit(Pictures(3), rows, distillation(Pictures(5), **hint), epochs=1, batch_size=5)
    assert list(fitted.module.state_dict()) == list(Pictures(3).state_dict())
    with pytest.raises(ValueError, match="differ in other axes"):
        fit(Pictures(3), rows, distillation(Pictures(5, stride=2), **hint), epochs=1)


def test_a_better_teacher_helps_where_labels_are_noisy():
    train, test = data(2000, seed=1), data(1000, seed=2)
    teacher = fit(network(32, seed=1), train, **{**RECIPE, "epochs": 60}).module
    flipped = torch.rand(2000, generator=torch.Generator().manual_seed(0)) < 0.4
    noisy = (train[0], torch.where(flipped, 1 - train[1], train[1]))
    recipe = {**RECIPE, "epochs": 20}
    plain, taught = (fit(network(16), noisy, m, **recipe) for m in (None, distillation(teacher, weight=1.0)))
    right = lambda fitted: float((fitted.predict(test[0]).argmax(1) == test[1]).float().mean())  # noqa: E731
    assert right(taught) > right(plain) + 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, "weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"feature_weight": -1.0, "layer": "1", "teacher_layer": "1"}, "feature_weight"),
        ({"feature_weight": 1.0}, "all of them or none"),
        ({"layer": "1", "teacher_layer": "1"}, "all of them or none"),
        ({"feature_weight": 1.0, "layer": "1"}, "all of them or none"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        distillation(network(4), **options)


def test_a_teacher_of_other_classes_real_targets_and_layers_that_are_not_there_are_told():
    x, y = data(20)
    other = nn.Linear(3, 5)
    with pytest.raises(ValueError, match=r"the teacher gives \(2, 5\)"):
        fit(network(4), (x, y), distillation(other), epochs=1)
    with pytest.raises(ValueError, match="class labels"):
        fit(nn.Linear(3, 1), (x, x[:, 0]), distillation(nn.Linear(3, 1)), epochs=1)
    with pytest.raises(ValueError, match="no layer 'body'"):
        fit(network(4), (x, y), distillation(network(4), feature_weight=1.0, layer="body", teacher_layer="1"), epochs=1)
