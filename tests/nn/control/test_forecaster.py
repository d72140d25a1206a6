"""A decoder that continues series: what knows what, and step by step as in one pass."""

import pytest
import torch

from heldout.nn import LMForecaster, LSTMForecaster
from tests.nn.control.test_backbone import gpt2, llama

SERIES = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(2)) - 0.5


def model(make=llama, **options):
    lm = make()
    torch.manual_seed(1)
    own = LMForecaster(lm, 3, hidden=8, **options).eval()
    torch.nn.init.normal_(own.head.weight, std=0.3)
    return own


@pytest.mark.parametrize("options", [{}, {"squash": False}, {"squash": False, "residual": True}])
def test_it_is_embedding_norm_decoder_and_head(options):
    own = model(**options)
    tokens = own.norm(own.embed(SERIES))
    said = own.head(own.lm(inputs_embeds=tokens).last_hidden_state)
    expected = said.tanh() if not options else said + SERIES if options.get("residual") else said
    assert torch.allclose(own(SERIES), expected, atol=1e-6)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_an_answer_knows_its_sample_and_those_before_only(make):
    own, other = model(make), SERIES.clone()
    other[:, 3] += 0.5
    moved = (own(SERIES) - own(other)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("prefix", [0, 5])
def test_forecasts_go_on_from_their_own_answers_with_or_without_a_cache(make, prefix):
    own = model(make, prefix=prefix)
    given = torch.randn(2, prefix, generator=torch.Generator().manual_seed(3)) if prefix else None
    series = SERIES
    for _ in range(4):
        series = torch.cat([series, own(series, given)[:, -1:]], 1)
    for cache in (True, False):
        assert torch.allclose(own.forecast(SERIES, 4, prefix=given, cache=cache), series[:, 6:], atol=1e-5)


def test_a_prefix_changes_every_answer():
    own = model(prefix=5)
    moved = (own(SERIES, torch.zeros(2, 5)) - own(SERIES, torch.ones(2, 5))).abs().amax((0, 2)) > 1e-6
    assert moved.all()


@pytest.mark.parametrize("residual", [False, True])
def test_an_lstm_forecasts_from_its_own_answers(residual):
    torch.manual_seed(0)
    own, series = LSTMForecaster(3, hidden=5, residual=residual), SERIES
    if residual:
        assert torch.equal(own(SERIES), SERIES)
    torch.nn.init.normal_(own.head.weight, std=0.3)
    said = own.head(own.body(SERIES)[0])
    assert torch.allclose(own(SERIES), said + SERIES if residual else said, atol=1e-6)
    for _ in range(4):
        series = torch.cat([series, own(series)[:, -1:]], 1)
    assert torch.allclose(own.forecast(SERIES, 4), series[:, 6:], atol=1e-5)
    with pytest.raises(ValueError, match="series"):
        own(torch.zeros(2, 4, 2))
    with pytest.raises(ValueError, match="horizon"):
        own.forecast(SERIES, 0)
    with pytest.raises(ValueError, match="hidden"):
        LSTMForecaster(3, hidden=0)


def test_bad_series_are_refused_by_name():
    own = model()
    for bad in (torch.zeros(2, 3), torch.zeros(2, 4, 2), torch.zeros(2, 0, 3), torch.zeros(1, 65, 3)):
        with pytest.raises(ValueError, match="series"):
            own(bad)
    with pytest.raises(ValueError, match="horizon"):
        own.forecast(SERIES, 0)
    with pytest.raises(ValueError, match="past"):
        own.forecast(SERIES[0], 2)
    with pytest.raises(ValueError, match="prefix"):
        own(SERIES, torch.zeros(2, 5))
    with pytest.raises(ValueError, match="prefix"):
        model(prefix=5)(SERIES)
    with pytest.raises(ValueError, match="squash"):
        model(residual=True)
    with pytest.raises(ValueError, match="dim"):
        LMForecaster(llama(), 0)
