import pytest
import torch
from torch import nn

from heldout import Splits
from heldout.nn import split_head, why_no_head


class ViT(nn.Module):
    """CLS token, one transformer layer, head on the CLS token or on all of them."""

    def __init__(self, pool):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed, self.cls = nn.Linear(4, 16), nn.Parameter(torch.randn(1, 1, 16))
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.head, self.pool = nn.Linear(16, 3), pool

    def forward(self, x):
        tokens = self.layer(torch.cat([self.cls.expand(len(x), -1, -1), self.embed(x)], 1))
        if self.pool == "cls":
            return self.head(tokens[:, 0])
        logits = self.head(tokens)
        return {"last": logits[:, -1], "mean": logits.mean(1), "max": logits.amax(1)}[self.pool]


MLP = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
CNN = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("model", "inputs", "dim"),
    [
        (MLP, torch.randn(5, 3, 4), 6),
        (CNN, torch.randn(5, 1, 8, 8), 4),
        (ViT("cls"), torch.randn(5, 7, 4), 16),
        (ViT("last"), torch.randn(5, 7, 4), 16),
        (ViT("mean"), torch.randn(5, 7, 4), 16),
    ],
    ids=["mlp", "cnn", "vit-cls", "vit-last", "vit-mean"],
)
def test_head_of_the_features_is_the_model(model, inputs, dim):
    encoder, head = split_head(model.eval(), inputs)
    features = encoder(inputs)
    assert features.shape == (5, dim)
    assert encoder.dim == dim
    torch.testing.assert_close(head(features), model(inputs))
    assert any(head is m for m in model.modules())


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "vit"])
def test_transformers_classifiers_split_with_padding(architecture):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ids = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 3:], ids[1, 3:] = 0, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "bert":
            config = transformers.BertConfig(vocab_size=20, num_labels=3, **small)
            model = transformers.BertForSequenceClassification(config)
        elif architecture == "gpt2":
            config = transformers.GPT2Config(
                vocab_size=20, n_embd=16, n_layer=1, n_head=2, num_labels=3, pad_token_id=0
            )
            model = transformers.GPT2ForSequenceClassification(config)
        else:
            config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **small)
            model, inputs = transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(4, 3, 8, 8)}
    encoder, head = split_head(model.eval(), inputs)
    features = encoder(inputs)
    assert features.shape == (4, 16)
    torch.testing.assert_close(head(features), model(**inputs).logits)


def test_features_carry_gradients_and_follow_the_mode_of_the_model():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    encoder, _ = split_head(model, torch.ones(2, 4))
    assert all(m.training for m in model.modules())
    encoder(torch.ones(2, 4)).sum().backward()
    assert model[0].weight.grad is not None
    model.eval()
    assert torch.equal(encoder(torch.ones(1, 4)), encoder(torch.ones(1, 4)))


def test_splitting_leaves_no_hooks_and_no_batch_statistics_behind():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split_head(model, torch.randn(3, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), torch.randn(2, 1, 8, 8), "runs no nn.Linear"),
        (
            nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), nn.AvgPool1d(4), nn.Flatten()),
            torch.randn(2, 4),
            "8",
        ),
        (nn.Linear(4, 3), torch.randn(2, 5, 4), r"returns \(2, 5, 3\)"),
        (ViT("max"), torch.randn(12, 7, 4, generator=torch.Generator().manual_seed(0)), "runs on 8 tokens"),
    ],
    ids=["convolutional head", "linear before the end", "token classifier", "max over tokens"],
)
def test_models_without_a_usable_head_are_refused(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        split_head(model, inputs)


def test_a_layer_that_runs_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(ValueError, match="2 times"):
        split_head(Twice(), torch.randn(2, 4))


def test_reasons_against_a_method_that_needs_a_head():
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0, 1])
    assert why_no_head(nn.Linear(4, 2), Splits(train=(x, y))) is None
    assert "class labels" in why_no_head(nn.Linear(4, 1), Splits(train=(x, x[:, 0])))
    assert "no nn.Linear" in why_no_head(nn.Identity(), Splits(train=(x, y)))
