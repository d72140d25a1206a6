import copy
import functools
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import heldout
from heldout.optim import SAM, sam


def seeded_model(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def mlp():
    return seeded_model(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))


def conv_net():
    def build():
        convolution = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*convolution, nn.Linear(4 * 36, 3), nn.BatchNorm1d(3))

    return seeded_model(build)


def batch(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, *shape, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def closure_for(model, optimizer, inputs, targets, scale=1.0):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets) * scale
        loss.backward()
        return loss

    return closure


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def buffers(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def plain_sam_step(model, optimizer, loss_of, rho):
    """The algorithm as the paper writes it, one parameter at a time."""
    optimizer.zero_grad()
    loss_of().backward()
    old = [p.detach().clone() for p in model.parameters()]
    norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
    with torch.no_grad():
        for p in model.parameters():
            p += rho * p.grad / norm
    optimizer.zero_grad()
    loss_of().backward()
    with torch.no_grad():
        for p, w in zip(model.parameters(), old, strict=True):
            p.copy_(w)
    optimizer.step()


@pytest.mark.parametrize("rho", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("start", [-2.0, 3.0])
def test_one_step_on_a_parabola_has_the_closed_form(rho, start):
    w = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho)

    def closure():
        optimizer.zero_grad()
        loss = (1.5 * w.square()).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.5 * start**2
    assert w.item() == pytest.approx(start - 0.1 * 3 * (start + rho * math.copysign(1, start)), abs=1e-12)


@pytest.mark.parametrize(
    "base", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=0.01)]
)
def test_steps_equal_the_algorithm_written_plainly(base):
    inputs, targets = batch(6)
    ours, theirs = mlp(), mlp()
    optimizer, reference = SAM(base(ours.parameters()), 0.1), base(theirs.parameters())
    for _ in range(5):
        optimizer.step(closure_for(ours, optimizer, inputs, targets))
        plain_sam_step(theirs, reference, lambda: F.cross_entropy(theirs(inputs), targets), 0.1)
    assert torch.allclose(weights(ours), weights(theirs), atol=1e-6)


def test_steps_equal_those_of_pytorch_optimizer():
    peers = pytest.importorskip("pytorch_optimizer")
    inputs, targets = batch(6)
    ours, theirs = mlp(), mlp()
    optimizer = SAM(torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9), 0.1)
    peer = peers.SAM(theirs.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.step(closure_for(ours, optimizer, inputs, targets))
        closure = closure_for(theirs, peer, inputs, targets)
        closure()
        peer.step(closure)
    assert torch.allclose(weights(ours), weights(theirs), atol=1e-6)


def test_two_calls_equal_the_closure_form():
    inputs, targets = batch(6)
    one, two = mlp(), mlp()
    a, b = (SAM(torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)) for m in (one, two))
    for _ in range(3):
        a.step(closure_for(one, a, inputs, targets))
        F.cross_entropy(two(inputs), targets).backward()
        b.first_step(zero_grad=True)
        F.cross_entropy(two(inputs), targets).backward()
        b.second_step(zero_grad=True)
    assert torch.equal(weights(one), weights(two))
    assert all(p.grad is None for p in two.parameters())


def test_the_perturbation_has_length_rho_over_all_groups_and_restore_is_exact():
    model = mlp()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}]
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.3)
    inputs, targets = batch(6)
    before = weights(model)
    F.cross_entropy(model(inputs), targets).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.first_step()
    assert torch.allclose(weights(model) - before, 0.3 * gradient / gradient.norm(), atol=1e-6)
    optimizer.restore()
    assert torch.equal(weights(model), before)
    assert torch.equal(torch.cat([p.grad.flatten() for p in model.parameters()]), gradient)


