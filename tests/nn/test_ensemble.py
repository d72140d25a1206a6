import pytest
import torch
from torch import nn

from heldout.nn import LogitEnsemble


class Constant(nn.Module):
    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, inputs):
        return self.logits.expand(len(inputs), -1)


MEMBERS = [(4.0, 0.0), (0.0, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("logits", torch.tensor([4 / 3, 2 / 3])),
        ("probabilities", torch.tensor(MEMBERS).softmax(1).mean(0).log()),
        ("votes", torch.tensor([1 / 3, 2 / 3]).log()),
    ],
)
def test_the_average_of_the_members(mode, expected):
    outputs = LogitEnsemble([Constant(*logits) for logits in MEMBERS], mode)(torch.zeros(5, 3))
    torch.testing.assert_close(outputs.detach(), expected.expand(5, 2))


def test_one_member_is_the_ensemble_and_its_parameters_are_shared():
    member = nn.Linear(3, 4)
    ensemble = LogitEnsemble([member])
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert ensemble(inputs).equal(member(inputs))
    assert list(ensemble.parameters())[0] is member.weight  # noqa: RUF015


def test_a_class_without_votes_is_unlikely_and_finite():
    outputs = LogitEnsemble([Constant(1.0, 0.0)], "votes")(torch.zeros(1, 1))
    assert outputs.isfinite().all()
    assert outputs.exp()[0, 1] < 1e-5


@pytest.mark.parametrize(("models", "mode"), [([], "logits"), ([nn.Identity()], "median")])
def test_wrong_input_is_named(models, mode):
    with pytest.raises(ValueError, match=r"at least one model|mode must be"):
        LogitEnsemble(models, mode)
