import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import heldout
from heldout.nn import tiny_vit
from heldout.train import bilevel_weights, effective_sample_size, learned_weights, meta_gradient


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


def batch(n, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=g).double(), torch.randint(0, 3, (n,), generator=g)


def test_weights_are_the_positive_inner_products_of_gradients():
    model = network().eval()
    (x, y), (known, labels) = batch(7, 1), batch(5, 2)
    params = list(model.parameters())
    slope = torch.autograd.grad(F.cross_entropy(model(known), labels), params)
    expected = []
    for i in range(7):
        own = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), params)
        expected.append(max(0.0, sum(float((a * b).sum()) for a, b in zip(own, slope, strict=True))))
    assert min(expected) == 0 < max(expected)
    losses = F.cross_entropy(model(x), y, reduction="none")
    found = bilevel_weights(losses, F.cross_entropy(model(known), labels), params)
    assert torch.allclose(found, torch.tensor(expected).double() / sum(expected))


def test_a_step_on_the_weighted_loss_lowers_the_trusted_one_more_than_a_plain_step_of_its_length():
    (x, y), (known, labels) = batch(30, 3), batch(30, 4)
    after = []
    for weighted in (True, False):
        model = network()
        losses = F.cross_entropy(model(x), y, reduction="none")
        trusted = F.cross_entropy(model(known), labels)
        weights = bilevel_weights(losses, trusted, list(model.parameters())) if weighted else torch.full((30,), 1 / 30)
        (weights * losses).sum().backward()  # both graphs are still there
        length = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 * p.grad / length
        after.append(float((F.cross_entropy(model(known), labels) - trusted).detach()))
    assert after[0] < after[1]
    assert after[0] < 0


def test_where_no_example_helps_all_weights_are_zero():
    w = torch.zeros(1, requires_grad=True)
    found = bilevel_weights((w - torch.tensor([-1.0, -2.0])) ** 2, ((w - 1) ** 2).sum(), [w])
    assert found.tolist() == [0, 0]


def test_parameters_that_neither_loss_reads_do_not_matter():
    w, unread = torch.zeros(1, requires_grad=True), torch.zeros(3, requires_grad=True)
    losses, trusted = (w - torch.tensor([1.0, 3.0])) ** 2, ((w - 1) ** 2).sum()
    assert torch.allclose(bilevel_weights(losses, trusted, [unread, w]), torch.tensor([0.25, 0.75]))
    with pytest.raises(ValueError, match="no parameter together"):
        bilevel_weights(losses, trusted, [unread])