def test_each_group_may_have_its_own_rho():
    model = mlp()
    groups = [{"params": model[0].parameters(), "rho": 0.0}, {"params": model[2].parameters()}]
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.3)
    assert [group["rho"] for group in optimizer.param_groups] == [0.0, 0.3]
    inputs, targets = batch(6)
    old = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(inputs), targets).backward()
    norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
    optimizer.first_step()
    first, second = list(model[0].parameters()), list(model[2].parameters())
    assert all(torch.equal(p, w) for p, w in zip(first, old[:2], strict=True))
    assert all(torch.allclose(p, w + 0.3 * p.grad / norm) for p, w in zip(second, old[2:], strict=True))
    optimizer.restore()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_perturbation_does_not_depend_on_the_scale_of_the_loss(scale):
    inputs, targets = batch(6)
    moved = []
    for factor in (1.0, scale):
        model = mlp()
        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
        (F.cross_entropy(model(inputs), targets) * factor).backward()
        optimizer.first_step()
        moved.append(weights(model))
        optimizer.restore()
    assert torch.allclose(*moved, atol=1e-6)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_zero_or_non_finite_gradient_gives_the_base_step_with_one_evaluation(bad):
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, base = SAM(torch.optim.SGD([one], lr=0.1)), torch.optim.SGD([two], lr=0.1)
    calls = []

    def closure():
        calls.append(1)
        one.grad = torch.tensor([bad, 0.0, 0.0])
        return torch.tensor(0.0)

    optimizer.step(closure)
    two.grad = torch.tensor([bad, 0.0, 0.0])
    base.step()
    assert torch.equal(one.nan_to_num(), two.nan_to_num())
    assert len(calls) == 1


def test_accumulated_micro_batches_equal_one_batch():
    inputs, targets = batch(6)
    whole, parts = mlp(), mlp()
    a, b = (SAM(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (whole, parts))
    a.step(closure_for(whole, a, inputs, targets))

    def closure():
        b.zero_grad()
        losses = [F.cross_entropy(parts(x), y) / 4 for x, y in zip(inputs.chunk(4), targets.chunk(4), strict=True)]
        for loss in losses:
            loss.backward()
        return sum(losses)

    b.step(closure)
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6)


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("form", ["closure", "two calls"])
def test_running_statistics_are_those_of_the_first_pass(with_model, form):
    model, reference = conv_net(), conv_net()
    inputs, targets = batch(1, 8, 8)
    reference(inputs)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.5, model=model if with_model else None)
    if form == "closure":
        optimizer.step(closure_for(model, optimizer, inputs, targets))
    else:
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.second_step()
    expected = buffers(reference)
    assert all(torch.equal(b, expected[name]) for name, b in model.named_buffers())
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))
    model(inputs)
    assert model[1].num_batches_tracked == 2


def test_the_second_pass_normalises_with_the_batch_as_the_first_does():
    model = conv_net()
    inputs, targets = batch(1, 8, 8)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.0)
    outputs = []
    model.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    optimizer.step(closure_for(model, optimizer, inputs, targets))
    assert torch.equal(outputs[0], outputs[1])


def test_layers_in_eval_mode_keep_using_their_running_statistics():
    model = conv_net()
    model[1].eval()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    inputs, targets = batch(1, 8, 8)
    seen = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(module.track_running_stats))
    optimizer.step(closure_for(model, optimizer, inputs, targets))
    assert seen == [True, True]


@pytest.mark.parametrize("evaluation", [1, 2])
@pytest.mark.parametrize("inside_forward", [True, False])
def test_an_exception_puts_weights_and_statistics_back(evaluation, inside_forward):
    model = conv_net()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    inputs, targets = batch(1, 8, 8)
    before = weights(model)
    calls = []

    def explode(module, args):
        if inside_forward and len(calls) == evaluation:
            raise ArithmeticError("boom")

    model[2].register_forward_pre_hook(explode)
    inner = closure_for(model, optimizer, inputs, targets)

    def closure():
        calls.append(1)
        loss = inner()
        if len(calls) == evaluation:
            raise ArithmeticError("boom")
        return loss

    hooks = len(nn.modules.module._global_forward_hooks), len(nn.modules.module._global_forward_pre_hooks)
    with pytest.raises(ArithmeticError, match="boom"):
        optimizer.step(closure)
    assert torch.equal(weights(model), before)
    assert all(m.track_running_stats for m in (model[1], model[5]))
    assert hooks == (len(nn.modules.module._global_forward_hooks), len(nn.modules.module._global_forward_pre_hooks))
    calls.extend([1] * 5)
    optimizer.step(closure_for(model, optimizer, inputs, targets))


