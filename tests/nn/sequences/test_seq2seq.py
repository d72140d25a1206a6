"""What holds for every network from sequence to sequence."""

import math

import pytest
import torch
import torch.nn.functional as F

from heldout.nn import ConvSeq2Seq, Seq2SeqLSTM, Seq2SeqTransformer, SinusoidalPositions

SIZE = 12
MODELS = {
    "transformer": lambda **options: Seq2SeqTransformer(SIZE, dim=16, heads=2, layers=2, **options),
    "relative": lambda **options: Seq2SeqTransformer(
        SIZE, dim=16, heads=2, layers=2, positions="relative", max_distance=3, **options
    ),
    "both": lambda **options: Seq2SeqTransformer(SIZE, dim=16, heads=2, positions="both", **options),
    "lstm": lambda **options: Seq2SeqLSTM(SIZE, dim=16, layers=2, **options),
    "bi-lstm": lambda **options: Seq2SeqLSTM(SIZE, dim=16, layers=2, bidirectional=True, **options),
    "convolution": lambda **options: ConvSeq2Seq(SIZE, dim=16, layers=3, **options),
}
KINDS = [(name, copy) for name in MODELS for copy in (False, True)]


def made(name, copy, seed=0):
    torch.manual_seed(seed)
    return MODELS[name](dropout=0.3, copy=copy).double().eval()


def batch(rows=5, length=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, SIZE, (rows, length), generator=generator)
    return ids * (torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator))


def start(ids):
    return torch.cat([torch.ones(len(ids), 1, dtype=torch.int64), ids], 1)


@pytest.mark.parametrize(("name", "copy"), KINDS)
def test_logits_are_the_same_however_far_rows_are_filled_up(name, copy):
    model, source, target = made(name, copy), batch(), start(batch(seed=2))
    logits = model(source, target)
    padded = model(F.pad(source, (0, 7)), F.pad(target, (0, 3)))
    assert torch.allclose(padded[:, : logits.shape[1]], logits, atol=1e-12)
    for row in range(len(source)):
        kept_source, kept_target = source[row][source[row] != 0], target[row][target[row] != 0]
        alone = model(kept_source[None], kept_target[None])[0]
        assert torch.allclose(alone, logits[row, : len(alone)], atol=1e-12)


@pytest.mark.parametrize(("name", "copy"), KINDS)
def test_a_token_depends_on_earlier_ones_and_not_on_later_ones(name, copy):
    model, source, target = made(name, copy), batch(), start(batch(seed=2).clamp(min=3))
    logits = model(source, target)
    changed = target.clone()
    changed[:, 3] = (changed[:, 3] - 2) % 9 + 3
    other = model(source, changed)
    assert torch.allclose(other[:, :3], logits[:, :3], atol=1e-12)
    assert (other[:, 3:] - logits[:, 3:]).abs().amax((1, 2)).min() > 1e-6


@pytest.mark.parametrize(("name", "copy"), KINDS)
def test_the_order_of_source_and_target_matters(name, copy):
    model, target = made(name, copy), start(batch(seed=2).clamp(min=3))
    source = torch.tensor([[3, 4, 5, 6]]).expand(len(target), -1)
    assert (model(source, target) - model(source.flip(1), target)).abs().max() > 1e-4
    flipped = torch.cat([target[:, :1], target[:, 1:4].flip(1), target[:, 4:]], 1)
    assert (model(source, target) - model(source, flipped))[:, 4:].abs().max() > 1e-4


@pytest.mark.parametrize(("name", "copy"), KINDS)
def test_greedy_writing_with_a_state_is_that_of_whole_prefixes(name, copy):
    model, source = made(name, copy, seed=3), batch(rows=24)
    written = model.generate(source, max_length=9)
    naive = torch.zeros(len(source), 9, dtype=torch.int64)
    for row in range(len(source)):
        prefix = [1]
        while len(prefix) <= 9 and prefix[-1] != 2:
            scores = model(source[row : row + 1], torch.tensor([prefix]))[0, -1]
            scores[:2] = -math.inf
            prefix.append(int(scores.argmax()))
            naive[row, len(prefix) - 2] = prefix[-1]
    assert torch.equal(written, naive[:, : written.shape[1]])
    assert not naive[:, written.shape[1] :].any()


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_go_on_keep_their_own_state_when_others_end(name):
    model, source, target = made(name, False), batch(rows=8), start(batch(rows=8, seed=2).clamp(min=3))
    kept = torch.tensor([True, False, False, True, True, False, True, False])
    memory = model.encode(source)
    _, state = model.decode(memory, target[:, :3])
    going, _ = model.decode(memory.rows(kept), target[kept, 3:4], model.rows_of(state, kept))
    whole, _ = model.decode(model.encode(source[kept]), target[kept, :4])
    assert torch.allclose(going[:, 0], whole[:, 3], atol=1e-12)


def test_rows_end_at_different_places_and_are_filled_up():
    lengths = set()
    for seed in range(6):
        written = made("transformer", False, seed).generate(batch(rows=40), max_length=9)
        ended = (written == 2).cumsum(1) - (written == 2).long()
        assert not written[ended.bool()].any()
        lengths |= set((written != 0).sum(1).tolist())
    assert len(lengths) > 3


@pytest.mark.parametrize(("name", "copy"), KINDS)
def test_generate_leaves_the_mode_and_draws_no_dropout(name, copy):
    model, source = made(name, copy).train(), batch()
    assert torch.equal(model.generate(source, 5), model.generate(source, 5))
    assert model.training
    assert model.dropout.training


