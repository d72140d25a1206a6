import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import heldout
from heldout.nn import GhostBatchNorm1d
from heldout.weights import (
    TaskVector,
    block_index,
    layer_ramp,
    lines,
    lines_lora,
    lines_merge,
    lines_method,
    norm_alpha,
    task_arithmetic,
    ties,
    update_batch_norm,
)
from tests.weights.networks import ResNet, finetuned, stack, transformer
from tests.weights.test_task_vector import assert_states_equal

PRE, FT = stack(seed=0), stack(seed=1)
EXACT = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize("kind", ["vit", "gpt2", "llama", "t5"])
def test_the_ends_of_the_ramp_give_both_models_back_exactly(kind):
    model = transformer(kind)
    tuned = finetuned(model)
    assert_states_equal(lines(model, tuned, alpha=1, beta=0), tuned.state_dict(), **EXACT)
    assert_states_equal(lines(model, tuned, alpha=0, beta=0), model.state_dict(), **EXACT)


def test_the_last_block_stays_as_finetuned_and_the_rest_follows_the_ramp():
    edited, ramp = lines(PRE, FT, alpha=0.2), layer_ramp(block_index(PRE), 0.2, 0.8)
    for name in PRE:
        torch.testing.assert_close(edited[name], PRE[name] + ramp[name] * (FT[name] - PRE[name]))
        if name.startswith("h.2."):
            assert torch.equal(edited[name], FT[name])


def test_modules_and_state_dicts_give_the_same():
    model = transformer("vit")
    tuned = finetuned(model)
    assert_states_equal(lines(model, tuned, 0.3), lines(model.state_dict(), tuned.state_dict(), 0.3), **EXACT)
    mlp = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    assert_states_equal(lines(mlp, finetuned(mlp), 0.0), finetuned(mlp).state_dict() | {
        name: value for name, value in mlp.state_dict().items() if name.startswith("0.")
    })  # fmt: skip