@pytest.mark.parametrize("on_base", [True, False])
def test_schedulers_may_hold_the_wrapper_or_the_base(on_base, recwarn):
    model = mlp()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer.base_optimizer if on_base else optimizer, 1, gamma=0.5)
    for _ in range(3):
        optimizer.step(closure_for(model, optimizer, *batch(6)))
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == optimizer.base_optimizer.param_groups[0]["lr"] == 0.125
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def test_gradient_scaling_gives_the_same_step():
    inputs, targets = batch(6)
    plain, scaled = mlp(), mlp()
    a, b = (SAM(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (plain, scaled))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        a.step(closure_for(plain, a, inputs, targets))
        b.zero_grad()
        scaler.scale(F.cross_entropy(scaled(inputs), targets)).backward()
        b.first_step(zero_grad=True)
        scaler.scale(F.cross_entropy(scaled(inputs), targets)).backward()
        b.restore()
        scaler.step(b.base_optimizer)
        scaler.update()
    assert torch.allclose(weights(plain), weights(scaled), atol=1e-6)


def test_overflow_under_gradient_scaling_skips_the_step():
    model = mlp()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = weights(model)
    inputs, targets = batch(6)
    for step in (lambda: optimizer.first_step(zero_grad=True), optimizer.restore):
        scaler.scale(F.cross_entropy(model(inputs), targets) * float("inf")).backward()
        step()
    scaler.step(optimizer.base_optimizer)
    scaler.update()
    assert torch.equal(weights(model), before)
    assert scaler.get_scale() == 512.0


def test_state_dict_is_the_base_optimizers_and_training_goes_on_identically():
    inputs, targets = batch(6)
    model = mlp()
    optimizer = SAM(torch.optim.AdamW(model.parameters(), lr=0.01), rho=0.2)
    optimizer.step(closure_for(model, optimizer, inputs, targets))
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = mlp()
    resumed.load_state_dict(saved["model"])
    again = SAM(torch.optim.AdamW(resumed.parameters(), lr=0.5), rho=0.7)
    again.load_state_dict(saved["optimizer"])
    assert again.param_groups[0]["rho"] == 0.2
    for m, o in ((model, optimizer), (resumed, again)):
        o.step(closure_for(m, o, inputs, targets))
    assert torch.equal(weights(model), weights(resumed))


def test_a_checkpoint_of_the_base_optimizer_keeps_the_radii():
    model = mlp()
    saved = torch.optim.SGD(model.parameters(), lr=0.25).state_dict()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.2)
    optimizer.load_state_dict(saved)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["rho"]) == (0.25, 0.2)


@pytest.mark.parametrize("with_model", [True, False])
def test_deepcopy_and_pickle_give_independent_optimizers(with_model):
    inputs, targets = batch(6)
    model = mlp()
    optimizer = SAM(torch.optim.AdamW(model.parameters(), lr=0.01), 0.2, model=model if with_model else None)
    optimizer.step(closure_for(model, optimizer, inputs, targets))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    buffer = io.BytesIO()
    torch.save((model, optimizer), buffer)
    buffer.seek(0)
    third, third_optimizer = torch.load(buffer, weights_only=False)
    before = weights(twin)
    optimizer.step(closure_for(model, optimizer, inputs, targets))
    assert torch.equal(weights(twin), before)
    for m, o in ((twin, twin_optimizer), (third, third_optimizer)):
        o.step(closure_for(m, o, inputs, targets))
        assert torch.equal(weights(m), weights(model))


def test_groups_can_be_added_later():
    model = mlp()
    optimizer = SAM(torch.optim.SGD(model[0].parameters(), lr=0.1), rho=0.2)
    optimizer.add_param_group({"params": list(model[2].parameters()), "rho": 0.4})
    assert [g["rho"] for g in optimizer.base_optimizer.param_groups] == [0.2, 0.4]


