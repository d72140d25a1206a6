import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.measure import fisher_diagonal
from heldout.nn import PrototypeClassifier
from heldout.train import EWC, ContinualStrategy, FastSlow, fit_stream, prototype_training


def tasks(number=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(12, 4, generator=generator) + t, torch.randint(0, 3, (12,), generator=generator))
        for t in range(number)
    ]


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def streamed(strategy, number=3, steps=4, model=None):
    data = tasks(number)
    return fit_stream(model or net(), data, strategy, tests=data, steps=steps, batch_size=6, optimizer=sgd)


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items() if value.is_floating_point())


def test_eta_zero_leaves_the_slow_weights_as_they_were():
    model, strategy = net(), FastSlow(eta=0.0)
    result = streamed(strategy, model=model)
    with strategy.slow(result.module) as slow:
        assert same(model.state_dict(), slow.state_dict())
    assert not same(model.state_dict(), result.module.state_dict())


def test_eta_one_without_kappa_ends_every_task_with_equal_weights():
    strategy = FastSlow(eta=1.0, kappa=0.0)
    module = streamed(strategy).module
    with strategy.slow(module):
        slow = copy.deepcopy(module.state_dict())
    assert same(module.state_dict(), slow)


def test_eta_one_without_kappa_is_online_ewc():
    ours = streamed(FastSlow(3.0, eta=1.0, kappa=0.0, decay=0.5)).module
    theirs = streamed(EWC(3.0, decay=0.5)).module
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_without_importance_it_is_reptile_over_the_stream():
    strategy = FastSlow(eta=0.25, importance=None)
    result = streamed(strategy, number=2)
    slow = net()
    for number, data in enumerate(tasks(2)):
        fast = fit_stream(
            slow, [data], ContinualStrategy(), tests=[data], steps=4, batch_size=6, optimizer=sgd, seed=number
        )
        moved = {k: v + 0.25 * (fast.module.state_dict()[k] - v) for k, v in slow.state_dict().items()}
        slow.load_state_dict({k: v.to(slow.state_dict()[k].dtype) for k, v in moved.items()})
    with strategy.slow(result.module) as ours:
        for name, value in ours.named_parameters():
            torch.testing.assert_close(value, dict(slow.named_parameters())[name])


@pytest.mark.parametrize("reset", [True, False])
def test_the_fast_weights_start_from_the_slow_ones_or_go_on(reset):
    model, strategy = net(), FastSlow(eta=0.3, reset=reset)
    for data in tasks(2):
        before = copy.deepcopy(model.state_dict())
        strategy.begin_task(model, data)
        with strategy.slow(model):
            slow = copy.deepcopy(model.state_dict())
        assert same(model.state_dict(), slow if reset else before)
        with torch.no_grad():
            model[0].weight.add_(1.0)
        strategy.end_task(model, data)
    assert not same(model.state_dict(), slow)


def test_important_weights_move_less_by_the_formula():
    model, strategy, data = net(), FastSlow(eta=0.4, kappa=2.0, decay=0.5), tasks(2)
    assert all((rate == 0.4).all() for rate in strategy.rates(model).values())
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    strategy.begin_task(model, data[0])
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.linspace(-1, 1, value.numel()).view_as(value))
    strategy.end_task(model, data[0])
    omega = fisher_diagonal(model, data[0])
    mean = torch.cat([value.flatten() for value in omega.values()]).mean()
    with strategy.slow(model) as slow:
        for name, value in slow.named_parameters():
            rate = 0.4 / (1 + 2 * omega[name] / mean)
            with strategy.fast(slow):
                fast = dict(slow.named_parameters())[name].detach().clone()
            torch.testing.assert_close(value.detach(), start[name] + rate * (fast - start[name]))
    rates = strategy.rates(model)
    order = omega["0.weight"].flatten().argsort()
    assert (rates["0.weight"].flatten()[order].diff() <= 0).all()
    assert rates["0.weight"].flatten()[order[0]] > rates["0.weight"].flatten()[order[-1]]
    assert all(rate.min() >= 0 and rate.max() <= 0.4 for rate in rates.values())
    strategy.begin_task(model, data[1])
    strategy.end_task(model, data[1])
    torch.testing.assert_close(
        strategy.omega["4.weight"], 0.5 * omega["4.weight"] + fisher_diagonal(model, data[1])["4.weight"]
    )


def test_tied_weights_move_as_one():
    strategy, data = FastSlow(eta=0.5, kappa=3.0), tasks(1)[0]
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    strategy.begin_task(model, data)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    strategy.end_task(model, data)
    rates = strategy.rates(model)
    assert torch.equal(rates["0.weight"], rates["2.weight"])
    assert (rates["2.weight"] < 0.5).any()


