import functools
import itertools

import pytest
import torch
from torch import nn

import heldout
from heldout.losses import orthogonal, orthogonal_group_loss, overlap, pego
from heldout.method import Added
from heldout.nn import LoRAGroup, mlp, small_cnn, tiny_vit


def random_group(out=8, in_=8, rank=2, size=3, seed=0, slices=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    group = LoRAGroup(nn.Linear(in_, out).to(dtype), rank, size, slices, generator=generator)
    for b in group.lora_B:
        nn.init.normal_(b, generator=generator)
    return group


def dense(groups, preserve, diversify, norm, side, reduction):
    """Every product materialised, term by term."""
    size = {"l1": lambda m: m.abs(), "fro": lambda m: m.square()}[norm]
    terms, counts = [torch.zeros((), dtype=torch.float64) for _ in range(2)], [0, 0]
    for group in groups:
        for rows, _, _ in group.factors():
            w = group.frozen_weight[rows]
            products = [group.delta(i)[rows] for i in range(group.size)]
            if side == "column":
                w, products = w.T, [p.T for p in products]
            for i, p in enumerate(products):
                for term, other in [(0, w), *((1, q) for q in products[i + 1 :])]:
                    entries = size(other @ p.T)
                    terms[term] = terms[term] + entries.sum()
                    counts[term] += entries.numel()
    if reduction == "mean":
        terms = [t / max(c, 1) for t, c in zip(terms, counts, strict=True)]
    return preserve * terms[0] + diversify * terms[1]


@pytest.mark.parametrize("norm", ["l1", "fro"])
@pytest.mark.parametrize("side", ["row", "column"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weights", [(1, 1), (1, 0), (0, 1), (0.3, 2)])
def test_loss_and_gradients_are_those_of_the_dense_formula(norm, side, reduction, weights, monkeypatch):
    monkeypatch.setattr(orthogonal, "_ENTRIES_AT_ONCE", 24)  # blocks of 2 to 3 rows
    groups = [random_group(), random_group(12, 8, seed=1, slices=[slice(0, 5), slice(7, 12)])]
    options = {"norm": norm, "side": side, "reduction": reduction}
    loss = orthogonal_group_loss(groups, *map(float, weights), **options)
    expected = dense(groups, *weights, **options)
    torch.testing.assert_close(loss, expected)
    factors = [p for group in groups for p in group.parameters() if p.requires_grad]
    found = torch.autograd.grad(2 * loss, factors, allow_unused=True)
    for a, b in zip(found, torch.autograd.grad(2 * expected, factors), strict=True):
        torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b)


@pytest.mark.parametrize("norm", ["l1", "fro"])
def test_loss_and_gradient_are_zero_at_the_start(norm):
    group = LoRAGroup(nn.Linear(8, 8), 2, 3)
    loss = orthogonal_group_loss([group], norm=norm)
    assert loss.item() == 0
    loss.backward()
    assert group.lora_B[0].grad.count_nonzero() == 0
    assert group.lora_A[0].grad.count_nonzero() == 0


@pytest.mark.parametrize("side", ["row", "column"])
def test_products_in_disjoint_subspaces_cost_nothing(side):
    group = random_group(8, 8, rank=1, size=2)
    basis = torch.eye(8, dtype=torch.float64)
    with torch.no_grad():
        group.linear.weight.zero_()[:4, :4] = torch.randn(4, 4)
        group.lora_A[0].copy_(basis[[4, 5]] if side == "row" else torch.randn(2, 8))
        group.lora_B[0].copy_(torch.randn(8, 2) if side == "row" else basis[[4, 5]].T)
    other = {"row": "column", "column": "row"}[side]
    for norm in ("l1", "fro"):
        assert orthogonal_group_loss([group], side=side, norm=norm).item() == 0
        assert orthogonal_group_loss([group], side=other, norm=norm).item() > 0


def test_autocast_does_not_touch_the_loss():
    group = random_group(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = orthogonal_group_loss([group])
    assert torch.equal(inside, orthogonal_group_loss([group]))


@pytest.mark.parametrize("c", [-3.0, 0.5])
def test_the_terms_are_homogeneous_in_each_factor(c):
    group = random_group(size=2)
    one, two = orthogonal_group_loss([group], 1.0, 0.0), orthogonal_group_loss([group], 0.0, 1.0)
    squares = orthogonal_group_loss([group], 1.0, 0.0, norm="fro")
    with torch.no_grad():
        group.lora_B[0].mul_(c)
    torch.testing.assert_close(orthogonal_group_loss([group], 1.0, 0.0), abs(c) * one)
    torch.testing.assert_close(orthogonal_group_loss([group], 0.0, 1.0), c**2 * two)
    torch.testing.assert_close(orthogonal_group_loss([group], 1.0, 0.0, norm="fro"), c**2 * squares)


def test_a_group_of_one_has_no_diversify_term():
    group = random_group(size=1)
    assert orthogonal_group_loss([group], 0.0, 1.0).item() == 0
    assert orthogonal_group_loss([group], 0.0, 1.0, norm="fro").item() == 0


def test_overlap_is_the_mean_absolute_entry_of_w_times_the_whole_change():
    group = random_group(10, 6)
    whole = sum(group.delta(i) for i in range(3))
    assert overlap([group]) == pytest.approx((group.frozen_weight @ whole.T).abs().mean().item())
    assert overlap([group], "column") == pytest.approx((group.frozen_weight.T @ whole).abs().mean().item())


@pytest.mark.parametrize("side", ["row", "column"])
def test_without_another_objective_the_overlap_falls_monotonically(side):
    group = random_group(16, 16, dtype=torch.float32)
    optimizer = torch.optim.SGD([p for p in group.parameters() if p.requires_grad], lr=1e-3)
    seen = [overlap([group], side)]
    for _ in range(5):
        for _ in range(5):
            optimizer.zero_grad()
            orthogonal_group_loss([group], diversify=0.0, side=side).backward()
            optimizer.step()
        seen.append(overlap([group], side))
    assert all(later < earlier for earlier, later in itertools.pairwise(seen))
    assert seen[-1] < 0.5 * seen[0]


def test_bad_calls_are_refused():
    group = random_group()
    with pytest.raises(ValueError, match="at least 1 LoRA group"):
        orthogonal_group_loss([])
    for option in ("norm", "side", "reduction"):
        with pytest.raises(ValueError, match=f"{option} must be one of .* got 'l2'"):
            orthogonal_group_loss([group], **{option: "l2"})
        with pytest.raises(ValueError, match=f"{option} must be one of"):
            pego(**{option: "l2"})
    group.merge_()
    with pytest.raises(ValueError, match="is merged"):
        orthogonal_group_loss([group])
    with pytest.raises(ValueError, match="pego needs lam >= 0"):
        pego(lam=-1.0)


def images(n=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 8, 8, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0.5).long()


def pretrained(model):
    return heldout.Splits(train=images(), initial_state={k: v.clone() for k, v in model.state_dict().items()})


def small_vit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny_vit(8, 4, 16, 2, 2, num_classes=2, channels=1)


ADAM = functools.partial(torch.optim.Adam, lr=5e-3)


def test_the_method_returns_a_plain_model_that_changed_only_where_it_may():
    model = small_vit()
    model.positions.requires_grad_(False)
    fitted = heldout.fit(model, pretrained(model), pego(rank=2, size=2), epochs=2, optimizer=ADAM)
    assert list(fitted.module.state_dict()) == list(model.state_dict())
    assert {n: p.requires_grad for n, p in fitted.module.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    before, after = model.state_dict(), fitted.module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias", "blocks.0.qkv.weight", "blocks.1.qkv.weight"}
    assert torch.equal(before["blocks.0.qkv.weight"][16:32], after["blocks.0.qkv.weight"][16:32])


def test_the_penalty_lowers_the_overlap_of_what_is_learnt():
    model = small_vit()

    def change(lam):
        fitted = heldout.fit(model, pretrained(model), pego(lam, 2, 2), epochs=20, optimizer=ADAM)
        w, new = (m.state_dict()["blocks.0.qkv.weight"][32:] for m in (model, fitted.module))
        return (w @ (new - w).T).abs().mean() / (new - w).norm()

    assert change(0.05) < 0.5 * change(0.0)


def test_the_method_weighs_each_term_by_its_own_weight():
    seen = []

    def record(run, batch):
        groups = run.state["pego"][0]
        with torch.no_grad():
            seen.append(float(orthogonal_group_loss(groups, diversify=0.0)))
        return torch.zeros(())

    spy = heldout.Method("spy", loss=Added(record))
    model = small_vit()
    for weights in ({"preserve": 0.0}, {"diversify": 0.0}):
        heldout.fit(model, pretrained(model), pego(0.05, 2, 2, **weights) + spy, epochs=20, optimizer=ADAM)
    diversified, preserved = seen[len(seen) // 2 - 1], seen[-1]
    assert preserved < 0.5 * diversified


def test_a_model_without_attention_gets_groups_on_its_linear_layers_but_the_last():
    model = mlp(64, 2, (32, 16))
    fitted = heldout.fit(model, pretrained(model), pego(rank=2, size=2), epochs=1, optimizer=ADAM)
    before, after = model.state_dict(), fitted.module.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {"1.weight", "3.weight", "5.weight", "5.bias"}


@pytest.mark.parametrize(
    ("model", "splits", "message"),
    [
        (small_vit(), heldout.Splits(train=images()), r"must come in Splits\(initial_state"),
        (small_cnn(1, 2), None, "no linear or attention layer"),
        (mlp(64, 2, (3,)), None, "1: rank must be at most 3"),
        (nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten()), None, "no classification layer"),
        (small_vit(), pretrained(tiny_vit(8, 4, 16, 2, 2, num_classes=2, channels=1)), "does not start from"),
    ],
)
def test_the_check_says_why_pego_cannot_act(model, splits, message):
    with pytest.raises(ValueError, match=message):
        heldout.fit(model, splits or pretrained(model), pego())


def test_pego_composes_with_sam_and_lines():
    from heldout.optim import sam
    from heldout.weights import lines_method

    model = small_vit()
    fitted = heldout.fit(model, pretrained(model), pego(rank=2) + sam() + lines_method(), epochs=1, optimizer=ADAM)
    assert list(fitted.module.state_dict()) == list(model.state_dict())
