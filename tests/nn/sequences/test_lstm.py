"""The LSTM against cells in a loop."""

import math

import pytest
import torch

from heldout.nn import Seq2SeqLSTM


def cell(x, state, weights):
    w_in, w_hidden, b_in, b_hidden = weights
    gates = w_in @ x + b_in + w_hidden @ state[0] + b_hidden
    i, f, g, o = gates.chunk(4)
    memory = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


@pytest.mark.parametrize("bidirectional", [False, True])
def test_it_reads_and_writes_as_cells_in_a_loop_do(bidirectional):
    torch.manual_seed(0)
    model = Seq2SeqLSTM(9, dim=6, bidirectional=bidirectional).double().eval()
    source, target = torch.tensor([[3, 4, 5, 0]]), torch.tensor([[1, 6, 7]])
    weights = dict(model.encoder.named_parameters())
    directions = ["", "_reverse"] if bidirectional else [""]
    read, finals = [], []
    for direction in directions:
        names = [f"{n}_l0{direction}" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        units = model.encoder.hidden_size
        state = torch.zeros(units).double(), torch.zeros(units).double()
        order = [3, 4, 5] if direction == "" else [5, 4, 3]
        seen = []
        for token in order:
            state = cell(model.source_embedding.weight[token], state, [weights[name] for name in names])
            seen.append(state[0])
        read.append(torch.stack(seen if direction == "" else seen[::-1]))
        finals.append(state)
    memory = torch.cat(read, 1)
    state = tuple(torch.cat([final[k] for final in finals]) for k in (0, 1))
    cells = [p for _, p in model.decoder.named_parameters()]
    expected = []
    for token in target[0]:
        state = cell(model.target_embedding.weight[token], state, cells)
        attention = (memory @ model.score(state[0]) / math.sqrt(6)).softmax(0)
        expected.append(model.head(model.combine(torch.cat([attention @ memory, state[0]])).tanh()))
    assert torch.allclose(model(source, target)[0], torch.stack(expected), atol=1e-10)


def test_each_layer_of_the_decoder_starts_from_both_directions_of_its_own():
    torch.manual_seed(0)
    model = Seq2SeqLSTM(9, dim=6, layers=2, bidirectional=True).eval()
    source = torch.tensor([[3, 4, 5], [6, 7, 8]])
    _, (hidden, cells) = model.encoder(model.source_embedding(source))
    for found, last in zip(model.encode(source).final, (hidden, cells), strict=True):
        for layer in range(2):
            assert torch.allclose(found[layer], torch.cat([last[2 * layer], last[2 * layer + 1]], 1), atol=1e-6)


def test_unusable_sizes_are_refused_by_name():
    with pytest.raises(ValueError, match="dim must be even"):
        Seq2SeqLSTM(9, dim=5, bidirectional=True)
    with pytest.raises(ValueError, match="layers"):
        Seq2SeqLSTM(9, layers=0)
