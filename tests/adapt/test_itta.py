import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import heldout
from heldout.adapt import ITTA, ITTAState, Mix, itta
from heldout.losses import LearnedConsistency, gradient_distance
from heldout.nn import mix_style, mlp, small_cnn, tiny_vit


def images(n, seed=0, channels=3, size=8):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def network(widths=(4, 6, 8), batch_norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_cnn(3, 5, widths, batch_norm=batch_norm).eval()


def state(model=None, depth=10):
    return ITTAState.of(network() if model is None else model, images(2), depth=depth)


def task(n=60, seed=0):
    y = torch.arange(n) % 5
    x = images(n, seed)
    x[torch.arange(n), :, y] += 1.0
    return x.clamp(0, 1), y


def test_fresh_layers_leave_the_network_as_it_is_to_the_bit():
    s, x = state(), images(16)
    with torch.no_grad():
        for size in ("full", "channel"):
            layers = ITTA(s, size=size).layers
            assert torch.equal(s.model.run(x, dict(enumerate(layers)))[1], s.model(x))


def test_two_views_are_the_network_and_the_network_on_mixed_styles():
    s, x = state(), images(6)
    partner, weight = torch.tensor([1, 0, 3, 2, 5, 4]), torch.rand(6)
    for stage in (0, 1):
        z, logits, other_z, other = s.views(x, Mix(stage, partner, weight))
        torch.testing.assert_close(logits, s.model(x))
        edit = {stage: lambda out: mix_style(out, partner, weight)}
        features, mixed, _ = s.model.run(x, edit)
        torch.testing.assert_close(other, mixed)
        torch.testing.assert_close(other_z, features)
        torch.testing.assert_close(s.model.head(z), logits)


def test_the_identity_permutation_gives_the_same_view_twice():
    s, x = state(), images(4)
    z, _, other_z, _ = s.views(x, Mix(0, torch.arange(4), torch.rand(4)))
    assert s.consistency(other_z - z) == 0


def test_a_test_step_changes_the_layers_only_and_predicts_after_it():
    s, x = state(), images(16)
    before = copy.deepcopy((s.model.state_dict(), s.consistency.state_dict()))
    adapter = ITTA(s, lr=0.05)
    out = adapter(x)
    for old, part in zip(before, (s.model, s.consistency), strict=True):
        assert all(torch.equal(value, old[name]) for name, value in part.state_dict().items())
        assert all(p.grad is None for p in part.parameters())
    assert adapter.last_change["parameter_change"] > 0
    with torch.no_grad():
        now = s.model.run(x, dict(enumerate(adapter.layers)))[1]
    torch.testing.assert_close(out, now.log_softmax(1))
    assert torch.equal(adapter.last_change["changed"], out.argmax(1) != s.model(x).argmax(1))


def test_the_first_step_follows_the_gradient_of_the_consistency():
    s, x = state(), images(16)
    adapter = ITTA(s, lr=1e-3, seed=4)
    reference = ITTA(s)
    mix = s.draw(16, torch.Generator().manual_seed(4))
    for layer in reference.layers:
        layer.examples = 16
    z, _, other_z, _ = s.views(x, mix, reference.layers)
    loss = s.consistency(other_z - z)
    gradients = torch.autograd.grad(loss, list(reference.layers.parameters()))
    adapter(x)
    assert adapter.last_change["consistency"] == pytest.approx(loss.item())
    pairs = zip(adapter.layers.parameters(), reference.layers.parameters(), gradients, strict=True)
    for new, old, gradient in pairs:
        large = gradient.abs() > 1e-6
        torch.testing.assert_close((new - old)[large], -1e-3 * gradient[large].sign(), atol=2e-5, rtol=2e-2)


def test_repeated_steps_lower_the_consistency_of_a_batch():
    s, x = state(), images(32)
    adapter = ITTA(s, lr=0.02)
    losses = []
    for _ in range(30):
        adapter(x)
        losses.append(adapter.last_change["consistency"])
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_reset_by_batch_gives_the_same_answer_whatever_came_before():
    adapter, x, y = ITTA(state(), lr=0.05, reset="batch"), images(8), images(8, seed=1)
    first = adapter(x)
    adapter(y)
    assert torch.equal(adapter(x), first)


def test_a_single_example_is_refused_or_predicted_without_adapting():
    s = state()
    with pytest.raises(ValueError, match="at least 2 examples in a batch, got 1"):
        ITTA(s)(images(1))
    adapter = ITTA(s, single="predict", lr=0.1)
    torch.testing.assert_close(adapter(images(1)), s.model(images(1)).log_softmax(1).detach())
    assert adapter.last_change["parameter_change"] == 0
    assert not adapter.last_change["changed"].any()


def test_negative_stage_outputs_need_a_chain_without_relu():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten())
        net.append(nn.Linear(16, 5))
    s = ITTAState.of(net, images(2), ["0", "2"])
    with pytest.raises(ValueError, match="stage '0' gives negative values"):
        ITTA(s, depth=5)(images(8))
    adapter = ITTA(s)
    assert [len(layer.weight) for layer in adapter.layers] == [1, 1]
    torch.testing.assert_close(s.model.run(images(8), dict(enumerate(adapter.layers)))[1], net(images(8)))


