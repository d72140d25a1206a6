import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import heldout
from heldout.nn import mlp
from heldout.train import seeded
from heldout.weights import (
    apply_mask,
    grokking_tickets,
    make_mask,
    match_norm,
    prune_scores,
    rewind_ticket,
    state_norm,
)

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3
BATCHES = [(X[:20], Y[:20]), (X[20:], Y[20:])]
DATA_METHODS = ["snip", "grasp", "synflow"]
ALL_METHODS = ["magnitude", "random", *DATA_METHODS]


def model(seed=0):
    with seeded(seed):
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3))


def scores_of(module, method):
    return prune_scores(module, method, loss_fn=F.cross_entropy, batches=BATCHES)


def train(module, steps=100, **options):
    optimizer = torch.optim.SGD(module.parameters(), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1} | options)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(X), Y).backward()
        optimizer.step()
    return module


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens))


@pytest.mark.parametrize("method", ALL_METHODS)
def test_scores_cover_the_weights_and_leave_the_model_as_it_is(method):
    module = model()
    state = copy.deepcopy(module.state_dict())
    scores = scores_of(module, method)
    assert {name: score.shape for name, score in scores.items()} == {"0.weight": (8, 4), "3.weight": (3, 8)}
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert module.training
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_snip_is_the_weight_times_its_gradient():
    module = model()
    scores = scores_of(module, "snip")
    module.eval()
    F.cross_entropy(module(X), Y).backward()
    for name, score in scores.items():
        weight = module.get_parameter(name)
        torch.testing.assert_close(score, (weight * weight.grad).abs().detach())


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient():
    x, y = X[:, :2].double(), torch.randn(30, 1, dtype=torch.float64)
    with seeded(0):
        network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Tanh(), nn.Linear(1, 3, bias=False)).double()
    y = torch.nn.functional.one_hot(Y, 3).double()
    flat = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert len(flat) == 5

    def loss(w):
        return F.mse_loss((x @ w[:2].view(1, 2).T).tanh() @ w[2:].view(3, 1).T, y)

    expected = flat * (torch.autograd.functional.hessian(loss, flat) @ torch.func.grad(loss)(flat))
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]
    scores = prune_scores(network, "grasp", loss_fn=F.mse_loss, batches=batches)
    torch.testing.assert_close(torch.cat([score.flatten() for score in scores.values()]), expected)


def test_synflow_is_conserved_from_layer_to_layer():
    chain = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((4, 7), (7, 5), (5, 3))))
    sums = [score.sum() for score in prune_scores(chain, "synflow", batches=[(X, Y)]).values()]
    torch.testing.assert_close(sums, [sums[0]] * 3)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_tied_weights_are_scored_and_masked_once_in_all_their_places(method):
    tied, tokens = Tied(), torch.arange(5)
    scores = prune_scores(tied, method, loss_fn=F.cross_entropy, batches=[(tokens, tokens)])
    assert list(scores) == ["embed.weight"]
    handle = apply_mask(tied, make_mask(scores, 0.5))
    assert handle.density == 0.5
    assert torch.equal(tied.embed.weight, tied.head.weight)
    assert int((tied.head.weight == 0).sum()) == 10
    assert len(list(tied.parameters())) == 1
    handle.remove()
    assert tied.embed.weight is tied.head.weight
    assert int((tied.embed.weight == 0).sum()) == 10


@given(st.integers(1, 300), st.integers(1, 100))
def test_the_share_that_is_kept(n, percent):
    scores = {"w": torch.randperm(n, generator=torch.Generator().manual_seed(n)).double()}
    assert int(make_mask(scores, percent / 100)["w"].sum()) == n - (100 - percent) * n // 100


def test_global_and_local_masks_differ_and_ties_go():
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    assert [m.tolist() for m in make_mask(scores, 0.5).values()] == [[False, False], [True, True]]
    assert [m.tolist() for m in make_mask(scores, 0.5, "local").values()] == [[False, True], [False, True]]
    assert make_mask({"w": torch.tensor([1.0, 1.0, 1.0, 2.0])}, 0.5)["w"].tolist() == [False, False, False, True]


def test_pruned_weights_are_zero_through_training_with_momentum_and_weight_decay():
    module = model()
    mask = make_mask(prune_scores(module), 0.4)
    handle = apply_mask(module, mask)
    train(module)
    for name, kept in mask.items():
        weight = module.get_submodule(name.removesuffix(".weight")).weight
        assert bool((weight[~kept] == 0).all())
        assert bool((weight[kept] != 0).all())
    before = module.eval()(X)
    handle.remove()
    assert set(module.state_dict()) == set(model().state_dict())
    assert torch.equal(module(X), before)


def test_a_mask_can_be_taken_off_without_a_trace():
    module = model()
    state = copy.deepcopy(module.state_dict())
    apply_mask(module, make_mask(prune_scores(module), 0.3)).remove(bake=False)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_an_optimizer_made_before_the_mask_goes_on():
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    mask = make_mask(prune_scores(layer), 0.5)
    apply_mask(layer, mask)
    before = layer.weight.detach().clone()
    F.cross_entropy(layer(X), Y).backward()
    optimizer.step()
    assert torch.equal(layer.weight != before, mask["weight"])


