import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.measure import (
    GeneralizationMonitor,
    RoutingRecorder,
    gate_rows,
    load_variation,
    memorization_steps,
    pathway_consistency,
    pathway_distance,
    pathway_distance_by_layer,
    pathways,
    permute_experts,
    sample_routing,
)
from tests.measure.mechanisms.decoders import DENSE, LAYERS, SPARSE, VOCAB, decoder, token_ids, untouched


@pytest.mark.parametrize("kind", SPARSE)
def test_a_samples_routing_is_the_mean_over_its_tokens(kind):
    model = decoder(kind)
    ids = token_ids(5, 6)
    routing = sample_routing(model, ids.split(2))
    entropies, counts = [], torch.zeros(LAYERS, 5)
    for number, row in enumerate(ids):
        with RoutingRecorder(model.eval()) as recorder, torch.no_grad():
            logits = model(row[None]).logits[0]
        torch.testing.assert_close(routing.weights[number], recorder.weights.double().mean(1))
        expected = F.cross_entropy(logits[:-1], row[1:])
        torch.testing.assert_close(routing.losses[number], expected.double())
        tokens = recorder.weights.double()
        entropies.append(-(tokens * tokens.log()).sum(-1).mean(1))
        for layer in range(LAYERS):
            counts[layer] += recorder.selected[layer].flatten().bincount(minlength=5)
    torch.testing.assert_close(routing.entropy, torch.stack(entropies).mean(0))
    assert torch.equal(routing.load, counts.long())
    assert routing.load.sum(1).tolist() == [60] * LAYERS  # 30 tokens, two experts each
    rows = gate_rows(model)
    assert all(torch.equal(each, block.mlp.gate.weight) for each, block in zip(rows, model.model.layers, strict=True))
    before = rows[0].clone()
    rows[0].zero_()
    assert torch.equal(model.model.layers[0].mlp.gate.weight, before)  # they are copies


