import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import heldout
from heldout.adapt import DRM, SteerConfig, combine_heads, domain_head_loss, drm
from heldout.nn import MultiHead, mlp


def model(shared=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MultiHead(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5)), 3, 2, in_dim=8, shared=shared)


def stream(n=4, size=16):
    return list(torch.randn(n * size, 4, generator=torch.Generator().manual_seed(1)).split(size))


def splits(n=240, domains=3, seed=0):
    """Two features that decide the label, one with a sign that depends on the domain, which a third one shows."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=generator)
    domain = torch.randint(0, domains, (n,), generator=generator)
    x = torch.randn(n, 4, generator=generator)
    x[:, 0] += (2 * y - 1) * (1 - 2 * (domain % 2)) * 3
    x[:, 2] = 4.0 * domain
    return heldout.Splits(train=(x, y), test={"iid": (x, y)}, domains=domain + 5)


def test_prediction_is_the_combination_of_the_domain_heads_in_eval_mode():
    m, (x,) = model(), stream(1)
    logits = copy.deepcopy(m).eval()(x)
    adapter = DRM(m, gamma=2.0)
    torch.testing.assert_close(adapter.probabilities(x), combine_heads(logits[:, :3], gamma=2.0).detach())
    with_shared = DRM(m, gamma=2.0, include_shared=True)
    torch.testing.assert_close(with_shared.probabilities(x), combine_heads(logits, gamma=2.0).detach())
    assert adapter.last_change["weights"].shape == (16, 3)
    assert m.training


def test_a_function_of_the_features_may_estimate_the_gaps():
    m, (x,) = model(), stream(1)
    adapter = DRM(m, estimate=lambda z: torch.ones(len(z), 3).cumsum(1), hard=True)
    torch.testing.assert_close(adapter.probabilities(x), m.eval()(x)[:, 0].softmax(1).detach())


@pytest.mark.parametrize("rule", ["own", "shared", "uniform", "combined"])
@pytest.mark.parametrize("encoder", [False, True])
def test_steering_changes_a_copy_and_predicts_before_its_step(rule, encoder):
    m, (x, other) = model(), stream(2)
    before = copy.deepcopy(m.state_dict())
    frozen, adapter = DRM(m), DRM(m, steer=SteerConfig(rule, confidence=0.5, lr=0.05, encoder=encoder))
    torch.testing.assert_close(adapter(x), frozen(x))
    assert adapter.last_change["parameter_change"] > 0
    assert adapter.last_change["steered"].any()
    assert not torch.allclose(adapter(other), frozen(other))
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    assert all(p.grad is None for p in m.parameters())


def test_the_first_step_follows_the_pseudo_labels_of_the_confident():
    m, (x,) = model(), stream(1)
    adapter = DRM(m, steer=SteerConfig("own", confidence=0.6, lr=1e-3))
    adapter(x)
    logits = m.eval()(x)
    confidence, label = logits.softmax(2).max(2)
    loss = sum(
        F.cross_entropy(logits[kept, h], label[kept, h]) for h in range(4) if (kept := confidence[:, h] >= 0.6).any()
    )
    gradients = torch.autograd.grad(loss, list(m.heads.parameters()))
    for new, old, gradient in zip(adapter.heads.parameters(), m.heads.parameters(), gradients, strict=True):
        large = gradient.abs() > 1e-5
        torch.testing.assert_close((new - old)[large], -1e-3 * gradient[large].sign(), atol=2e-6, rtol=1e-3)
    assert torch.equal(adapter.last_change["steered"], (confidence >= 0.6).any(1))


def test_a_confidence_above_one_leaves_the_parameters_untouched():
    adapter = DRM(model(), steer=SteerConfig(confidence=1.1, lr=1.0, steps=3))
    before = copy.deepcopy(adapter.heads.state_dict())
    for x in stream():
        adapter(x)
    assert all(torch.equal(v, before[k]) for k, v in adapter.heads.state_dict().items())
    assert not adapter.last_change["steered"].any()


def test_loss_of_a_domain_gives_no_gradient_to_the_heads_of_others():
    m, (x,) = model(), stream(1)
    domain_head_loss(m(x), torch.zeros(16, dtype=torch.long), torch.ones(16, dtype=torch.long)).backward()
    moved = [head.weight.grad is not None and bool(head.weight.grad.any()) for head in m.heads.heads]
    assert moved == [False, True, False, True]


def test_every_domain_counts_the_same_whatever_its_size():
    logits = torch.randn(6, 3, 4)
    y, domain = torch.arange(6) % 4, torch.tensor([0, 0, 0, 0, 0, 1])
    expected = sum(
        F.cross_entropy(logits[mine, i], y[mine]) + F.cross_entropy(logits[mine, 2], y[mine])
        for i in (0, 1)
        for mine in [domain == i]
    )
    torch.testing.assert_close(domain_head_loss(logits, y, domain), expected / 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: domain_head_loss(torch.zeros(2, 3, 2), torch.zeros(2).long(), torch.tensor([0, 2])), r"0\.\.1"),
        (lambda: domain_head_loss(torch.zeros(0, 3, 2), torch.zeros(0).long(), torch.zeros(0).long()), "empty batch"),
        (lambda: DRM(model(), gamma=-1.0), "hard=True"),
        (lambda: DRM(model(shared=False), steer=SteerConfig("shared")), "a shared head"),
        (lambda: SteerConfig("last"), "rule must be"),
        (lambda: SteerConfig(steps=0), "steps >= 1"),
        (lambda: drm(estimate="margin"), "estimate must be"),
        (lambda: drm(estimate="prototype", include_shared=True), "knows no gap of the shared head"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("estimate", ["entropy", "uniform", "discriminator", "prototype"])
def test_method_trains_a_head_for_each_domain(estimate):
    data = splits()
    method = drm(estimate=estimate, hard=True)
    recipe = {"epochs": 12, "batch_size": 16, "optimizer": functools.partial(torch.optim.Adam, lr=1e-2), "seed": 0}
    fitted = heldout.fit(lambda: mlp(4, 2, (16,)), data, method, **recipe)
    assert isinstance(fitted.module, MultiHead)
    assert fitted.module(data.train[:5][0]).shape == (5, 4, 2)
    assert fitted.history[-1]["train_error"] < 0.1
    accuracy = fitted.evaluate(data.test["iid"])["accuracy"]
    assert accuracy > (0.85 if estimate in ("discriminator", "prototype") else 0.3)
    own = fitted.run.state["drm-domains"]
    assert own.tolist() == (data.domains - 5).tolist()


def test_method_needs_domains_and_a_classification_layer():
    data = splits()
    with pytest.raises(ValueError, match="drm cannot act here: it needs the domain of each training example"):
        heldout.fit(mlp(4, 2), heldout.Splits(train=data.train), drm())
    with pytest.raises(ValueError, match="at least 2 training domains, got 1"):
        heldout.fit(mlp(4, 2), heldout.Splits(train=data.train, domains=torch.zeros(240)), drm())
    with pytest.raises(ValueError, match="cannot be replaced by heads"):
        heldout.fit(nn.Sequential(nn.Linear(4, 2), nn.Softplus()), data, drm())


def test_prototypes_are_the_means_of_their_domains_and_the_nearest_has_the_least_gap():
    from heldout.adapt import domain_means, prototype_gap

    generator = torch.Generator().manual_seed(0)
    x, domains = torch.randn(9, 4, generator=generator), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1])
    backbone = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model = MultiHead(backbone, num_heads=2, num_classes=2, in_dim=3)
    before = backbone[1].running_mean.clone()
    means = domain_means(model, torch.utils.data.TensorDataset(x, torch.zeros(9).long()), domains)
    assert torch.equal(backbone[1].running_mean, before)
    assert backbone.training
    z = backbone.eval()(x).detach()
    torch.testing.assert_close(means, torch.stack([z[:5].mean(0), z[5:].mean(0)]))
    for distance in ("euclidean", "cosine"):
        gap = prototype_gap(means, distance)(z)
        for i in range(9):
            for j in range(2):
                a, b = z[i].double(), means[j].double()
                naive = (a - b).square().sum().sqrt() if distance == "euclidean" else 1 - a @ b / a.norm() / b.norm()
                assert gap[i, j].item() == pytest.approx(naive.item(), abs=1e-5)
    weights = DRM(model, estimate=prototype_gap(means, "cosine"), hard=True)
    weights(x)
    similarity = F.cosine_similarity(z.unsqueeze(1), means.unsqueeze(0), dim=2)
    assert torch.equal(
        weights.last_change["weights"].argmax(1), similarity.argmax(1)
    )  # the most similar, not the least
    with pytest.raises(ValueError, match="distance must be"):
        prototype_gap(means, "dot")
    with pytest.raises(ValueError, match=r"means must be \(domains, dim\), got \(3,\)"):
        prototype_gap(means[0])


def test_domain_means_do_not_depend_on_the_order_of_a_data_set_larger_than_a_batch():
    from heldout.adapt import domain_means

    x, domains = torch.randn(700, 4, generator=torch.Generator().manual_seed(0)), torch.arange(700) // 300
    model = MultiHead(nn.Identity(), num_heads=3, num_classes=2, in_dim=4)
    means = domain_means(model, torch.utils.data.TensorDataset(x, domains), domains)
    torch.testing.assert_close(means, torch.stack([x[domains == d].mean(0) for d in range(3)]))
