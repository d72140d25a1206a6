import copy

import pytest
import torch
from torch import nn

from heldout.nn import DomainHeads, MultiHead, small_cnn, tiny_vit


def test_each_head_is_its_own_layer_on_the_same_features():
    heads = DomainHeads(6, 3, num_domains=2)
    x = torch.randn(4, 6)
    assert torch.equal(heads(x), torch.stack([head(x) for head in heads.heads], 1))
    assert DomainHeads(6, 3, 2, shared=False)(x).shape == (4, 2, 3)


def test_loss_on_one_head_gives_no_gradient_to_the_others():
    heads = DomainHeads(6, 3, num_domains=2)
    heads(torch.randn(4, 6))[:, 0].square().sum().backward()
    assert heads.heads[0].weight.grad.abs().sum() > 0
    assert all(head.weight.grad is None or not head.weight.grad.any() for head in heads.heads[1:])


def test_a_head_factory_makes_each_head():
    def two_layers(dim, classes):
        return nn.Sequential(nn.Linear(dim, 5), nn.ReLU(), nn.Linear(5, classes))

    model = MultiHead(nn.Flatten(), 3, 2, in_dim=8, shared=True, head_factory=two_layers)
    assert model(torch.rand(2, 2, 4)).shape == (2, 4, 2)
    assert model.heads.shared


@pytest.mark.parametrize(
    "model", [small_cnn(3, 5, (4, 6)), tiny_vit(8, 4, dim=8, depth=2, heads=2, num_classes=5), nn.Linear(4, 5)]
)
def test_heads_take_the_place_of_the_classification_layer(model):
    x = torch.rand(3, 4) if isinstance(model, nn.Linear) else torch.rand(3, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    heads = MultiHead.from_classifier(model, x, num_heads=2, shared=True).eval()
    assert heads(x).shape == (3, 3, 5)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        heads.heads.heads[0].load_state_dict(last.state_dict())
        torch.testing.assert_close(heads(x)[:, 0], model(x))
        for p in heads.parameters():
            p.zero_()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_keyword_inputs_reach_the_backbone():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, input_ids, attention_mask):
            return self.head((self.embedding(input_ids) * attention_mask[..., None]).sum(1))

    inputs = {"input_ids": torch.randint(0, 7, (2, 5)), "attention_mask": torch.ones(2, 5)}
    model = MultiHead.from_classifier(Text(), inputs, 2)
    assert model(**inputs).shape == (2, 2, 3)
    assert model.features(inputs).shape == (2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DomainHeads(4, 3, 0), "at least 1"),
        (lambda: MultiHead(nn.Conv2d(3, 4, 3), 2, 3), "in_dim must be given"),
        (
            lambda: MultiHead.from_classifier(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), torch.rand(2, 4), 2),
            "cannot be replaced by heads",
        ),
        (lambda: MultiHead.from_classifier(nn.Conv1d(1, 2, 3), torch.rand(2, 1, 3), 2), "no classification layer"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
