"""GEM's loss as a Method: the start teaches, a start that cannot do the task is refused."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import heldout
from heldout.losses import distill_quant
from heldout.method import Batch, Splits, evaluating
from heldout.train import gem_edge
from heldout.weights import fake_quantize

ADAM = functools.partial(torch.optim.Adam, lr=0.02)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def sample(seed, turned=False):
    x = torch.randn(120, 5, generator=torch.Generator().manual_seed(seed))
    parts = x[:, :3].roll(1, 1) if turned else x[:, :3]
    return x, parts.argmax(1)


@pytest.fixture(scope="module")
def start():
    return heldout.fit(network(), sample(0), epochs=60, seed=0, optimizer=ADAM).module


def splits_of(start, **options):
    data = sample(1, turned=True)
    old = torch.arange(120) % 3 > 0  # a third of the labels is new
    labels = torch.where(old, sample(1)[1], data[1])
    return Splits(train=(data[0], labels), initial_state=start.state_dict() if start is not None else None, **options)


def test_the_loss_is_that_of_the_part_with_the_start_as_teacher(start):
    splits = splits_of(start)
    method = gem_edge(0.5, 0.2, bits=4, temperature=2.0)
    by_hand = []

    def loss(run, batch):
        found = method.loss(run, batch)
        with evaluating(start), torch.no_grad():
            taught = start(batch.inputs)
        rounded = fake_quantize(batch.logits.detach().view(1, -1), 4, -1).view_as(batch.logits)
        wanted = distill_quant(
            batch.logits, batch.targets, taught, rounded, distillation=0.5, quantisation=0.2, temperature=2.0
        )
        by_hand.append((float(found.detach()), float(wanted.detach())))
        return found

    heldout.fit(network(), splits, heldout.Method("checked", model=method.model, loss=loss), epochs=2, seed=1)
    assert len(by_hand) >= 2
    for found, wanted in by_hand:
        assert found == pytest.approx(wanted, rel=1e-5)


def test_classes_of_several_outputs_stand_in_the_second_axis_and_minus_100_does_not_count():
    class PerToken(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(6, 3)

        def forward(self, ids):
            return self.table(ids).transpose(1, 2)

    ids = torch.arange(24).view(4, 6) % 6
    labels = ids % 3
    labels[0, 0] = -100
    splits = Splits(train=(ids, labels), initial_state=PerToken().state_dict())
    method, module = gem_edge(0.5, 0.2, bits=4), PerToken()
    with torch.no_grad():
        module.table.weight.add_(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)))
    state = SimpleNamespace(state={}, initial_state=splits.initial_state)
    method.model(state, module)
    found = method.loss(state, Batch(module, ids, labels, torch.arange(4)))
    counted = labels.flatten() != -100
    logits, taught = (each.table(ids.flatten())[counted] for each in (module, PerToken()))
    rounded = fake_quantize(logits.detach().reshape(1, -1), 4, -1).view_as(logits)
    wanted = distill_quant(
        logits, labels.flatten()[counted], taught.detach(), rounded, distillation=0.5, quantisation=0.2
    )
    torch.testing.assert_close(found, wanted)


def test_it_keeps_more_of_what_the_start_could_do(start):
    old = sample(7)

    def kept(method):
        torch.manual_seed(0)
        module = network()
        module.load_state_dict(start.state_dict())
        return heldout.fit(module, splits_of(start), method, epochs=30, seed=0, optimizer=ADAM).evaluate(old)[
            "accuracy"
        ]

    assert kept(gem_edge(distillation=5.0)) > kept(None) + 0.1


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (lambda start: splits_of(None), "pretrained state"),
        (lambda start: splits_of(network()), "there is nothing to keep"),
        (
            lambda start: Splits(train=(torch.randn(20, 5), torch.randn(20, 3)), initial_state=start.state_dict()),
            "class labels",
        ),
    ],
)
def test_where_it_cannot_act_it_says_why(start, splits, words):
    assert words in gem_edge().check(network(), splits(start))


def test_a_new_head_is_told_and_so_is_a_set_without_labels(start):
    state = start.state_dict()
    wider = nn.Sequential(*network()[:4], nn.Linear(16, 4))
    splits = splits_of(start)
    assert "4.weight has another shape" in gem_edge().check(wider, splits)
    unlabeled = Splits(train=(torch.randn(9, 5), torch.full((9,), -100)), initial_state=state)
    assert "no training example" in gem_edge().check(network(), unlabeled)


def test_examples_in_the_order_of_their_classes_are_no_reason(start):
    x, y = sample(1)
    x, y = x.repeat(10, 1), y.repeat(10)
    order = y.argsort()
    splits = Splits(train=(x[order], y[order]), initial_state=start.state_dict())
    assert gem_edge().check(network(), splits) is None


def test_where_it_can_act_it_leaves_the_model_alone(start):
    module, splits = network().train(), splits_of(start)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert gem_edge().check(module, splits) is None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training


@pytest.mark.parametrize("options", [{"distillation": -1.0}, {"quantisation": -0.1}, {"bits": 1}, {"temperature": 0.0}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        gem_edge(**options)
