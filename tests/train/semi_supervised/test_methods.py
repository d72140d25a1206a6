import functools

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import heldout
from heldout import Splits
from heldout.adapt import tent
from heldout.data import balanced_sampling
from heldout.optim import sam
from heldout.train import fit_with, fixmatch, mean_teacher, pseudo_labels, pseudo_supervisor
from heldout.weights import ema

ADAM = functools.partial(torch.optim.Adam, lr=0.02)
SGD = functools.partial(torch.optim.SGD, lr=0.1)
METHODS = [pseudo_supervisor, fixmatch, pseudo_labels, mean_teacher]


def cloud(n, seed):
    y = torch.arange(n) % 2
    noise = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return torch.tensor([[1.5, 0, 0, 0], [-1.5, 0, 0, 0]])[y] + noise, y


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))


def splits(**changes):
    given = {"train": cloud(24, 0), "val": cloud(40, 1), "test": {"iid": cloud(200, 2)}, "unlabeled": cloud(200, 3)[0]}
    return Splits(**(given | changes))


@pytest.mark.parametrize("method", METHODS)
def test_fit_trains_under_it_and_gives_a_plain_model(method):
    made = functools.partial(method, unlabelled_batch=16, **({"decay": 0.9} if method is mean_teacher else {}))
    fitted = heldout.fit(network, splits(), made(), epochs=12, batch_size=8, optimizer=ADAM)
    assert list(fitted.module.state_dict()) == list(network().state_dict())
    assert all(p.requires_grad for p in fitted.module.parameters())
    assert not fitted.module.training
    assert fitted.evaluate(splits().test["iid"])["accuracy"] > 0.8
    again = heldout.fit(network, splits(), made(), epochs=12, batch_size=8, optimizer=ADAM)
    assert torch.equal(fitted.predict(cloud(9, 4)[0]), again.predict(cloud(9, 4)[0]))


def test_the_pseudo_supervisor_leaves_out_what_rewards_and_never_sees_the_validation_data():
    asked = []

    class Watched(TensorDataset):
        def __getitem__(self, position):
            asked.append(position)
            return super().__getitem__(position)

    fitted = heldout.fit(
        network, splits(val=Watched(*cloud(40, 1))), pseudo_supervisor(held_out=0.25, window=2), epochs=2, batch_size=6
    )
    assert asked == []
    kept = set(fitted.run.train_set.indices)
    assert len(kept) == 18
    assert fitted.run.step == 6  # the steps on proposed labels are not counted


def test_each_step_is_followed_by_one_on_proposed_labels():
    fitted = heldout.fit(
        network, splits(), pseudo_supervisor(window=1000, reward_batch=5), epochs=3, batch_size=8, optimizer=SGD
    )
    supervisor = fitted.run.state["pseudo_supervisor"]
    assert len(supervisor._pool) == fitted.run.step == 3 * 2
    assert len({tuple(each.inputs[0].tolist()) for each in supervisor._pool}) == 6
    assert fitted.module[1].num_batches_tracked == 12


def test_the_policy_learns_within_fit():
    trained = heldout.fit(network, splits(), pseudo_supervisor(window=2), epochs=4, batch_size=8, optimizer=SGD, seed=1)
    policy = trained.run.state["pseudo_supervisor"].policy
    still = heldout.fit(network, splits(), pseudo_supervisor(window=99), epochs=4, batch_size=8, optimizer=SGD, seed=1)
    start = still.run.state["pseudo_supervisor"].policy
    assert not torch.equal(policy[0].weight, start[0].weight)
    assert start[1].running_mean.abs().sum() > 0  # statistics of the training data


def test_the_added_loss_is_weighted_and_has_the_same_views_in_both_evaluations_of_a_step():
    given = []

    def note(run, batch):
        given.append(method.loss.penalty(run, batch).item() / run.state["fixmatch"][0].weight)
        return torch.zeros((), requires_grad=True)

    method = fixmatch(threshold=0.0, weight=3.0, unlabelled_batch=200)
    flat = functools.partial(torch.optim.SGD, lr=0.0)
    watched = heldout.Method("watched", model=method.model, loss=heldout.Added(note))
    heldout.fit(lambda: nn.Linear(4, 2), splits(), watched + sam(rho=1e-9), epochs=1, batch_size=12, optimizer=flat)
    assert len(given) == 4
    assert given[0] == pytest.approx(given[1], rel=1e-4)
    assert given[0] != pytest.approx(given[2], rel=1e-4)


