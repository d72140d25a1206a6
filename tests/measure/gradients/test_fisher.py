"""The diagonal of the Fisher information against closed forms and loops."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.measure import fisher_diagonal


def by_loop(model, x, y):
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(x)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in model.named_parameters():
            total[name] += p.grad.square()
    model.zero_grad()
    return {name: value / len(x) for name, value in total.items()}


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 9, 3)
    ).double()


def test_empirical_fisher_is_the_mean_of_squared_gradients_of_single_examples():
    model = conv_net()
    model(torch.randn(16, 2, 5, 5).double())  # statistics that are not those of the start
    x, y = torch.randn(11, 2, 5, 5).double(), torch.randint(0, 3, (11,))
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = fisher_diagonal(model, (x, y), batch_size=4)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, value in by_loop(model, x, y).items():
        torch.testing.assert_close(found[name], value)


def test_it_is_larger_than_the_square_of_a_batch_gradient():
    model, x, y = conv_net().eval(), torch.randn(32, 2, 5, 5).double(), torch.randint(0, 3, (32,))
    F.cross_entropy(model(x), y).backward()
    assert (fisher_diagonal(model, (x, y))["5.weight"].sum() / model[5].weight.grad.square().sum()) > 4


def test_fisher_of_logistic_regression_is_its_closed_form():
    x = torch.tensor([[0.5, -2.0], [1.5, 0.3]]).double()
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -0.4]]))
    p = torch.sigmoid(x @ torch.tensor([1.0, -0.4]).double())
    wanted = (x.square() * (p * (1 - p))[:, None]).mean(0)  # E over labels of (x (1[y = k] - p_k))^2
    rows = 4000
    many = x.repeat(rows, 1)
    found = fisher_diagonal(model, (many, torch.zeros(2 * rows).long()), kind="model", batch_size=2000, seed=1)
    torch.testing.assert_close(found["weight"], wanted.expand(2, 2), rtol=0.05, atol=0)


def test_labels_drawn_from_the_model_are_those_of_its_own_tokens():
    """A causal model that is sure of its next token: drawn labels have no gradient, wrong ones of the data have."""

    class Next(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = type("Config", (), {"is_encoder_decoder": False})()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, input_ids):
            return self.scale * 60 * F.one_hot((input_ids + 1) % 5, 5).double()

    ids = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 0]])
    data = [{"input_ids": row, "labels": torch.tensor([0, 0, 0, 0])} for row in ids]
    assert fisher_diagonal(Next(), data, kind="model")["scale"] < 1e-9
    assert fisher_diagonal(Next(), data)["scale"] > 100


def test_only_chosen_and_trainable_parameters_are_there():
    model = conv_net()
    model[0].weight.requires_grad_(False)
    data = (torch.randn(3, 2, 5, 5).double(), torch.tensor([0, 1, 2]))
    assert "0.weight" not in fisher_diagonal(model, data)
    assert set(fisher_diagonal(model, data, params=lambda name: name.startswith("5"))) == {"5.weight", "5.bias"}


@pytest.mark.parametrize(
    ("data", "options", "word"),
    [
        ((torch.zeros(0, 2), torch.zeros(0).long()), {}, "data"),
        ((torch.zeros(2, 2), torch.zeros(2).long()), {"batch_size": 0}, "batch_size"),
        ((torch.zeros(2, 2), torch.zeros(2).long()), {"kind": "true"}, "kind"),
        ((torch.zeros(2, 2), torch.zeros(2, 2)), {"kind": "model"}, "real numbers"),
        ((torch.tensor([[torch.nan, 0.0]]), torch.zeros(1).long()), {}, "not finite|finite"),
    ],
)
def test_bad_input_is_named(data, options, word):
    with pytest.raises(ValueError, match=word):
        fisher_diagonal(nn.Linear(2, 2), data, **options)