def test_padding_is_left_out_and_labels_say_what_counts():
    model = decoder("Olmoe")
    ids = token_ids(2, 6)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    padded = sample_routing(model, [{"input_ids": ids, "attention_mask": mask}])
    alone = sample_routing(model, [ids[1:, :4]])
    torch.testing.assert_close(padded.weights[1:], alone.weights)
    torch.testing.assert_close(padded.losses[1:], alone.losses)
    assert padded.load.sum(1).tolist() == [20] * LAYERS
    whole = sample_routing(model, [ids[:1]])
    torch.testing.assert_close(padded.entropy, (6 * whole.entropy + 4 * alone.entropy) / 10)
    assert torch.equal(padded.load, whole.load + alone.load)
    labels = torch.full_like(ids, -100)
    labels[:, 4] = ids[:, 4]
    asked = sample_routing(model, [{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    with torch.no_grad():
        logits = model.eval()(ids).logits
    expected = F.cross_entropy(logits[:, 3], ids[:, 4], reduction="none")
    torch.testing.assert_close(asked.losses, expected.double())
    torch.testing.assert_close(asked.weights, padded.weights)


def test_padding_on_the_left_and_half_precision():
    model, ids = decoder("Mixtral").bfloat16(), token_ids(2, 6)
    alone = sample_routing(model, [ids[:1]]), sample_routing(model, [ids[1:, :4]])
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1, 2:], padded[1, :2], mask[1, :2] = ids[1, :4], 0, 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = sample_routing(model, [{"input_ids": padded, "attention_mask": mask, "position_ids": positions}])
    for number, expected in enumerate(alone):
        torch.testing.assert_close(found.weights[number], expected.weights[0], atol=1e-2, rtol=0)
        torch.testing.assert_close(found.losses[number], expected.losses[0], atol=5e-2, rtol=0)
    assert found.load.sum(1).tolist() == [20] * LAYERS
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(2, LAYERS).double(), atol=1e-6, rtol=0)


def test_integers_of_any_size_are_token_ids():
    model, ids = decoder("Olmoe"), token_ids()
    torch.testing.assert_close(sample_routing(model, [ids.int()]).losses, sample_routing(model, [ids]).losses)


def test_the_monitor_says_what_its_parts_say_and_changes_nothing():
    model, ids = decoder("Qwen3Moe"), token_ids(8, 5)
    before = untouched(model)
    state = torch.get_rng_state()
    monitor = GeneralizationMonitor(model, ids.split(3))
    found = monitor.log(7)
    assert untouched(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    routing = sample_routing(model, [ids])
    paths = pathways(routing.weights)
    assert found["step"] == 7
    assert found["loss"] == pytest.approx(float(routing.losses.mean()))
    assert found["pathway_distance"] == pytest.approx(pathway_distance(paths))
    assert found["pathway_distance"] < found["pathway_distance_null"] <= 1
    by_layer = [found[f"pathway_distance_layer_{n}"] for n in range(LAYERS)]
    assert by_layer == pytest.approx(pathway_distance_by_layer(paths))
    expected = pathway_consistency(routing.weights, gate_rows(model)).mean()
    assert found["pathway_consistency"] == pytest.approx(float(expected))
    assert found["routing_entropy"] == pytest.approx(float(routing.entropy.mean()))
    assert found["load_variation"] == pytest.approx(float(load_variation(routing.load).mean()))
    assert found["pathway_length"] == pytest.approx(sum(len(layer) for path in paths for layer in path) / 8)
    assert monitor.history == [found]
    chars = GeneralizationMonitor(model, [ids], unit="char", top_k=1, pairs=None).log(0)
    one = pathways(routing.weights, top_k=1)
    assert chars["pathway_distance"] == pytest.approx(pathway_distance(one, "char", pairs=None))
    assert chars["pathway_length"] == LAYERS
    expected = pathway_consistency(routing.weights, gate_rows(model), top_k=1).mean()
    assert chars["pathway_consistency"] == pytest.approx(float(expected))


def test_pairs_and_the_null_are_drawn_from_the_seed():
    model, ids = decoder("Olmoe"), token_ids(8, 5)
    paths = pathways(sample_routing(model, [ids]).weights)
    for seed in (0, 5):
        found = GeneralizationMonitor(model, [ids], pairs=6, seed=seed).log(0)
        assert found["pathway_distance"] == pytest.approx(pathway_distance(paths, pairs=6, seed=seed))
        null = permute_experts(paths, 5, seed)
        assert found["pathway_distance_null"] == pytest.approx(pathway_distance(null, pairs=6, seed=seed))


def test_it_works_in_a_loop_of_ones_own():
    model, ids = small(), token_ids(12, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    monitor = GeneralizationMonitor(model, [ids])
    for step in range(41):
        if step % 10 == 0:
            monitor.log(step)
        loss = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [found["step"] for found in monitor.history] == [0, 10, 20, 30, 40]
    assert monitor.history[-1]["loss"] < 0.5 * monitor.history[0]["loss"]
    assert len({found["pathway_distance"] for found in monitor.history}) > 1
    steps = memorization_steps(torch.stack(monitor.losses))
    assert steps.shape == (12,)
    assert int(steps.min()) > 0


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 6]), (None, [3, 6])])
def test_it_works_in_transformers_trainer(tmp_path, every, expected):
    from transformers import Trainer, TrainingArguments

    model, ids = small(), token_ids(8, 5)
    monitor = GeneralizationMonitor(model, [ids])
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=4, logging_steps=3, save_strategy="no",
        report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in ids]
    Trainer(model, arguments, train_dataset=rows, callbacks=[monitor.trainer_callback(every)]).train()
    assert [found["step"] for found in monitor.history] == expected
    assert monitor.history[0]["loss"] != monitor.history[-1]["loss"]


class Sparse(nn.Module):
    """A mixture of experts that is no model of transformers: two layers with routers of their own names."""

    def __init__(self, width=6, second=6):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, width), nn.Linear(width, VOCAB)
        self.first, self.second = nn.Linear(width, 4), nn.Linear(second, 4)

    def forward(self, ids):
        hidden = self.embed(ids)
        for router in (self.first, self.second):
            hidden = hidden + router(hidden[..., : router.in_features]).softmax(-1)[..., :1]
        return self.head(hidden)


class Expert(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))


class Normed(Sparse):
    """The same with an expert that has BatchNorm and dropout, so that a pass in training mode would be seen."""

    def __init__(self):
        super().__init__()
        self.expert = Expert()

    def forward(self, ids):
        hidden = self.embed(ids)
        for router in (self.first, self.second):
            taken = self.expert(hidden.flatten(0, 1)).view_as(hidden)
            hidden = hidden + router(hidden).softmax(-1)[..., :1] * taken
        return self.head(hidden)