def test_full_layers_are_for_one_resolution_and_channel_layers_for_all():
    s = state()
    with pytest.raises(ValueError, match='use size="channel"'):
        ITTA(s)(images(8, size=12))
    assert ITTA(s, size="channel")(images(8, size=12)).shape == (8, 5)


def test_adapting_the_backbone_works_on_a_copy():
    s, x = state(), images(16)
    before = copy.deepcopy(s.model.state_dict())
    adapter = ITTA(s, parameters="backbone", lr=0.01)
    adapter(x)
    assert adapter.last_change["parameter_change"] > 0
    assert all(torch.equal(v, before[k]) for k, v in s.model.state_dict().items())
    assert torch.equal(adapter.state.model.head.weight, s.model.head.weight)


def test_a_frozen_backbone_is_refused_by_name_and_layers_adapt_to_it():
    s = state(network().requires_grad_(False))
    with pytest.raises(ValueError, match=r'parameters="backbone" has nothing to adapt.*parameters="layers"'):
        ITTA(s, parameters="backbone")
    s.model.head.requires_grad_(True)  # the head is no part of the backbone
    with pytest.raises(ValueError, match='parameters="backbone"'):
        ITTA(s, parameters="backbone")
    adapter = ITTA(s, lr=0.01)
    adapter(images(16))
    assert adapter.last_change["parameter_change"] > 0
    next(s.model.module.parameters()).requires_grad_(True)
    partly = ITTA(s, parameters="backbone", lr=0.01)
    partly(images(16))
    assert partly.last_change["parameter_change"] > 0


