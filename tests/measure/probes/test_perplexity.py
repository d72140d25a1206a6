import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.measure import perplexity, token_blocks


class Bigram(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table, self.dropout = table, nn.Dropout(0.5)

    def forward(self, input_ids, attention_mask=None):
        return self.dropout(self.table[input_ids])


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    assert perplexity(Bigram(torch.zeros(7, 7)), [torch.randint(0, 7, (3, 5))]) == pytest.approx(7)


def test_it_is_the_exponential_of_the_mean_loss_per_predicted_token_over_batches_of_any_size():
    table = torch.randn(9, 9)
    batches = [torch.randint(0, 9, (2, 6)), torch.randint(0, 9, (3, 4))]
    losses = [
        -F.log_softmax(table[row[i]], 0)[row[i + 1]] for batch in batches for row in batch for i in range(len(row) - 1)
    ]
    assert perplexity(Bigram(table), batches) == pytest.approx(math.exp(float(torch.stack(losses).mean())), rel=1e-5)


def test_padding_is_not_counted():
    model = Bigram(torch.randn(9, 9))
    ids = torch.randint(0, 9, (1, 4))
    padded = {"input_ids": F.pad(ids, (0, 3)), "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0]])}
    assert perplexity(model, [padded]) == pytest.approx(perplexity(model, [ids]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_any_padding_gives_the_same_number(family):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
             "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2}}  # fmt: skip
    config = transformers.AutoConfig.for_model(family, vocab_size=11, **sizes[family])
    model = transformers.AutoModelForCausalLM.from_config(config)
    rows = [torch.randint(0, 11, (1, n)) for n in (3, 6, 8)]
    found = []
    for side in ("right", "left", "both"):
        width = {"right": (0, 1), "left": (1, 0), "both": (1, 1)}[side]
        pads = [(width[0] * (9 - row.shape[1]), width[1] * (9 - row.shape[1])) for row in rows]
        length = max(sum(pad) + row.shape[1] for pad, row in zip(pads, rows))
        pads = [(left, length - left - row.shape[1]) for (left, _), row in zip(pads, rows)]
        ids = torch.cat([F.pad(row, pad) for row, pad in zip(rows, pads)])
        mask = torch.cat([F.pad(torch.ones_like(row), pad) for row, pad in zip(rows, pads)])
        found.append(perplexity(model, [{"input_ids": ids, "attention_mask": mask}]))
    assert found == pytest.approx([perplexity(model, rows)] * 3, rel=1e-5)


def test_a_transformers_model_has_the_loss_that_it_computes_itself():
    from tests.weights.families import family

    model, ids = family("llama"), torch.randint(0, 64, (3, 10))
    with torch.no_grad():
        assert perplexity(model, [ids]) == pytest.approx(float(model(ids, labels=ids).loss.exp()), rel=1e-5)


def test_the_mode_of_the_model_is_restored():
    model = Bigram(torch.zeros(3, 3)).train()
    perplexity(model, [torch.zeros(1, 2, dtype=torch.long)])
    assert model.training


def test_nothing_to_predict_and_losses_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="at least one sequence of two tokens"):
        perplexity(Bigram(torch.zeros(3, 3)), [torch.zeros(4, 1, dtype=torch.long)])
    with pytest.raises(ValueError, match="at least one sequence"):
        perplexity(Bigram(torch.zeros(3, 3)), [])
    with pytest.raises(ValueError, match="not finite"):
        perplexity(Bigram(torch.full((3, 3), torch.nan)), [torch.zeros(1, 2, dtype=torch.long)])


def test_blocks_are_the_joined_tokens_and_reading_stops_at_the_limit():
    def texts():
        yield "abcd"
        yield "ef"
        raise AssertionError("read too far")

    assert token_blocks(texts(), lambda text: [ord(c) - 97 for c in text], 3, limit=2).tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]


def test_texts_shorter_than_one_block_are_refused():
    with pytest.raises(ValueError, match="2 tokens, less than one block of 3"):
        token_blocks(["ab"], lambda text: list(map(ord, text)), 3)
    with pytest.raises(ValueError, match=r"at least 1 token|length must be at least 1"):
        token_blocks(["ab"], lambda text: list(map(ord, text)), 0)
