import copy
import functools
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import heldout
from heldout.nn import mlp
from heldout.optim import M3, RM3, SAM, rm3, rolling_median, sam


def scripted(steps, dim=7, seed=0):
    return torch.randn(steps, dim, generator=torch.Generator().manual_seed(seed))


def path(optimizer, w, gradients):
    positions = []
    for gradient in gradients:
        w.grad = gradient.clone()
        optimizer.step()
        positions.append(w.detach().clone())
    return torch.stack(positions)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 8), st.integers(1, 9), st.integers(0, 99))
def test_rm3_steps_along_torch_median_of_the_last_three_gradients(steps, dim, seed):
    w, gradients = nn.Parameter(torch.zeros(dim)), scripted(steps, dim, seed)
    found = path(RM3([w], lr=0.5), w, gradients)
    expected = torch.zeros(steps, dim)
    for t in range(2, steps):
        expected[t] = expected[t - 1] - 0.5 * gradients[t - 2 : t + 1].median(0).values
    assert torch.allclose(found, expected, atol=1e-6)


def test_nothing_changes_before_the_third_step():
    w = nn.Parameter(torch.ones(7))
    assert torch.equal(path(RM3([w], lr=0.5, weight_decay=0.1), w, scripted(2)), torch.ones(2, 7))


def test_m3_steps_at_every_third_step_with_three_fresh_gradients():
    w, gradients = nn.Parameter(torch.zeros(7)), scripted(9)
    found = path(M3([w], lr=1.0), w, gradients)
    moved = [t + 1 for t in range(9) if not torch.equal(found[t], found[t - 1] if t else torch.zeros(7))]
    assert moved == [3, 6, 9]
    assert torch.allclose(found[-1], -sum(part.median(0).values for part in gradients.split(3)), atol=1e-6)


def test_weight_decay_is_part_of_the_gradient_whose_median_is_taken():
    w, gradients = nn.Parameter(torch.full((7,), 2.0)), scripted(3)
    found = path(RM3([w], lr=1.0, weight_decay=0.1), w, gradients)
    assert torch.allclose(found[-1], 2 - (gradients + 0.2).median(0).values)


def test_each_group_has_its_own_learning_rate_and_a_parameter_without_gradient_stays():
    a, b, unused = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    optimizer = RM3([{"params": [a]}, {"params": [b, unused], "lr": 1.0}], lr=0.1)
    for _ in range(3):
        a.grad = b.grad = torch.ones(1)
        optimizer.step()
    assert (a.item(), b.item(), unused.item()) == (pytest.approx(-0.1), -1.0, 0.0)


def test_a_closure_is_evaluated_once_and_its_loss_returned():
    w, calls = nn.Parameter(torch.ones(2)), []
    optimizer = RM3([w], lr=0.1)

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    assert [optimizer.step(closure).item() for _ in range(3)] == [2.0, 2.0, 2.0]
    assert len(calls) == 3
    assert torch.allclose(w, torch.full((2,), 0.8))


def test_training_goes_on_identically_from_a_saved_state():
    w, gradients = nn.Parameter(torch.zeros(7)), scripted(6)
    optimizer = RM3([w], lr=0.5)
    path(optimizer, w, gradients[:4])
    buffer = io.BytesIO()
    torch.save({"w": w.detach(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = nn.Parameter(saved["w"].clone())
    again = RM3([resumed], lr=0.1)
    again.load_state_dict(saved["optimizer"])
    assert torch.equal(path(optimizer, w, gradients[4:]), path(again, resumed, gradients[4:]))


@pytest.mark.parametrize("form", ["closure", "no closure"])
def test_plain_sgd_with_a_rolling_median_is_rm3(form):
    gradients, found = scripted(6), []
    for make in (lambda w: RM3([w], lr=0.5), lambda w: rolling_median(torch.optim.SGD([w], lr=0.5))):
        w = nn.Parameter(torch.zeros(7))
        optimizer = make(w)
        for gradient in gradients:

            def closure(w=w, gradient=gradient):
                w.grad = gradient.clone()
                return gradient.sum()

            if form == "closure":
                assert optimizer.step(closure) == gradient.sum()
            else:
                closure()
                optimizer.step()
        found.append(w.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("first", ["sam", "median"])
def test_with_sam_the_median_is_taken_of_the_gradients_at_the_perturbed_weights(first):
    w, reference = nn.Parameter(torch.ones(3)), torch.ones(3)
    base = torch.optim.SGD([w], lr=0.1)
    optimizer = rolling_median(SAM(base, rho=0.3)) if first == "sam" else SAM(rolling_median(base), rho=0.3)
    scales, seen = torch.tensor([1.0, 3.0, 2.0, 0.5, 4.0]), []
    for scale in scales:

        def closure(scale=scale):
            optimizer.zero_grad()
            loss = scale * w.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        seen.append(2 * scale * (reference + 0.3 * reference / reference.norm()))
        if len(seen) > 2:
            reference = reference - 0.1 * torch.stack(seen[-3:]).median(0).values
        assert torch.allclose(w, reference, atol=1e-6)


def test_adam_takes_its_first_step_with_the_first_median():
    w = nn.Parameter(torch.zeros(7))
    optimizer = rolling_median(torch.optim.AdamW([w], lr=0.1))
    found = path(optimizer, w, scripted(3))
    assert torch.equal(found[1], torch.zeros(7))
    assert optimizer.state[w]["step"] == 1
    assert torch.allclose(found[2], -0.1 * scripted(3).median(0).values.sign(), atol=1e-4)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_options_that_are_negative_or_not_finite_are_refused(option, bad):
    with pytest.raises(ValueError, match=f"{option} must be (finite and at least 0|a number)"):
        RM3([nn.Parameter(torch.ones(1))], **{"lr": 0.1, option: bad})


@pytest.mark.parametrize("make", [lambda p: RM3(p, lr=0.1), lambda p: rolling_median(torch.optim.SGD(p, lr=0.1))])
def test_sparse_gradients_are_refused(make):
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = make(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()
    assert "sparse" in rm3().check(embedding, heldout.Splits(train=(torch.ones(2), torch.ones(2))))


def test_lbfgs_is_refused():
    with pytest.raises(TypeError, match="LBFGS"):
        rolling_median(torch.optim.LBFGS([nn.Parameter(torch.ones(1))]))


def test_the_method_without_momentum_is_rm3():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    data, options = (x, (x[:, 0] > 0).long()), {"epochs": 4, "batch_size": 10, "schedule": "constant"}
    model = mlp(4, 2, (8,))
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    momentum = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True)
    own = heldout.fit(model, data, optimizer=functools.partial(RM3, lr=0.1), **options).module.state_dict()
    for optimizer in (sgd, momentum):
        found = heldout.fit(copy.deepcopy(model), data, rm3(), optimizer=optimizer, **options).module.state_dict()
        assert all(torch.allclose(found[name], own[name], atol=1e-6) for name in own)


@pytest.mark.parametrize("method", [rm3() + sam(0.05), sam(0.05) + rm3(), rm3()])
def test_the_method_trains(method):
    x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
    data = (x, (x[:, 0] > 0).long())
    sgd = functools.partial(torch.optim.SGD, lr=0.5)
    fitted = heldout.fit(lambda: mlp(4, 2, (8,)), data, method, epochs=10, batch_size=16, optimizer=sgd)
    assert fitted.evaluate(data)["loss"] < 0.5