def test_training_at_density_one_is_bit_identical_to_dense():
    dense, ticket = model(), model()
    apply_mask(ticket, make_mask(prune_scores(ticket), 1.0))
    assert torch.equal(train(dense)(X), train(ticket)(X))


def test_a_ticket_has_the_mask_of_the_trained_and_the_values_of_the_start():
    module = model()
    start = copy.deepcopy(module.state_dict())
    trained = copy.deepcopy(train(module).state_dict())
    mask = rewind_ticket(module, start, trained, density=0.5)
    everything = torch.cat([trained[name].abs().flatten() for name in mask])
    threshold = everything.sort().values[len(everything) // 2 - 1]
    for name, kept in mask.items():
        assert torch.equal(kept, trained[name].abs() > threshold)
        weight = module.get_submodule(name.removesuffix(".weight")).weight
        assert torch.equal(weight, start[name] * kept)
    assert torch.equal(module[0].bias, start["0.bias"])


@pytest.mark.parametrize("p", [1, 2])
def test_match_norm_reaches_the_norm_by_one_factor(p):
    state = model().state_dict()
    scaled = match_norm(state, 3.0, p)
    weights = torch.cat([scaled[name].flatten() for name in ("0.weight", "3.weight")]).double()
    assert torch.linalg.vector_norm(weights, p).item() == pytest.approx(3, rel=1e-6)
    assert state_norm(scaled, p) == pytest.approx(3, rel=1e-6)
    assert torch.equal(scaled["0.bias"], state["0.bias"])
    ratio = scaled["0.weight"] / state["0.weight"]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 3 / state_norm(state, p)))


def test_the_method_trains_a_ticket_and_gives_back_a_plain_module():
    module = mlp(4, 3, (16,))
    fitted = heldout.fit(module, (X, Y), grokking_tickets(density=0.25), epochs=3, seed=1)
    weights = torch.cat([fitted.module[i].weight.flatten() for i in (1, 3)])
    assert int((weights != 0).sum()) == 28
    assert set(fitted.module.state_dict()) == set(module.state_dict())
    again = heldout.fit(module, (X, Y), grokking_tickets(density=0.25), epochs=3, seed=1)
    assert torch.equal(fitted.module[1].weight, again.module[1].weight)


def test_the_method_at_density_one_is_plain_training():
    module = mlp(4, 3, (16,))
    plain = heldout.fit(module, (X, Y), epochs=3, seed=1).module
    ticket = heldout.fit(module, (X, Y), grokking_tickets(density=1.0), epochs=3, seed=1).module
    assert torch.equal(plain[1].weight, ticket[1].weight)


def test_transformers_models_are_pruned_with_their_tied_embeddings():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config)
    tokens = torch.randint(32, (2, 5))

    def loss_fn(logits, targets):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    scores = prune_scores(llama, "snip", loss_fn=loss_fn, batches=[({"input_ids": tokens}, tokens)])
    assert "lm_head.weight" not in scores
    mask = make_mask(scores, 0.5)
    handle = apply_mask(llama, mask)
    loss_fn(llama(tokens).logits, tokens).backward()
    assert torch.equal(llama.lm_head.weight == 0, ~mask["model.embed_tokens.weight"])
    handle.remove()
    assert llama.lm_head.weight is llama.model.embed_tokens.weight


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_density_must_be_a_share(density):
    for function in (lambda: make_mask({"w": torch.ones(3)}, density), lambda: grokking_tickets(density)):
        with pytest.raises(ValueError, match=r"density must|must lie in"):
            function()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({}, "at least one weight"),
        ({"nothing": torch.ones(2, dtype=torch.bool)}, "'nothing', which is no parameter of Sequential"),
        ({"0.weight": torch.ones(4, 8, dtype=torch.bool)}, r"mask of 0.weight is \(4, 8\), the weight \(8, 4\)"),
    ],
)
def test_masks_that_do_not_fit_are_named(mask, message):
    with pytest.raises(ValueError, match=message):
        apply_mask(model(), mask)


def test_what_is_missing_is_named():
    module = model()
    for method in DATA_METHODS:
        with pytest.raises(ValueError, match=f"{method} needs batches"):
            prune_scores(module, method)
    with pytest.raises(ValueError, match="and a loss_fn"):
        prune_scores(module, "snip", batches=BATCHES)
    with pytest.raises(ValueError, match="method must be"):
        prune_scores(module, "obd")
    with pytest.raises(ValueError, match="no weights to prune"):
        prune_scores(nn.LayerNorm(3))
    partial = {name: value for name, value in module.state_dict().items() if not name.startswith("0.")}
    with pytest.raises(ValueError, match=r"init_state lacks 2 entries of the model, such as '0.weight'"):
        rewind_ticket(module, partial, module.state_dict(), 0.5)
    with pytest.raises(ValueError, match="hold nan"):
        make_mask({"w": torch.tensor([1.0, float("nan")])}, 0.5)
    with pytest.raises(ValueError, match="no weight is left"):
        make_mask({"w": torch.ones(4)}, 0.5)
    with pytest.raises(ValueError, match="positive and finite"):
        match_norm(module.state_dict(), 0.0)
    apply_mask(module, make_mask(prune_scores(module), 0.5))
    with pytest.raises(ValueError, match="parametrized already"):
        prune_scores(module)
    assert "parametrized already" in grokking_tickets().check(module, None)
    assert "no trainable weights" in grokking_tickets().check(nn.LayerNorm(3), None)