def test_a_kept_head_may_differ_from_the_pretrained_one():
    pre, ft = PRE | {"head.weight": torch.zeros(7, 4)}, FT | {"head.weight": torch.ones(3, 4)}
    with pytest.raises(ValueError, match=r"different shapes: head\.weight \(7, 4\) and \(3, 4\)"):
        lines(pre, ft, 0.3)
    assert torch.equal(lines(pre, ft, 0.3, keep=["head"])["head.weight"], ft["head.weight"])
    assert torch.equal(lines(PRE, ft, 0.3, keep=["head"])["head.weight"], ft["head.weight"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lines(PRE, stack(2), 0.3), "only in pre"),
        (lambda: lines(stack(1), stack(1), 0.3), "no list of at least 2"),
        (lambda: lines(stack(1), stack(1), 0.3, blocks="h.{}"), "at least 2 blocks, got 1"),
        (lambda: lines(PRE, FT | {"norm.weight": torch.full((4,), float("nan"))}, 0.3), "not finite in 'norm.weight'"),
        (lambda: lines(PRE, FT, float("nan")), "alpha must be a number, got nan"),
        (lambda: lines({"a.lora_A.w": torch.ones(1)}, {"a.lora_A.w": torch.ones(1)}, 0.3), "use lines_lora"),
        (lambda: lines_merge(PRE, [], beta=0.5), "fts must not be empty"),
        (lambda: lines_merge(PRE, [FT], beta=0.5, method="tie"), "method must be one of 'sum', 'ties', 'consensus'"),
        (lambda: lines_merge(PRE, [PRE], beta=0.5), "zero"),
        (lambda: lines_merge(PRE, [FT, FT | {"embed.weight": torch.zeros(1, 4)}], beta=0.5), "different shapes"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_norm_rule_starts_a_plain_sum_at_the_average(count):
    fts = [stack(seed=n + 1) for n in range(count)]
    tasks = [TaskVector(PRE, ft) for ft in fts]
    assert norm_alpha(tasks, task_arithmetic(tasks)) == pytest.approx(1 / count, abs=1e-6)
    merged = lines_merge(PRE, fts, beta=0.0)
    for name in PRE:
        torch.testing.assert_close(merged[name], torch.stack([ft[name] for ft in fts]).mean(dim=0))


@pytest.mark.parametrize("method", ["sum", "ties", "consensus", lambda tasks: ties(tasks, density=0.5)])
def test_a_merge_with_a_ramp_is_the_merged_vector_scaled_by_depth(method):
    fts = [stack(seed=n + 1) for n in range(3)]
    merge = {"sum": task_arithmetic, "ties": ties}.get(method, method)
    if merge == "consensus":
        from heldout.weights import consensus as merge
    tasks = [TaskVector(PRE, ft) for ft in fts]
    merged, summed = merge(tasks), task_arithmetic(tasks)
    alpha = summed.l1_norm() / merged.l1_norm() / 3
    ramp = layer_ramp(block_index(PRE), alpha, 0.4)
    result = lines_merge(PRE, fts, beta=0.4, method=method)
    for name in PRE:
        torch.testing.assert_close(result[name], PRE[name] + ramp[name] * merged.delta[name])


def test_lora_adapters_are_scaled_through_lora_b():
    import peft

    torch.manual_seed(0)
    base = transformer("llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(base), config)
    tokens = torch.arange(6)[None]
    edited = lines_lora(peft.get_peft_model_state_dict(adapted), alpha=0.25)
    full = copy.deepcopy(adapted).merge_and_unload()
    with torch.no_grad():
        expected_model = copy.deepcopy(base)
        expected_model.load_state_dict(lines(base, full, alpha=0.25))
        expected = expected_model(tokens).logits
        peft.set_peft_model_state_dict(adapted, edited)
        torch.testing.assert_close(adapted(tokens).logits, expected)
    assert lines_lora(adapted, alpha=1.0).keys() <= adapted.state_dict().keys()


def test_adapters_that_cannot_be_scaled_are_refused():
    lora = {f"layers.{i}.q.lora_{ab}.weight": torch.ones(1, 1) for i in range(2) for ab in "AB"}
    with pytest.raises(ValueError, match="DoRA"):
        lines_lora(lora | {"layers.0.q.lora_magnitude_vector": torch.ones(1)}, 0.5)
    with pytest.raises(ValueError, match="no lora_B"):
        lines_lora(PRE, 0.5)
    with pytest.raises(ValueError, match="not finite"):
        lines_lora(lora | {"layers.0.q.lora_B.weight": torch.full((1, 1), float("nan"))}, 0.5)


def images(count: int = 24) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        3 + torch.randn(count, 1, 6, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)
    )


def test_batch_norm_statistics_are_estimated_again_from_the_data():
    data = images()
    network = finetuned(ResNet())
    network.bn1.running_mean.fill_(9.0)
    network.eval()
    network.layer1[0].train()
    assert update_batch_norm(network, data, batch_size=8) is network
    convolved = network.conv1(data.tensors[0]).detach()
    torch.testing.assert_close(network.bn1.running_mean, convolved.mean(dim=(0, 2, 3)))
    assert network.bn1.momentum == 0.1
    assert not network.bn1.training
    assert network.layer1[0].bn1.training
    ghost = nn.Sequential(GhostBatchNorm1d(4, ghost_size=2))
    inputs = torch.randn(12, 4)
    update_batch_norm(ghost, TensorDataset(inputs, torch.zeros(12)), batch_size=6)
    torch.testing.assert_close(ghost[0].running_mean, inputs.mean(dim=0))


def test_the_method_edits_after_training_and_leaves_the_head():
    network, data = ResNet(), images()
    splits = heldout.Splits(train=data, initial_state=copy.deepcopy(network.state_dict()))
    assert lines_method().check(network, splits) is None
    options = {"epochs": 1, "batch_size": 8, "seed": 0}
    plain = heldout.fit(network, splits, **options).module
    edited = heldout.fit(network, splits, lines_method(alpha=0.0), **options).module
    assert torch.equal(edited.conv1.weight, network.conv1.weight)
    assert torch.equal(edited.layer1[0].conv1.weight, network.layer1[0].conv1.weight)
    assert torch.equal(edited.layer3[0].conv1.weight, plain.layer3[0].conv1.weight)
    assert torch.equal(edited.fc.weight, plain.fc.weight)
    assert not torch.equal(edited.bn1.running_mean, plain.bn1.running_mean)


def test_the_method_says_why_it_cannot_act():
    data = images()
    scratch = heldout.Splits(train=data)
    assert "random initialisation" in lines_method().check(ResNet(), scratch)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    pretrained = heldout.Splits(train=data, initial_state=flat.state_dict())
    assert "no list of at least 2" in lines_method().check(flat, pretrained)
    foreign = heldout.Splits(train=data, initial_state=nn.Linear(2, 2).state_dict())
    assert "pre" in lines_method().check(ResNet(), foreign)
    with pytest.raises(ValueError, match=r"alpha|finite"):
        lines_method(alpha=float("inf"))
