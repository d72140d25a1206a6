import copy

import pytest
import torch
from torch import nn

import heldout
from heldout import adapt
from heldout.adapt import Tent, tent


def classifier(norm="batch"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = {"batch": nn.BatchNorm1d(16), "layer": nn.LayerNorm(16), "none": nn.Identity()}[norm]
        model = nn.Sequential(nn.Linear(4, 16), middle, nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        if norm == "batch":
            model(torch.randn(64, 4))
    return model.eval()


def stream(n=6, size=16, seed=0):
    return list(torch.randn(n * size, 4, generator=torch.Generator().manual_seed(seed)).split(size))


def mean_entropy(log_probabilities):
    return -(log_probabilities.exp() * log_probabilities).sum(1).mean().item()


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_entropy_falls_on_a_repeated_batch_and_reset_restores_it_exactly(norm):
    adapter, (x,) = Tent(classifier(norm), lr=1e-2), stream(1)
    first = adapter(x)
    for _ in range(20):
        last = adapter(x)
    assert mean_entropy(last) < mean_entropy(first)
    assert adapter.last_change["entropy"] == pytest.approx(mean_entropy(last), rel=1e-4)
    adapter.reset()
    assert torch.equal(adapter(x), first)


def test_first_step_follows_the_gradient_of_the_mean_entropy():
    model, (x,) = classifier("layer"), stream(1)
    adapter = Tent(model, lr=1e-3)
    reference = copy.deepcopy(model)
    log_probabilities = reference(x).log_softmax(1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(1).mean()
    gradient = torch.autograd.grad(entropy, reference[1].weight)[0]
    torch.testing.assert_close(adapter(x), log_probabilities.detach())
    moved = adapter.module[1].weight.detach() - model[1].weight.detach()
    large = gradient.abs() > 1e-5
    torch.testing.assert_close(moved[large], -1e-3 * gradient[large].sign(), atol=2e-6, rtol=1e-3)


def test_batch_norm_uses_the_statistics_of_the_batch_and_dropout_stays_off():
    model, (x,) = classifier(), stream(1)
    reference = copy.deepcopy(model)
    reference[1].train()
    torch.testing.assert_close(Tent(model)(x), reference(x).log_softmax(1).detach())


def test_a_single_example_uses_the_running_statistics():
    model, (x,) = classifier(), stream(1)
    torch.testing.assert_close(Tent(model)(x[:1]), model(x[:1]).log_softmax(1).detach())


def test_the_given_model_never_changes():
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    adapter = Tent(model, lr=0.1, steps=2)
    for x in stream():
        adapter.probabilities(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_only_scale_and_shift_of_norm_layers_change():
    model = classifier()
    adapter = Tent(model, lr=0.1)
    for x in stream():
        adapter(x)
    changed = {
        name for name, value in adapter.module.state_dict().items() if not torch.equal(value, model.state_dict()[name])
    }
    assert changed == {"1.weight", "1.bias"}


def test_state_dict_continues_the_stream_exactly():
    adapter, batches = Tent(classifier(), lr=1e-2), stream()
    for x in batches[:3]:
        adapter(x)
    other = Tent(classifier(), lr=1e-2)
    other.load_state_dict(adapter.state_dict())
    for x in batches[3:]:
        assert torch.equal(adapter(x), other(x))


def test_adapters_meet_the_protocol():
    assert isinstance(Tent(classifier()), adapt.TestTimeAdapter)


def test_a_model_without_norm_layers_is_refused():
    with pytest.raises(ValueError, match="the model has none"):
        Tent(classifier("none"))
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    with pytest.raises(ValueError, match="tent cannot act here: the model has no normalisation layer"):
        heldout.fit(classifier("none"), (x, y), tent(), epochs=1)


def test_method_adapts_in_its_own_batches_and_starts_afresh_on_each_evaluation():
    x, y = torch.cat(stream(4)), torch.arange(64) % 3
    fitted = heldout.fit(classifier(), (x, y), tent(lr=1e-2, batch_size=8), epochs=1, seed=0)
    whole, _ = fitted.outputs((x, y), batch_size=64)
    pieces, _ = fitted.outputs((x, y), batch_size=16)
    torch.testing.assert_close(whole, pieces)
    torch.testing.assert_close(whole.exp().sum(1), torch.ones(64))
    fitted.predictor.reset()
    torch.testing.assert_close(fitted.predictor.probabilities(x), whole.exp())
    fitted.predictor.reset()
    torch.testing.assert_close(fitted.predict(x[:8]), whole[:8])
