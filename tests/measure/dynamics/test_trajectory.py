import math

import pytest
import torch
from torch import nn

from heldout.measure import WeightDistance


class Walk(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(9))

    def move_to(self, distance):
        """Puts both parameters at this root-mean-square distance from ones."""
        with torch.no_grad():
            self.a.fill_(1 + distance)
            self.b.fill_(1 - distance)


def recorded(law, steps=range(1, 200)):
    model = Walk()
    distance = WeightDistance(model)
    for step in steps:
        model.move_to(law(step))
        distance.record(step)
    return distance


def test_distance_is_the_norm_over_all_parameters_and_each():
    distance = recorded(lambda t: 2.0, steps=[0, 5])
    assert distance.steps == [0, 5]
    assert distance.distances == pytest.approx([2 * math.sqrt(13)] * 2)
    assert distance.by_parameter == {"a": pytest.approx([4.0, 4.0]), "b": pytest.approx([6.0, 6.0])}


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_a_power_law_gives_its_exponent(exponent):
    fit = recorded(lambda t: 0.3 * t**exponent).fit()
    assert fit.exponent == pytest.approx(exponent, abs=1e-3)
    if exponent == 0.5:
        assert fit.sqrt_r2 == pytest.approx(1.0, abs=1e-6)
        assert fit.log_r2 < 0.95


def test_logarithmic_growth_is_told_from_a_root():
    fit = recorded(lambda t: 0.5 + math.log(t)).fit()
    assert fit.log_r2 == pytest.approx(1.0, abs=1e-6)
    assert fit.sqrt_r2 < 0.97


def test_half_precision_parameters_are_measured():
    model = nn.Linear(3, 2).bfloat16()
    distance = WeightDistance(model)
    with torch.no_grad():
        model.bias.add_(4.0)
    assert distance.record(1) == pytest.approx(math.sqrt(32), rel=2e-2)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="no parameters"):
        WeightDistance(nn.ReLU())
    with pytest.raises(ValueError, match="must increase"):
        recorded(lambda t: 1.0, steps=[3, 3])
    with pytest.raises(ValueError, match="at least 3 records after step 0, got 2"):
        recorded(lambda t: t, steps=[0, 1, 2]).fit()
    for law in (lambda t: 1.0, lambda t: float("nan"), lambda t: 0.0 if t == 1 else t):
        with pytest.raises(ValueError, match="positive, finite and not all the same"):
            recorded(law).fit()
