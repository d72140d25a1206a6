import copy

import pytest
import torch
from torch import nn

from heldout.nn import BagOfWordsEncoder, DKRLEncoder, EntityTable, TextEntityEncoder, split_encoder

transformers = pytest.importorskip("transformers")

WORDS = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 5, 7, 0, 0, 0, 0], [4, 9, 1, 8, 11, 2, 6]])
MASK = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1] * 7])


def network(kind="Bert", layers=3, **more):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "DistilBert":
        sizes = {"dim": 16, "n_layers": layers, "n_heads": 2, "hidden_dim": 32}
    config = getattr(transformers, f"{kind}Config")(vocab_size=12, **sizes, **more)
    return getattr(transformers, f"{kind}Model")(config).eval()


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Roberta", "MPNet"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_vector_is_a_linear_map_of_the_pooled_states(kind, pooling):
    model = network(kind)
    encoder = TextEntityEncoder(model, 5, pooling=pooling).eval()
    states = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    pooled = states[:, 0] if pooling == "cls" else torch.stack([states[0, :3].mean(0), states[1].mean(0)])
    assert torch.allclose(encoder(IDS, MASK), pooled @ encoder.linear.weight.T, atol=1e-5)
    assert encoder.linear.bias is None


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Roberta", "MPNet"])
@pytest.mark.parametrize("upper", [1, 2, 3])
def test_a_split_encoder_gives_what_the_whole_gives(kind, upper):
    model = network(kind)
    whole = TextEntityEncoder(model, 5, pooling="mean").eval()
    below, above = split_encoder(model, upper)
    hidden = below(input_ids=IDS, attention_mask=MASK).last_hidden_state
    half = TextEntityEncoder(above, 5, pooling="mean").eval()
    half.linear = whole.linear
    assert torch.allclose(half(hidden, MASK), whole(IDS, MASK), atol=1e-5)
    assert len(getattr(model, "encoder", getattr(model, "transformer", None)).layer) == 3


