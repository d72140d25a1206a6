import pytest
import torch
import torch.nn.functional as F
from torch import nn

import heldout
from heldout import adapt
from heldout.adapt import T3A, PseudoLabel, t3a


def head():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(5, 3)


def stream(n=5, size=12, seed=0):
    return list(torch.randn(n * size, 5, generator=torch.Generator().manual_seed(seed)).split(size))


def naive_t3a(layer, batches, filter_k):
    """Keeps every support, and sorts all of them by entropy anew at each batch."""
    supports = [(w, c, layer(w)) for c, w in enumerate(layer.weight.detach())]
    outputs = []
    for z in batches:
        supports += [(v, int(layer(v).argmax()), layer(v)) for v in z]
        templates = []
        for c in range(3):
            own = [
                (float(-(logits.softmax(0) * logits.log_softmax(0)).sum()), i)
                for i, (_, label, logits) in enumerate(supports)
                if label == c
            ]
            kept = [supports[i][0] for _, i in sorted(own)[:filter_k]]
            templates.append(F.normalize(torch.stack([F.normalize(v, dim=0) for v in kept]).sum(0), dim=0))
        outputs.append((z @ torch.stack(templates).T).log_softmax(1))
    return torch.cat(outputs)


@pytest.mark.parametrize("filter_k", [1, 4, None])
@torch.no_grad()
def test_predictions_equal_a_naive_reference_over_a_stream(filter_k):
    adapter = T3A(nn.Identity(), head(), filter_k=filter_k)
    ours = torch.cat([adapter(z) for z in stream()])
    torch.testing.assert_close(ours, naive_t3a(head(), stream(), filter_k))


@pytest.mark.parametrize("make", [T3A, PseudoLabel], ids=["t3a", "pseudo-label"])
def test_reset_and_state_dict_are_exact_and_the_head_stays(make):
    layer = head()
    weight = layer.weight.detach().clone()
    options = {"threshold": 0.3, "lr": 0.1} if make is PseudoLabel else {"filter_k": 3}
    adapter = make(nn.Identity(), layer, **options)
    assert isinstance(adapter, adapt.TestTimeAdapter)
    first = [adapter(z) for z in stream()]
    middle = make(nn.Identity(), layer, **options)
    middle.load_state_dict(adapter.state_dict())
    z = stream(seed=1)[0]
    assert torch.equal(middle(z), adapter(z))
    adapter.reset()
    assert all(torch.equal(a, adapter(z)) for a, z in zip(first, stream()))
    assert torch.equal(layer.weight, weight)
    torch.testing.assert_close(adapter.probabilities(z).sum(1), torch.ones(12))


def test_pseudo_label_takes_a_step_on_confident_examples_only():
    adapter, z = PseudoLabel(nn.Identity(), head(), threshold=2.0), stream()[0]
    assert torch.equal(adapter(z), adapter(z))
    assert not adapter.last_change["confident"].any()
    adapter = PseudoLabel(nn.Identity(), head(), threshold=0.5, lr=0.1)
    first = adapter(z)
    confident = adapter.last_change["confident"]
    assert torch.equal(confident, first.exp().amax(1) >= 0.5)
    assert adapter(z)[confident].amax(1).mean() > first[confident].amax(1).mean()


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="filter_k"):
        T3A(nn.Identity(), head(), filter_k=0)
    with pytest.raises(ValueError, match="steps"):
        PseudoLabel(nn.Identity(), head(), steps=0)


def test_method_works_with_dict_inputs_of_a_transformers_model():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, num_labels=3, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    generator = torch.Generator().manual_seed(0)
    data = [
        {"input_ids": torch.randint(0, 20, (6,), generator=generator), "labels": torch.tensor(i % 3)} for i in range(24)
    ]
    fitted = heldout.fit(
        lambda: transformers.BertForSequenceClassification(config), data, t3a(filter_k=2, batch_size=5), epochs=1
    )
    outputs, _ = fitted.outputs(data)
    torch.testing.assert_close(outputs.exp().sum(1), torch.ones(24))