@pytest.mark.parametrize("name", MODELS)
def test_copying_gives_log_probabilities_that_reach_tokens_which_the_head_excludes(name):
    model, source, target = made(name, True), batch(), start(batch(seed=2))
    logits = model(source, target)
    assert torch.allclose(logits.exp().sum(2), torch.ones_like(logits[..., 0]), atol=1e-9)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.where(torch.arange(SIZE) == 1, 50.0, 0.0))
        model.gate.weight.zero_()
        model.gate.bias.zero_()
    probabilities = model(source, target).exp().detach()
    for row in range(len(source)):
        inside = torch.isin(torch.arange(SIZE), source[row][source[row] != 0])
        assert probabilities[row, 0, inside].sum().item() == pytest.approx(0.5, abs=1e-6)
        assert probabilities[row, 0, 1].item() == pytest.approx(0.5, abs=1e-6)


def test_copying_mixes_the_head_with_a_scaled_pointer_over_the_source():
    model, source, target = made("transformer", True), torch.tensor([[3, 4, 3, 0]]), torch.tensor([[1, 5]])
    memory = model.encode(source)
    hidden, _ = model.decode(memory, target)
    for position in range(2):
        state = hidden[0, position]
        scores = [float(model.pointer(state) @ memory.states[0, j]) / 4.0 for j in range(3)]  # dim is 16
        total, gate = sum(map(math.exp, scores)), float(model.gate(state).sigmoid())
        expected = (1 - gate) * model.head(state).softmax(0)
        for j in range(3):
            expected[source[0, j]] += gate * math.exp(scores[j]) / total
        assert torch.allclose(model(source, target)[0, position].exp(), expected, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_start_at_a_length_of_1_and_filling_learns_nothing(name):
    torch.manual_seed(0)
    model = MODELS[name](copy=False)
    for embedding in (model.source_embedding, model.target_embedding):
        assert embedding.weight.std().item() == pytest.approx(0.25, rel=0.2)  # dim is 16
    model(batch(), start(batch(seed=2))).square().sum().backward()
    assert not model.source_embedding.weight.grad[0].any()
    assert not model.target_embedding.weight.grad[0].any()


@pytest.mark.parametrize("name", MODELS)
def test_an_open_gate_copies_and_a_closed_one_does_not(name):
    model, source, target = made(name, True), batch(), start(batch(seed=2))
    with torch.no_grad():
        model.gate.weight.zero_()
        model.gate.bias.fill_(50.0)
    copied = model(source, target).exp().detach()
    for row in range(len(source)):
        assert copied[row, 0, source[row][source[row] != 0].unique()].sum().item() == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        model.gate.bias.fill_(-50.0)
        model.pointer.weight.normal_()
        written = model(source, target)
        model.pointer.weight.normal_()
        assert torch.allclose(model(source, target), written, atol=1e-9)


@pytest.mark.parametrize(("name", "copy"), KINDS)
def test_neither_filling_nor_the_start_is_ever_written(name, copy):
    model = made(name, copy)
    with torch.no_grad():
        model.head.bias[:2] = 50.0
    written = model.generate(batch(), 4)
    ended = (written == 2).cumsum(1) - (written == 2).long()
    assert (written[ended == 0] > 1).all()


@pytest.mark.parametrize(("name", "copy"), KINDS)
def test_every_parameter_learns(name, copy):
    model = made(name, copy).train()
    model(batch(), start(batch(seed=2))).square().sum().backward()
    without = [
        each for each, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_columns_of_nothing_but_filling_have_logits_of_0():
    logits = made("lstm", False)(batch(), F.pad(torch.ones(5, 1, dtype=torch.int64), (0, 4)))
    assert logits.shape == (5, 5, SIZE)
    assert logits[:, 0].any()
    assert not logits[:, 1:].any()


def test_positions_are_the_sines_and_cosines_of_the_paper():
    added = SinusoidalPositions(6).double()(torch.zeros(1, 4, 6, dtype=torch.float64), start=2)[0]
    for row, position in enumerate(range(2, 6)):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert added[row, 2 * i].item() == pytest.approx(math.sin(angle))
            assert added[row, 2 * i + 1].item() == pytest.approx(math.cos(angle))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_stay_apart_in_half_precision(dtype):
    exact = SinusoidalPositions(32)(torch.zeros(1, 600, 32))
    added = SinusoidalPositions(32).to(dtype)(torch.zeros(1, 600, 32, dtype=dtype))
    assert added.dtype == dtype
    assert torch.equal(added, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "copy"), KINDS)
def test_half_precision_reads_and_writes_nearly_the_same(name, copy, dtype):
    model, source, target = made(name, copy).float(), batch(), start(batch(seed=2))
    logits, half = model(source, target), made(name, copy).to(dtype)(source, target)
    assert half.dtype == dtype
    assert torch.allclose(half.float(), logits, atol=0.15)
    assert made(name, copy).to(dtype).generate(source, 4).shape[0] == len(source)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.tensor([[0, 3]]), torch.tensor([[1]])), "source must have a token"),
        (lambda m: m(torch.tensor([[SIZE]]), torch.tensor([[1]])), "source"),
        (lambda m: m(torch.tensor([[3]]), torch.tensor([[-1]])), "target_in"),
        (lambda m: m(torch.tensor([[3]]), torch.tensor([[1], [1]])), "source and target_in"),
        (lambda m: m(torch.tensor([3]), torch.tensor([[1]])), "source"),
        (lambda m: m.generate(torch.tensor([[3]]), 0), "max_length"),
        (lambda m: m.generate(torch.tensor([[0]]), 3), "source"),
    ],
)
def test_unusable_ids_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(made("transformer", False))