@pytest.mark.parametrize("importance", ["fisher", "si"])
def test_the_pull_is_half_of_strength_times_omega_around_the_slow_weights(importance):
    model, strategy, data = net(), FastSlow(6.0, eta=0.3, importance=importance), tasks(2)
    strategy.begin_task(model, data[0])
    with strategy.attach(optimizer := sgd(model), model):
        F.cross_entropy(model(data[0][0]), data[0][1]).backward()
        optimizer.step()
    strategy.end_task(model, data[0])
    strategy.begin_task(model, data[1])
    with strategy.slow(model):
        slow = model[4].weight.detach().clone()
    with torch.no_grad():
        model[4].weight.add_(0.5)
    model.zero_grad()
    strategy.before_step(model)
    assert strategy.omega["4.weight"].max() > 0
    torch.testing.assert_close(model[4].weight.grad, 6.0 * strategy.omega["4.weight"] * (model[4].weight - slow))


def test_what_the_base_knows_is_protected():
    model, strategy, data = net(), FastSlow(eta=0.5), tasks(1)[0]
    strategy.protect(model, data)
    assert strategy.tasks_done == 0
    assert (strategy.rates(model)["4.weight"] < 0.5).any()
    with pytest.raises(ValueError, match="fisher"):
        FastSlow(importance="si").protect(model, data)
    strategy.begin_task(model, data)
    strategy.end_task(model, data)
    with pytest.raises(ValueError, match="before the first task"):
        strategy.protect(model, data)


def test_the_memory_holds_some_of_each_class_and_what_they_gave():
    model, strategy, data = net(), FastSlow(importance=None, memory_per_class=2, memory_strength=3.0), tasks(1)[0]
    strategy.begin_task(model, data)
    assert strategy.extra_loss(model, *data) == 0.0
    strategy.end_task(model, data)
    model.eval()
    assert strategy.extra_loss(model, data[0], model(data[0])).item() == pytest.approx(0.0, abs=1e-9)
    with torch.no_grad():
        model[4].bias.add_(2.0)
    loss = strategy.extra_loss(model, data[0], model(data[0]))
    assert loss.item() == pytest.approx(12.0, rel=1e-4)
    assert loss.requires_grad
    kept = strategy.state_dict()["memory"][0]
    assert len(kept) == sum(min(2, int((data[1] == each).sum())) for each in data[1].unique())


def test_a_stream_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    whole = FastSlow(2.0, eta=0.3, memory_per_class=1)
    expected = streamed(whole).module
    half, data = FastSlow(2.0, eta=0.3, memory_per_class=1), tasks(3)
    options = {"tests": data, "steps": 4, "batch_size": 6, "optimizer": sgd, "checkpoint": tmp_path / "stream.pt"}

    def stop(number, scores):
        if number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_stream(net(), data, half, on_task=stop, **options)
    rest = FastSlow(2.0, eta=0.3, memory_per_class=1)
    module = fit_stream(net(), data, rest, **options).module
    assert same(expected.state_dict(), module.state_dict())
    with rest.slow(module), whole.slow(expected):
        assert same(expected.state_dict(), module.state_dict())


def test_prototype_training_takes_the_step_that_is_written_out():
    torch.manual_seed(0)
    encoder, classifier = nn.Linear(4, 3), PrototypeClassifier(scale=5.0)
    classifier.update(torch.eye(3)[:2], torch.tensor([0, 1]))  # two earlier classes
    x, y = torch.randn(6, 4), torch.tensor([2, 3, 2, 3, 2, 3])
    naive = copy.deepcopy(encoder)
    z = F.normalize(naive(x), dim=1)
    rows = torch.stack([torch.eye(3)[0], torch.eye(3)[1], z[::2].mean(0), z[1::2].mean(0)])
    F.cross_entropy(5 * z @ F.normalize(rows, dim=1).T, y).backward()
    expected = naive.weight - 0.1 * naive.weight.grad
    prototype_training(classifier, steps=1, optimizer=sgd)(encoder, (x, y), ContinualStrategy())
    torch.testing.assert_close(encoder.weight, expected)
    torch.testing.assert_close(classifier.prototypes[2], F.normalize(encoder(x[::2]), dim=1).mean(0).detach())
    assert classifier.counts.tolist() == [1, 1, 3, 3]


def test_prototype_training_leaves_statistics_of_batchnorm_alone():
    model, data = net().train(), tasks(1)[0]
    before = model[1].running_mean.clone()
    prototype_training(PrototypeClassifier(), steps=2, optimizer=sgd)(model, data, ContinualStrategy())
    assert torch.equal(model[1].running_mean, before)
    assert model.training


def test_all_tasks_at_once_refresh_the_prototypes_of_all_their_classes():
    encoder, classifier = nn.Linear(4, 3), PrototypeClassifier()
    x, y = torch.randn(12, 4), torch.arange(12) % 4
    train = prototype_training(classifier, steps=12, optimizer=sgd, classes_at_once=2, refresh=True)
    for _ in range(2):
        train(encoder, (x, y), ContinualStrategy())
    fresh = PrototypeClassifier()
    fresh.update(encoder(x), y)
    torch.testing.assert_close(classifier.prototypes, fresh.prototypes)
    assert classifier.counts.tolist() == [3, 3, 3, 3]


