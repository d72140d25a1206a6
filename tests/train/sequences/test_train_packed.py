"""Training on packed blocks: the loss is of the answer alone, and nothing leaks between samples."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.data import PackedBlocks, pack_with_offset
from heldout.measure import length_curve
from heldout.nn import CausalTransformer
from heldout.tasks import sequence_task
from heldout.train import seeded, train_packed

TASK = sequence_task("copy", max_len=4)


def blocks_of(n=60, seed=0):
    samples = TASK.sample(n, [1, 2, 3], seed=seed)
    return pack_with_offset(samples, 16, positions=24, generator=torch.Generator().manual_seed(0))


def model_of():
    with seeded(0):
        return CausalTransformer(len(TASK.vocab), dim=16, layers=1, heads=2, max_positions=24)


def test_the_first_loss_is_the_mean_over_answers_and_their_ends_of_each_sample_by_itself():
    samples = TASK.sample(12, [3], seed=4)
    blocks = pack_with_offset(samples, 16, positions=24, max_offset=0)
    model, total, count = model_of(), 0.0, 0
    with torch.no_grad():
        for row, asked in zip(*samples, strict=True):
            logits = model(row[None]).logits[0]
            for place in asked.nonzero()[:, 0].tolist():
                total += float(F.cross_entropy(logits[place - 1], row[place]))
                count += 1
    losses = train_packed(model, blocks, batch_size=len(blocks.ids), lr=1e-3, steps=1)
    assert losses[0] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_models_of_transformers_keep_samples_apart_too(kind):
    """They do where they keep no cache, which by default they would."""
    import transformers

    sizes = {"vocab_size": len(TASK.vocab), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"max_position_embeddings": 24, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if kind == "GPT2":
        more |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.3}
    else:
        more |= {"intermediate_size": 32, "initializer_range": 0.3}
    name = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM"}[kind]
    with seeded(0):
        model = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**sizes, **more))
    samples = TASK.sample(12, [3], seed=4)
    blocks = pack_with_offset(samples, 20, positions=24, max_offset=0)
    assert len(blocks.ids) == 6  # two samples each
    with torch.no_grad():
        logits = model.eval()(samples.ids, use_cache=False).logits
        asked = samples.answer_mask[:, 1:]
        wanted = F.cross_entropy(logits[:, :-1][asked], samples.ids[:, 1:][asked])
    losses = train_packed(model, blocks, batch_size=6, lr=1e-3, steps=1)
    assert losses[0] == pytest.approx(float(wanted), rel=1e-4)


def test_what_is_not_asked_for_has_no_gradient():
    """Other prompts in the filling and other targets outside of the mask change nothing."""
    blocks, found = blocks_of(), []
    for mask in (blocks.answer_mask, torch.ones_like(blocks.answer_mask)):
        model = model_of()
        train_packed(model, blocks._replace(answer_mask=mask), batch_size=4, steps=3)
        found.append(model.embedding.weight)
    assert not torch.equal(*found)
    alone = blocks._replace(answer_mask=torch.zeros_like(blocks.answer_mask).index_fill(1, torch.tensor(3), True))
    model = model_of()
    losses = train_packed(model, alone, batch_size=4, steps=1)
    with torch.no_grad():
        logits = model_of()(alone.ids[:4], alone.position_ids[:4]).logits
    assert losses[0] == pytest.approx(float(F.cross_entropy(logits[:, 2], alone.ids[:4, 3])), rel=1e-5)


def test_one_pass_takes_every_block_once_and_more_steps_go_on_from_the_beginning():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = nn.Parameter(torch.zeros(1)), []

        def forward(self, input_ids, position_ids):
            self.seen += [tuple(row) for row in input_ids.tolist()]
            return self.weight * F.one_hot(input_ids, len(TASK.vocab)).float()

    blocks, model = blocks_of(), Counted()
    count = len(blocks.ids) // 4 * 4
    few = PackedBlocks(*(part[:count] for part in blocks))
    assert len(train_packed(model, few, batch_size=4)) == count // 4
    rows = [tuple(row) for row in few.ids.tolist()]
    assert model.seen == rows
    train_packed(model, few, batch_size=4, steps=count // 4 + 1)
    assert model.seen[len(rows) :] == rows + rows[:4]


def test_a_copy_is_learned_and_carries_no_state_of_random_numbers_away():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = model_of()
    losses = train_packed(model, blocks_of(600), batch_size=8, lr=1e-2, steps=150)
    assert torch.equal(torch.rand(1), expected)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert not model.training
    assert length_curve(model, TASK, [1], n=50).at(1) > 0.8


def test_a_step_is_that_of_adamw_clipped_with_a_rise_and_a_cosine():
    """By hand, in double precision, with decoupled weight decay."""
    blocks, model, naive = blocks_of(), model_of().double(), model_of().double()
    options = {"lr": 0.02, "weight_decay": 0.3, "max_grad_norm": 0.5, "warmup": 3}
    losses = train_packed(model, blocks, batch_size=4, steps=30, **options)
    weights, found = list(naive.parameters()), []
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step in range(30):
        rows = [(4 * step + row) % len(blocks.ids) for row in range(4)]
        asked = blocks.answer_mask[rows][:, 1:]
        logits = naive(blocks.ids[rows], blocks.position_ids[rows]).logits[:, :-1]
        loss = F.cross_entropy(logits[asked], blocks.ids[rows][:, 1:][asked])
        found.append(loss.item())
        gradients = torch.autograd.grad(loss, weights)
        norm = float(sum((each**2).sum() for each in gradients)) ** 0.5
        rate = 0.02 * ((step + 1) / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 27)))
        for number, weight in enumerate(weights):
            gradient = gradients[number] * min(1.0, 0.5 / norm)
            first[number] = 0.9 * first[number] + 0.1 * gradient
            second[number] = 0.98 * second[number] + 0.02 * gradient**2
            scale = (second[number] / (1 - 0.98 ** (step + 1))).sqrt() + 1e-8
            with torch.no_grad():
                weight.mul_(1 - rate * 0.3).sub_(rate * first[number] / (1 - 0.9 ** (step + 1)) / scale)
    assert losses == pytest.approx(found, rel=1e-4)
    for weight, wanted in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(weight, wanted, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_weights():
    found = []
    for _ in range(2):
        model = model_of()
        train_packed(model, blocks_of(), batch_size=4, steps=5, seed=3)
        found.append(model.embedding.weight)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"lr": -1.0}, {"steps": 0}, {"batch_size": 0}, {"max_grad_norm": 0.0}]
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        train_packed(model_of(), blocks_of(), **options)


def test_a_loss_that_is_not_finite_is_told():
    model = model_of()
    with torch.no_grad():
        model.embedding.weight[3] = torch.inf
    with pytest.raises(ValueError, match="the loss is nan"):
        train_packed(model, blocks_of(), batch_size=4, steps=2)