@pytest.mark.parametrize(
    ("kind", "more"), [("Electra", {"embedding_size": 8}), ("DebertaV2", {"conv_kernel_size": 3, "conv_act": "gelu"})]
)
@pytest.mark.parametrize("upper", [1, 2])
def test_what_stands_between_embeddings_and_layers_is_passed_once(kind, more, upper):
    model = network(kind, **more)
    whole = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    below, above = split_encoder(copy.deepcopy(model), upper)
    hidden = below(input_ids=IDS, attention_mask=MASK).last_hidden_state
    halves = above(inputs_embeds=hidden, attention_mask=MASK).last_hidden_state
    assert torch.allclose(halves[MASK > 0], whole[MASK > 0], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_word_vectors_of_another_precision_are_taken(dtype):
    for encoder in (BagOfWordsEncoder(WORDS.to(dtype), 4), DKRLEncoder(WORDS.to(dtype), 4)):
        assert encoder(IDS, MASK).dtype == dtype


def test_only_the_upper_layers_have_gradients_and_parameters():
    model = network()
    below, above = split_encoder(copy.deepcopy(model), 1)
    encoder = TextEntityEncoder(above, 5)
    hidden = below(input_ids=IDS, attention_mask=MASK).last_hidden_state.detach()
    encoder(hidden, MASK).sum().backward()
    named = [name for name, each in encoder.named_parameters() if each.grad is not None]
    assert any("layer.0" in name for name in named)
    assert not any("layer.1" in name or "embeddings" in name for name, _ in encoder.named_parameters())


def test_any_callable_makes_hidden_states():
    class States(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(12, 4)

        def forward(self, ids, mask):
            return self.table(ids)

    model = States()
    encoder = TextEntityEncoder(model, 3, width=4)
    assert torch.allclose(encoder(IDS, MASK), encoder.linear(model.table(IDS[:, 0])))
    assert dict(encoder.named_parameters()).keys() >= {"model.table.weight"}
    plain = TextEntityEncoder(lambda ids, mask: model.table(ids), 3, width=4)
    assert plain(IDS, MASK).shape == (2, 3)
    with pytest.raises(ValueError, match="width"):
        TextEntityEncoder(model, 3)


def test_a_bag_of_words_is_the_mean_without_stop_words():
    encoder = BagOfWordsEncoder(WORDS, stop=[5, 4, 2])
    found = encoder(IDS, MASK)
    assert torch.allclose(found[0], (WORDS[3] + WORDS[7]) / 2)
    assert torch.allclose(found[1], WORDS[[9, 1, 8, 11, 6]].mean(0))
    assert torch.allclose(encoder(torch.tensor([[5, 4, 0]]), torch.tensor([[1, 1, 0]]))[0], WORDS[[5, 4]].mean(0))
    assert torch.allclose(encoder(IDS.flip(1), MASK.flip(1)), found)
    found.sum().backward()
    assert encoder.words.weight.grad[5].abs().max() == 0
    assert encoder.words.weight.grad[3].abs().max() > 0
    assert BagOfWordsEncoder(WORDS, 4)(IDS, MASK).shape == (2, 4)


def test_dkrl_is_what_its_equations_say():
    encoder = DKRLEncoder(WORDS, dim=4)
    first, second = encoder.first, encoder.second
    for row, length in ((0, 3), (1, 7)):
        words = torch.cat([WORDS[IDS[row, :length]], torch.zeros(1, 6)])
        windows = [
            first.weight[:, :, 0] @ words[i] + first.weight[:, :, 1] @ words[i + 1] + first.bias for i in range(length)
        ]
        pooled = [torch.tanh(torch.stack(windows[i : i + 4]).max(0).values) for i in range(0, length, 4)]
        pooled.append(torch.zeros(4))
        again = [
            second.weight[:, :, 0] @ pooled[i] + second.weight[:, :, 1] @ pooled[i + 1] + second.bias
            for i in range(len(pooled) - 1)
        ]
        expected = torch.tanh(torch.stack(again).mean(0))
        assert torch.allclose(encoder(IDS, MASK)[row], expected, atol=1e-6)
    assert not torch.allclose(encoder(IDS[:, :3].flip(1), MASK[:, :3]), encoder(IDS[:, :3], MASK[:, :3]))


@pytest.mark.parametrize("make", [lambda: DKRLEncoder(WORDS, 4), lambda: BagOfWordsEncoder(WORDS, 4),
                                  lambda: TextEntityEncoder(network(), 4, pooling="mean").eval()])  # fmt: skip
def test_padding_and_company_change_nothing_and_no_description_is_empty(make):
    encoder = make()
    alone = encoder(IDS[:1, :3], MASK[:1, :3])
    assert torch.allclose(encoder(IDS, MASK)[:1], alone, atol=1e-6)
    with pytest.raises(ValueError, match="empty description"):
        encoder(IDS, MASK * torch.tensor([[1], [0]]))
    with pytest.raises(ValueError, match="mask"):
        encoder(IDS, MASK[:, :3])


def test_a_table_knows_each_entity_by_its_number():
    table = EntityTable(5, 4)
    assert torch.equal(table(torch.tensor([[3], [0]])), table.vectors.weight[[3, 0]])
    for ids in (torch.tensor([[5]]), torch.tensor([[-1]]), torch.tensor([3]), torch.tensor([[1, 2]])):
        with pytest.raises(ValueError, match="ids"):
            table(ids)


def test_cls_is_the_first_token_of_a_text_that_is_padded_on_the_left():
    encoder = TextEntityEncoder(lambda ids, mask: nn.functional.one_hot(ids, 12).float(), 12, width=12)
    nn.init.eye_(encoder.linear.weight)
    assert encoder(IDS.flip(1), MASK.flip(1)).argmax(1).tolist() == [7, 6]


@pytest.mark.parametrize("make", [BagOfWordsEncoder, DKRLEncoder])
def test_words_are_copied_and_trained(make):
    words = WORDS.clone()
    encoder = make(words, 4)
    encoder(IDS, MASK).square().sum().backward()
    torch.optim.SGD(encoder.parameters(), lr=1.0).step()
    assert torch.equal(words, WORDS)
    assert not torch.equal(encoder.words.weight, WORDS)


def test_the_map_of_a_bag_has_no_bias_and_a_table_begins_within_xaviers_bound():
    assert BagOfWordsEncoder(WORDS, 4).linear.bias is None
    assert EntityTable(500, 4).vectors.weight.abs().max() <= (6 / 504) ** 0.5


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="upper"):
        split_encoder(network(), 4)
    with pytest.raises(ValueError, match="model"):
        split_encoder(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="dim"):
        DKRLEncoder(WORDS, 0)
    with pytest.raises(ValueError, match="stop"):
        BagOfWordsEncoder(WORDS, stop=[12])
    with pytest.raises(TypeError, match="words"):
        BagOfWordsEncoder(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="ids"):
        DKRLEncoder(WORDS, 4)(IDS + 6, MASK)
    with pytest.raises(ValueError, match="pooling"):
        TextEntityEncoder(network(), 4, pooling="max")