def test_bad_input_is_refused():
    for options, named in (
        ({"strength": -1.0}, "strength"),
        ({"eta": 1.5}, "eta"),
        ({"eta": float("nan")}, "eta"),
        ({"kappa": -0.1}, "kappa"),
        ({"decay": 2.0}, "decay"),
        ({"importance": "path"}, "importance"),
        ({"memory_per_class": -1}, "memory_per_class"),
    ):
        with pytest.raises(ValueError, match=named):
            FastSlow(**options)
    with pytest.raises(ValueError, match="begin_task"):
        FastSlow().end_task(net(), tasks(1)[0])
    with pytest.raises(ValueError, match="before a task"), FastSlow().slow(net()):
        pass
    with pytest.raises(ValueError, match="steps"):
        prototype_training(PrototypeClassifier(), steps=-1)
    with pytest.raises(TypeError, match="one tensor"):
        prototype_training(PrototypeClassifier())(net(), [((torch.ones(4), torch.ones(4)), 0)], ContinualStrategy())
    with pytest.raises(ValueError, match="classes_at_once"):
        prototype_training(PrototypeClassifier(), classes_at_once=0)


def test_without_reset_the_pull_is_still_towards_the_slow_weights():
    model, strategy, data = net(), FastSlow(2.0, eta=0.25, reset=False), tasks()
    for number in range(2):
        strategy.begin_task(model, data[number])
        if number == 0:
            with torch.no_grad():
                for value in model.parameters():
                    value.add_(0.1)
            strategy.end_task(model, data[0])
    with strategy.slow(model):
        slow = {name: value.detach().clone() for name, value in model.named_parameters()}
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    strategy.before_step(model)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, 2.0 * strategy.omega[name] * (value - slow[name]))
    assert any(value.grad.abs().max() > 0 for value in model.parameters())


def test_importance_of_the_path_decays_from_task_to_task():
    def omega(decay, number):
        strategy = FastSlow(0.0, eta=0.0, importance="si", decay=decay)  # the second task is the same for all
        streamed(strategy, number=number)
        return strategy.omega

    first, both, second = omega(1.0, 1), omega(1.0, 2), omega(0.0, 2)
    for name, value in omega(0.5, 2).items():
        torch.testing.assert_close(value, 0.5 * first[name] + second[name])
        torch.testing.assert_close(both[name], first[name] + second[name])


def embedder():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def test_an_earlier_class_keeps_its_prototype_unless_all_are_refreshed():
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    for refresh in (False, True):
        classifier = PrototypeClassifier()
        classifier.update(torch.eye(3)[:1], torch.tensor([0]))
        train = prototype_training(classifier, steps=0, refresh=refresh)
        train(embedder(), (x, torch.tensor([0, 0, 1, 1])), ContinualStrategy())
        assert classifier.counts.tolist() == [2 if refresh else 1, 2]
        assert torch.equal(classifier.prototypes[0], torch.eye(3)[0]) is not refresh


def test_a_part_of_the_classes_at_once_sees_prototypes_of_ten_steps_ago_at_most():
    seen = []

    class Watched(PrototypeClassifier):
        def logits(self, z, *, fresh=None):
            seen.append(self.prototypes.clone())
            return super().logits(z, fresh=fresh)

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    train = prototype_training(Watched(), steps=21, optimizer=sgd, classes_at_once=1)
    train(embedder(), (x, torch.tensor([0, 0, 1, 1, 2, 2])), ContinualStrategy())
    changes = [step for step in range(1, 21) if not torch.equal(seen[step], seen[step - 1])]
    assert changes == [10, 20]


def test_a_stream_of_prototypes_that_was_killed_goes_on_with_its_classes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(20, 4, generator=generator) + 2 * t, torch.arange(20) % 2 + 2 * t) for t in range(3)]

    def streamed(classifier, checkpoint=None, killed_after=None):
        def stop(task, scores):
            if task == killed_after:
                raise KeyboardInterrupt

        def right(model, task):
            x, y = data[task]
            return float((classifier.predict(model(x)) == y).float().mean()) if len(classifier.counts) else 0.0

        train = prototype_training(classifier, steps=3, optimizer=sgd, classes_at_once=1, seed=4)
        options = {"train": train, "evaluate": right, "checkpoint": checkpoint, "on_task": stop}
        return fit_stream(embedder(), data, ContinualStrategy(), **options)

    whole, again = PrototypeClassifier(), PrototypeClassifier()
    expected = streamed(whole)
    with pytest.raises(KeyboardInterrupt):
        streamed(PrototypeClassifier(), tmp_path / "stream", killed_after=1)
    found = streamed(again, tmp_path / "stream")
    assert again.counts.tolist() == whole.counts.tolist() == [10] * 6
    assert found.matrix.scores.tolist() == expected.matrix.scores.tolist()
    assert same(found.module.state_dict(), expected.module.state_dict())