def test_dropout_and_batchnorm_are_at_rest_and_a_training_model_goes_on_training():
    model, ids = Normed().train(), token_ids(5, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = sample_routing(model, [ids], ["first", "second"])
    odd = sample_routing(model, ids.split(2), ["first", "second"])
    torch.testing.assert_close(odd.weights, found.weights)
    torch.testing.assert_close(odd.losses, found.losses)
    assert model.training
    assert model.expert[2].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_routers_of_any_module_may_be_named():
    model = Sparse()
    found = GeneralizationMonitor(model, [token_ids()], gates=["first", "second"]).log(0)
    assert -1 <= found["pathway_consistency"] <= 1
    labelled = [{"input_ids": token_ids(), "labels": token_ids()}]  # are not handed to a model that takes ids alone
    given = sample_routing(model, labelled, ["first", "second"]).losses
    torch.testing.assert_close(given, sample_routing(model, [token_ids()], ["first", "second"]).losses)


def small():
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_experts=4, num_experts_per_tok=2, pad_token_id=None, bos_token_id=None, eos_token_id=None,
            initializer_range=0.1,
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", DENSE[:2])
def test_a_dense_model_is_refused(kind):
    with pytest.raises(ValueError, match="model is dense"):
        GeneralizationMonitor(decoder(kind), [token_ids()])
    with pytest.raises(ValueError, match="model is dense"):
        gate_rows(decoder(kind))


def test_bad_input_is_refused_by_name_before_training():
    model, ids = decoder("Olmoe"), token_ids(3, 4)
    with pytest.raises(ValueError, match="batches must not be empty"):
        sample_routing(model, [])
    with pytest.raises(ValueError, match="batches must have a token that counts"):
        sample_routing(model, [ids[:, :1]])
    with pytest.raises(ValueError, match="samples of padding alone"):
        sample_routing(model, [{"input_ids": ids, "attention_mask": torch.tensor([[1] * 4, [0] * 4, [1] * 4])}])
    with pytest.raises(ValueError, match="labels of the shape"):
        sample_routing(model, [{"input_ids": ids, "labels": ids[:, 1:]}])
    for bad in (ids.double(), ids.index_fill(1, torch.tensor(1), VOCAB), ids - VOCAB, ids[0]):
        with pytest.raises(ValueError, match="input_ids must"):
            sample_routing(model, [bad])
    for label in (VOCAB, -5):
        with pytest.raises(ValueError, match="labels must be integers from 0"):
            sample_routing(model, [{"input_ids": ids, "labels": ids.index_fill(1, torch.tensor(1), label)}])
    with pytest.raises(ValueError, match="batches must be token ids, or dicts with input_ids"):
        sample_routing(model, [{"inputs_embeds": torch.ones(1, 2, 16)}])
    with pytest.raises(ValueError, match="at least 2 samples"):
        GeneralizationMonitor(model, [ids[:1]])
    with pytest.raises(ValueError, match="at least 2 layers"):
        GeneralizationMonitor(Sparse(), [ids], gates=["first"])
    with pytest.raises(ValueError, match="other rows is undefined"):
        GeneralizationMonitor(Sparse(second=5), [ids], gates=["first", "second"])
    with pytest.raises(ValueError, match="threshold must"):
        GeneralizationMonitor(model, [ids], threshold=2.0)
    monitor = GeneralizationMonitor(model, [ids])
    with pytest.raises(ValueError, match="step must be at least 0"):
        monitor.log(-1)
    with pytest.raises(ValueError, match="every must be at least 1"):
        monitor.trainer_callback(0)
    broken = small()
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="loss is not finite on sample 0"):
        sample_routing(broken, [ids])


def test_gates_that_read_other_tokens_are_refused():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.gate, self.head = nn.Embedding(9, 4), nn.Linear(4, 3), nn.Linear(4, 9)

        def forward(self, ids):
            hidden = self.embed(ids)
            self.gate(hidden.mean(1))
            return self.head(hidden)

    with pytest.raises(ValueError, match="gates must be routers of all tokens: a batch has 6, they read 2"):
        sample_routing(Pooled(), [torch.tensor([[1, 2, 3], [4, 5, 6]])], gates=["gate"])
    with pytest.raises(ValueError, match="gates must have a weight"):
        gate_rows(nn.Sequential(nn.Softmax(-1)), ["0"])
