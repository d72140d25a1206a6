import json

import pytest
import torch
from torch import nn

from heldout.nn import MultiHead, convert_ghost_batchnorm, rebuilt, structure_of


def plain():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def as_json(module):
    return json.loads(json.dumps(structure_of(module)))


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module,
        lambda module: convert_ghost_batchnorm(module, 5),
        lambda module: MultiHead.from_classifier(module, torch.randn(3, 4), 2, shared=True),
        lambda module: MultiHead.from_classifier(convert_ghost_batchnorm(module, 3), torch.randn(3, 4), 4),
        lambda module: nn.Sequential(*module[:3], nn.Linear(6, 3, bias=False)),
    ],
)
def test_heads_and_layers_are_put_in_again(change):
    wanted = change(plain()).eval()
    made = rebuilt(plain(), as_json(wanted)).eval()
    assert structure_of(made) == structure_of(wanted)
    made.load_state_dict(wanted.state_dict())
    x = torch.randn(7, 4)
    assert torch.equal(made(x), wanted(x))


def test_a_model_that_is_one_layer_is_put_under_heads_again():
    wanted = MultiHead.from_classifier(nn.Linear(4, 3), torch.randn(2, 4), 2)
    made = rebuilt(nn.Linear(4, 3), as_json(wanted))
    made.load_state_dict(wanted.state_dict())
    assert isinstance(made.backbone, nn.Identity)


def test_other_structures_are_refused_by_name():
    with pytest.raises(ValueError, match="another structure: at '2' it holds Tanh, not ReLU"):
        rebuilt(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)), as_json(plain()))
    with pytest.raises(ValueError, match="at '3' it holds nothing, not Linear"):
        rebuilt(plain()[:3], as_json(plain()))
    with pytest.raises(ValueError, match="at 'its root' it holds ReLU, not Sequential"):
        rebuilt(nn.ReLU(), as_json(plain()))