def test_the_weight_scales_the_added_loss():
    losses = []
    for weight in (0.0, 1.0, 3.0):
        method = pseudo_labels(threshold=0.0, weight=weight, unlabelled_batch=200)
        history = heldout.fit(lambda: nn.Linear(4, 2), splits(), method, epochs=1, batch_size=24, seed=0).history
        losses.append(history[0]["loss"])
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)
    assert losses[1] > losses[0]


def test_the_mean_teacher_takes_every_step_into_its_average():
    decay, seen = 0.6, []
    watch = heldout.Method("watch", loss=heldout.Added(lambda run, batch: (seen.append(copies(run.module)), 0.0)[1]))
    method = mean_teacher(decay=decay, weight=0.0) + watch
    fitted = heldout.fit(lambda: nn.Linear(4, 2), splits(), method, epochs=2, batch_size=8, optimizer=SGD)
    expected = seen[0]
    for step, weight in enumerate(seen[1:], start=1):
        now = min(decay, 1 - 1 / (step + 1))
        expected = now * expected + (1 - now) * weight
    # the last step's weights are known from the recipe alone
    plain = heldout.fit(lambda: nn.Linear(4, 2), splits(), epochs=2, batch_size=8, optimizer=SGD).module.weight
    torch.testing.assert_close(fitted.module.weight, decay * expected + (1 - decay) * plain)


def copies(module):
    return module.weight.detach().clone()


@pytest.mark.parametrize("method", METHODS)
def test_it_composes_and_serves_a_loop_of_ones_own(method):
    for other in (sam(), ema(), tent()):
        assert heldout.fit(network, splits(), method() + other, epochs=1, batch_size=8).history
        assert heldout.fit(network, splits(), other + method(), epochs=1, batch_size=8).history

    def train(model, splits, stages, seed):
        optimizer = stages.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(stages.epochs):
            for batch in stages.batches():
                stages.step(optimizer, *batch)
        return model

    fitted = fit_with(train, network, splits(), method(), epochs=2, batch_size=8)
    assert fitted.run.step in (2 * 2, 2 * 3)


def test_the_pseudo_supervisor_is_written_before_what_changes_the_training_set():
    x, y = cloud(40, 0)
    unequal = splits(train=(x[10:], torch.where(torch.arange(30) < 8, y[10:], 0)))
    with pytest.raises(TypeError, match="holds out a part of the training set as given"):
        heldout.fit(network, unequal, balanced_sampling() + pseudo_supervisor(), epochs=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabeled": None}, r"needs unlabelled inputs .* Splits\(unlabeled"),
        ({"unlabeled": torch.zeros(9, 3)}, "has the shape"),
        ({"train": (torch.zeros(12, 4), torch.zeros(12, 2))}, "targets are real numbers"),
    ],
)
def test_the_check_says_why_it_cannot_act(method, changes, message):
    with pytest.raises(ValueError, match=message):
        heldout.fit(network, splits(**changes), method())


def test_checks_of_single_methods():
    few = splits(train=cloud(6, 0))
    assert "8 are the least" in pseudo_supervisor().check(network(), few)
    tokens = splits(train=(torch.ones(24, 4).long(), cloud(24, 0)[1]), unlabeled=torch.ones(9, 4).long())
    for method in (fixmatch(), mean_teacher()):
        assert "images and vectors" in method.check(network(), tokens)
    assert pseudo_labels().check(network(), tokens) is None


def test_texts_are_labelled_by_pseudo_labels_and_the_supervisor():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.EmbeddingBag(10, 2)

        def forward(self, input_ids):
            return self.table(input_ids)

    rows = [{"input_ids": torch.tensor([i % 10, 3]), "labels": i % 2} for i in range(20)]
    data = Splits(train=rows, unlabeled=[{"input_ids": row["input_ids"]} for row in rows])
    for method in (pseudo_labels(0.0), pseudo_supervisor(window=2)):
        assert heldout.fit(Words, data, method, epochs=2, batch_size=5).history[-1]["loss"] > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: pseudo_supervisor(held_out=1.0),
        lambda: pseudo_supervisor(window=1),
        lambda: pseudo_supervisor(policy_lr=0.0),
        lambda: fixmatch(threshold=1.5),
        lambda: pseudo_labels(weight=-1.0),
        lambda: mean_teacher(decay=1.0),
        lambda: mean_teacher(unlabelled_batch=0),
    ],
)
def test_bad_options_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