def test_what_has_no_gradient_is_refused_by_name():
    w, frozen = torch.zeros(1, requires_grad=True), torch.zeros(1)
    losses, trusted = (w - torch.tensor([1.0, 3.0])) ** 2, ((w - 1) ** 2).sum()
    for arguments, message in (
        ((losses.detach(), trusted, [w]), "losses must require"),
        ((losses, trusted.detach(), [w]), "trusted_loss must require"),
        ((losses, losses, [w]), "trusted_loss must be one number"),
        ((losses, trusted, [w, frozen]), "parameters must require"),
        ((losses, trusted, []), "parameters"),
        ((losses * torch.nan, trusted, [w]), "losses must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            bilevel_weights(*arguments)


def test_the_effective_sample_size_counts_equal_weights():
    assert effective_sample_size(torch.full((7,), 0.3)) == pytest.approx(7)
    assert effective_sample_size(torch.tensor([3.0, 1.0])) == pytest.approx(16 / 10)
    assert effective_sample_size(torch.zeros(3)) == 0
    with pytest.raises(ValueError, match="weights"):
        effective_sample_size(torch.tensor([-1.0, 1.0]))


def test_the_method_sets_as_many_of_each_class_aside_and_trains_on_the_others():
    x, y = torch.randn(60, 4), torch.tensor([0] * 40 + [1] * 16 + [2] * 4)
    fitted = heldout.fit(network().float(), (x, y), learned_weights(0.2), epochs=2, seed=3)
    aside = fitted.run.state["learned_weights"]
    assert y[torch.tensor(aside.indices)].bincount().tolist() == [4, 4, 2]  # at most half of a class
    rest = set(fitted.run.train_set.indices)
    assert not rest & set(aside.indices)
    assert len(rest) == 50


def test_which_examples_are_set_aside_is_drawn_by_the_seed():
    x, y = torch.zeros(60, 4), torch.arange(60) % 3
    aside = [
        heldout.fit(nn.Linear(4, 3), (x, y), learned_weights(0.2), epochs=1, seed=seed).run.state["learned_weights"]
        for seed in (3, 3, 4)
    ]
    assert aside[0].indices == aside[1].indices != aside[2].indices
    assert aside[0].indices != list(range(12))


def test_a_step_is_the_gradient_of_the_sum_of_weighted_losses():
    torch.manual_seed(1)
    x, y = torch.randn(12, 4), torch.arange(12) % 2
    start = nn.Linear(4, 2)
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    fitted = heldout.fit(
        copy.deepcopy(start), (x, y), learned_weights(0.17), epochs=1, batch_size=10, seed=0, optimizer=sgd
    )
    rest, aside = fitted.run.train_set.indices, fitted.run.state["learned_weights"].indices
    assert (len(rest), len(aside)) == (10, 2)
    found = fitted.module.weight.detach()
    expected = []
    for rows in (aside, aside[:1] * 2, aside[1:] * 2):  # the two trusted ones are drawn with replacement
        model = copy.deepcopy(start)
        losses = F.cross_entropy(model(x[rest]), y[rest], reduction="none")
        trusted = F.cross_entropy(model(x[rows]), y[rows])
        (bilevel_weights(losses, trusted, list(model.parameters())) * losses).sum().backward()
        expected.append(start.weight.detach() - 0.1 * model.weight.grad)
    assert any(torch.allclose(found, each, atol=1e-6) for each in expected)


class Seen(nn.Module):
    """A frozen layer and one that learns, and what they were given."""

    def __init__(self):
        super().__init__()
        self.frozen, self.learns, self.given = nn.Linear(1, 4).requires_grad_(False), nn.Linear(4, 3), []

    def forward(self, x):
        self.given.append(x[:, 0].tolist())
        return self.learns(self.frozen(x).tanh())


def test_trusted_examples_are_drawn_anew_for_each_step_and_frozen_layers_stay():
    torch.manual_seed(0)
    model = Seen()
    before = model.frozen.weight.clone()
    x, y = torch.arange(60.0)[:, None], torch.arange(60) % 3
    fitted = heldout.fit(lambda: model, (x, y), learned_weights(0.2), epochs=2, batch_size=8, seed=0)
    aside = {float(i) for i in fitted.run.state["learned_weights"].indices}
    trusted = [rows for rows in model.given if set(rows) <= aside]
    assert len(trusted) == 12  # one for each step
    assert len({tuple(rows) for rows in trusted}) == 12
    assert {len(rows) for rows in trusted} == {8}
    assert {row for rows in trusted for row in rows} == aside
    assert torch.equal(fitted.module.frozen.weight, before)


def test_the_running_statistics_are_those_of_the_training_batches_alone():
    x, y = torch.randn(40, 4) + 5, torch.arange(40) % 3
    model = network().float()
    fitted = heldout.fit(copy.deepcopy(model), (x, y), learned_weights(0.2), epochs=1, batch_size=32, seed=0)
    assert int(fitted.module[1].num_batches_tracked) == 1


def test_rare_classes_count_more_than_in_plain_training():
    g = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 380 + [1] * 20)
    x = torch.randn(400, 2, generator=g) + 1.0 * y[:, None]
    test = torch.randn(200, 2, generator=g) + 1.0
    found, adam = [], functools.partial(torch.optim.Adam, lr=0.03)
    torch.manual_seed(0)
    start = nn.Linear(2, 2)
    for method in (learned_weights(0.05), None):
        fitted = heldout.fit(start, (x, y), method, epochs=20, batch_size=40, seed=0, optimizer=adam)
        found.append(float((fitted.predict(test).argmax(1) == 1).float().mean()))
    assert found[0] > found[1] + 0.2


def test_attention_is_differentiated_twice():
    x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 2
    model = tiny_vit(8, 4, dim=8, depth=1, heads=2, num_classes=2, channels=1)
    assert heldout.fit(model, (x, y), learned_weights(0.2), epochs=1, seed=0).module is not None


def test_it_says_what_it_lacks():
    method, model = learned_weights(), network().float()
    assert "real numbers" in method.check(model, heldout.Splits(train=(torch.zeros(4, 4), torch.zeros(4))))
    assert "no class has two" in method.check(model, heldout.Splits(train=(torch.zeros(3, 4), torch.arange(3))))
    with pytest.raises(ValueError, match="trusted"):
        learned_weights(0.8)


def test_the_meta_gradient_is_that_of_finite_differences_of_the_validation_loss_after_a_step():
    model = network().eval()
    (x, y), (known, labels) = batch(6, 1), batch(5, 2)
    params = dict(model.named_parameters())
    weights = torch.rand(6, generator=torch.Generator().manual_seed(3)).double() + 0.1

    def validation(at):
        return F.cross_entropy(functional_call(model, at, (known,)), labels)

    def after(w):
        losses = F.cross_entropy(model(x), y, reduction="none")
        steps = torch.autograd.grad((w * losses).sum() / 6, list(params.values()))
        return validation({n: p - 0.5 * g for (n, p), g in zip(params.items(), steps, strict=True)}).item()

    losses = F.cross_entropy(model(x), y, reduction="none")
    found = meta_gradient(losses, weights, params, validation, lr=0.5)
    for i in range(6):
        e = torch.zeros(6).double()
        e[i] = 1e-5
        assert found[i].item() == pytest.approx((after(weights + e) - after(weights - e)) / 2e-5, rel=1e-5, abs=1e-9)
    losses.sum().backward()  # the graph is still there
    assert not found.requires_grad
    unused = params | {"unused": torch.zeros(2, requires_grad=True)}
    again = meta_gradient(F.cross_entropy(model(x), y, reduction="none"), weights, unused, validation, lr=0.5)
    assert torch.allclose(again, found)


def test_the_meta_gradient_refuses_bad_input_by_name():
    w = torch.zeros(1, requires_grad=True)
    losses = (w - torch.tensor([1.0, 2.0])) ** 2

    def good(at):
        return at["w"].sum() ** 2 + at["w"].sum()

    ones, one = torch.ones(2), {"w": w}
    for call, name in (
        (lambda: meta_gradient(losses * float("nan"), ones, one, good), "losses"),
        (lambda: meta_gradient(losses.detach(), ones, one, good), "losses"),
        (lambda: meta_gradient(losses, ones[:1], one, good), "weights"),
        (lambda: meta_gradient(losses, ones * float("inf"), one, good), "weights"),
        (lambda: meta_gradient(losses, ones, {}, good), "parameters"),
        (lambda: meta_gradient(losses, ones, {"w": torch.zeros(1)}, good), "parameters"),
        (lambda: meta_gradient(losses, ones, one, lambda at: at["w"].expand(3)), "validation_loss"),
        (lambda: meta_gradient(losses, ones, one, lambda at: torch.ones(())), "validation_loss"),
        (lambda: meta_gradient(losses, ones, one, lambda at: (at["w"] * torch.nan).sum()), "validation_loss"),
        (lambda: meta_gradient(losses, ones, one, good, lr=0.0), "lr"),
        (lambda: meta_gradient(losses[:0], ones[:0], one, good), "losses"),
    ):
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            call()
