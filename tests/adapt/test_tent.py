import copy

import pytest
import torch
from torch import nn

import heldout
from heldout import adapt
from heldout.adapt import Tent, tent
from heldout.adapt.tent import is_norm


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


@pytest.mark.parametrize("kind", ["llama", "t5", "bert", "mean-free"])
def test_norms_are_found_by_what_they_do(kind):
    import transformers as t

    width = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tokens = {"vocab_size": 32, "pad_token_id": 0, "eos_token_id": 1, "num_labels": 3}

    class MeanFree(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(16))

        def forward(self, x):
            return self.weight * (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)

    ids = torch.cat([torch.randint(2, 32, (4, 6)), torch.ones(4, 1, dtype=torch.long)], 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "llama":
            model, x, norms = t.LlamaForSequenceClassification(t.LlamaConfig(**width, **tokens)), ids, 3
        elif kind == "t5":
            sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
            config = t.T5Config(**sizes, **tokens, decoder_start_token_id=0)
            model, x, norms = t.T5ForSequenceClassification(config), ids, 7
        elif kind == "bert":
            model, x, norms = t.BertForSequenceClassification(t.BertConfig(**width, **tokens)), ids, 3
        else:
            layers = nn.Linear(4, 16), MeanFree(), nn.PReLU(16), nn.Linear(16, 3)
            model, x, norms = nn.Sequential(*layers), torch.randn(8, 4), 1
    assert sum(map(is_norm, model.modules())) == norms
    adapter = Tent(model.eval(), lr=1e-2)
    first = adapter(x)
    for _ in range(10):
        last = adapter(x)
    assert mean_entropy(last) < mean_entropy(first)


def test_inside_inference_mode_it_learns_as_outside():
    outside = Tent(classifier(), lr=1e-2)
    expected = [outside(x) for x in stream(3)]
    with torch.inference_mode():
        inside = Tent(classifier(), lr=1e-2)
        found = [inside(x) for x in stream(3)]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_single_logit_is_refused_with_the_remedy():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    with pytest.raises(ValueError, match=r"Tent needs .* 2 or more classes, got one of 1: .*\(0, z\)"):
        Tent(model)(torch.randn(6, 4))