class Alone(nn.Module):
    """Reads the batch size at its inputs and holds on to it."""

    def __init__(self):
        super().__init__()
        self.body = small_cnn(3, 5, (4, 6), batch_norm=False)[:-2]
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.body(x).reshape(len(x), -1)[:, :6])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ITTA(state(), steps=0), "steps >= 1"),
        (lambda: ITTA(state(), lr=0.0), "lr > 0"),
        (lambda: ITTA(state(), size="pixel"), "size must be"),
        (lambda: ITTA(state(), reset="always"), "reset must be"),
        (lambda: ITTAState(state().model, LearnedConsistency(8), mix_after=(7,)), r"stages 0\.\.2, got 7"),
        (lambda: ITTAState.of(mlp(192, 5, (4, 4)), images(2), ["2", "4"]), "has no positions"),
        (lambda: itta(align_every=0), "align_every"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_training_step_has_the_gradients_of_both_losses_and_updates_the_weighting_by_alignment():
    model, (x, y) = network(), task(20)
    fitted = heldout.fit(
        model, (x, y), itta(consistency_lr=1e-2), epochs=1, batch_size=20, optimizer=lambda m: Plain(m.parameters())
    )
    generator = torch.Generator().manual_seed(0)
    reference = ITTAState.of(copy.deepcopy(model).train(), x[:2])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    mix = reference.draw(20, generator)
    z, logits, other_z, other = reference.views(x[order], mix)
    main = F.cross_entropy(logits, y[order]) + F.cross_entropy(other, y[order])
    consistency = reference.consistency(other_z - z)
    parameters = list(reference.model.module.parameters())
    total = torch.autograd.grad(main + consistency, parameters, retain_graph=True)
    for new, old, gradient in zip(fitted.module.parameters(), parameters, total, strict=True):
        torch.testing.assert_close(new, old - 0.1 * gradient, atol=1e-5, rtol=1e-3)
    backbone = reference.model.backbone_parameters()
    pull = torch.autograd.grad(consistency, backbone, create_graph=True)
    goal = torch.autograd.grad(main, backbone, retain_graph=True)
    weighting = list(reference.consistency.parameters())
    gradients = torch.autograd.grad(0.1 * gradient_distance(pull, goal), weighting)
    learned = list(fitted.predictor.state.consistency.parameters())
    for new, old, gradient in zip(learned, weighting, gradients, strict=True):
        large = gradient.abs() > 1e-5
        torch.testing.assert_close((new - old)[large], -1e-2 * gradient[large].sign(), atol=1e-4, rtol=1e-2)
    assert any(gradient.abs().max() > 1e-5 for gradient in gradients)


class Plain(torch.optim.SGD):
    """Gradient descent at rate 0.1, whatever the schedule says."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)


@pytest.mark.parametrize(
    "model",
    [
        network((4, 6), batch_norm=True),
        tiny_vit(8, 4, dim=8, depth=2, heads=2, num_classes=5),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 6, 5, stride=4), nn.ReLU(), nn.MaxPool1d(4), nn.Conv1d(6, 6, 1))
        .append(nn.ReLU())
        .append(nn.Flatten())
        .append(nn.Linear(18, 5)),
    ],
    ids=["conv", "vit", "1-d"],
)
def test_method_trains_and_adapts_networks_of_several_kinds(model):
    data = heldout.Splits(train=task(), test={"iid": task(33, seed=1)})
    fitted = heldout.fit(model, data, itta(lr=1e-3), epochs=3, batch_size=16, seed=0)
    before = fitted.predictor.state.consistency.state_dict()["weighting.weight.0"]
    assert not torch.equal(before, torch.ones_like(before))
    outputs, _ = fitted.outputs(data.test["iid"])
    assert outputs.shape == (33, 5)
    assert torch.equal(fitted.outputs(data.test["iid"])[0], outputs)
    assert "train_error" in fitted.history[-1]
    again = heldout.fit(model, data, itta(lr=1e-3), epochs=3, batch_size=16, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(fitted.module.parameters(), again.module.parameters(), strict=True))


def test_a_step_between_alignments_leaves_the_weighting_alone():
    fitted = heldout.fit(network(), task(80), itta(), epochs=1, batch_size=20)
    weight = fitted.predictor.state.consistency.weighting.weight[1]
    # one step of Adam, at a tenth of the model's rate
    assert (weight.detach() - 1).abs().max().item() == pytest.approx(1e-4, rel=0.05)


def test_method_combines_with_sam():
    from heldout.optim import sam

    fitted = heldout.fit(network(), task(40), itta() + sam(rho=0.05), epochs=1, batch_size=20)
    assert fitted.predictor.state.model.module is fitted.module


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mlp(192, 5), "name the submodules to split at"),
        (Alone(), "two views share a pass as one larger batch"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), "class"),
    ],
)
def test_method_says_where_it_cannot_act(model, message):
    with pytest.raises(ValueError, match=message):
        heldout.fit(model, task(20), itta(), epochs=1)


def test_training_takes_what_the_second_view_adds_and_not_what_it_takes_away(monkeypatch):
    """The weighting is ReLU when new: of ``second - first`` it sees the other half than of ``first - second``."""
    seen = []
    forward = LearnedConsistency.forward
    monkeypatch.setattr(
        LearnedConsistency, "forward", lambda self, d: seen.append(d.detach().clone()) or forward(self, d)
    )
    views = ITTAState.views
    drawn = []

    def spied(self, inputs, mix, layers=None):
        out = views(self, inputs, mix, layers)
        drawn.append((out[0].detach(), out[2].detach()))
        return out

    monkeypatch.setattr(ITTAState, "views", spied)
    for every in (None, 1):
        seen.clear(), drawn.clear()
        heldout.fit(network(), task(20), itta(align_every=every), epochs=1, batch_size=20)
        (first, second), difference = drawn[-1], seen[-1]
        assert (second - first).abs().max() > 1e-4
        torch.testing.assert_close(difference, second - first)