def test_an_own_option_called_rho_is_left_alone():
    model = mlp()
    optimizer = SAM(torch.optim.Adadelta(model.parameters(), rho=0.8), rho=0.2)
    assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["sam_rho"]) == (0.8, 0.2)
    optimizer.step(closure_for(model, optimizer, *batch(6)))


def test_maximising_perturbs_downwards():
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = SAM(torch.optim.SGD([w], lr=0.1, maximize=True), rho=0.5)
    w.square().sum().backward()
    optimizer.first_step()
    assert w.item() == 0.5
    optimizer.restore()


def test_parameters_without_a_gradient_stay():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SAM(torch.optim.SGD([used, unused], lr=0.1))
    used.sum().backward()
    optimizer.first_step(zero_grad=True)
    used.sum().backward()
    optimizer.second_step()
    assert torch.equal(unused, torch.ones(2))
    assert torch.allclose(used, torch.full((2,), 0.9))


def test_step_hooks_run():
    model = mlp()
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step(closure_for(model, optimizer, *batch(6)))
    assert calls == ["before", "after"]


def test_mixed_precision_parameters_are_perturbed_together():
    half, double = nn.Parameter(torch.ones(4, dtype=torch.bfloat16)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = SAM(torch.optim.SGD([half, double], lr=0.1), rho=1.0)
    (half.sum() + double.sum()).backward()
    optimizer.first_step()
    assert double[0].item() == pytest.approx(1 + 6**-0.5)
    assert half[0].item() == pytest.approx(1 + 6**-0.5, abs=0.01)
    optimizer.restore()


def test_sparse_gradients_are_refused_before_anything_moves():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = SAM(torch.optim.SGD(embedding.parameters(), lr=0.1))
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.first_step()
    assert torch.equal(embedding.weight, before)


def test_misuse_is_refused():
    model = mlp()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SAM(base)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="first_step comes before"):
        optimizer.second_step()
    F.cross_entropy(model(batch(6)[0]), batch(6)[1]).backward()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="twice"):
        optimizer.first_step()
    with pytest.raises(RuntimeError, match="perturbed"):
        copy.deepcopy(optimizer)
    optimizer.restore()
    for rho in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rho"):
            SAM(base, rho)
        with pytest.raises(ValueError, match="rho"):
            sam(rho)
    for wrong in (optimizer, torch.optim.SGD):
        with pytest.raises(TypeError, match="SAM wraps"):
            SAM(wrong)


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused():
    with pytest.raises(TypeError, match="SAM cannot wrap LBFGS, whose step evaluates the loss by itself"):
        SAM(torch.optim.LBFGS(mlp().parameters()))
    SAM(torch.optim.AdamW(mlp().parameters()))


def test_the_method_trains_and_says_where_it_cannot():
    inputs, targets = batch(6)
    sgd = functools.partial(torch.optim.SGD, lr=0.5)
    fitted = heldout.fit(mlp(), (inputs, targets), sam(rho=0.05), epochs=30, batch_size=8, optimizer=sgd)
    assert fitted.evaluate((inputs, targets))["loss"] < 0.8
    frozen = mlp().requires_grad_(False)
    splits = heldout.Splits(train=(inputs, targets))
    assert "no parameter" in sam().check(frozen, splits)
    assert "sparse" in sam().check(nn.Embedding(3, 2, sparse=True), splits)
    assert sam().check(mlp(), splits) is None


@pytest.mark.parametrize("given", [True, False])
def test_a_sam_that_is_dropped_between_its_steps_leaves_running_statistics_running(given):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model if given else None)
    model(torch.randn(8, 3)).sum().backward()
    sam.first_step()
    other = nn.BatchNorm1d(3)
    if not given:
        other(torch.randn(8, 3))
        assert int(other.num_batches_tracked) == 0
    del sam
    for norm, width in ((model[1], 4), (other, 3)):
        before = int(norm.num_batches_tracked)
        norm(torch.randn(8, width))
        assert int(norm.num_batches_tracked) == before + 1
