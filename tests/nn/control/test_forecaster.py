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


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("cache", [True, False])
def test_no_more_samples_than_positions_with_all_that_is_before_them(make, cache):
    own = model(make)
    assert own.forecast(torch.zeros(1, 60, 3), 5, cache=cache).shape == (1, 5, 3)  # the last is not read
    with pytest.raises(ValueError, match="series must need at most the model's 64 positions"):
        own.forecast(torch.zeros(1, 60, 3), 6, cache=cache)
    with pytest.raises(ValueError, match="series must need at most the model's 64 positions"):
        model(make, prefix=5)(torch.zeros(1, 64, 3), torch.zeros(1, 5))


def test_parts_keep_their_own_mode():
    own = model().train()
    own.lm.eval()
    own.norm = torch.nn.Sequential(own.norm, torch.nn.Dropout(0.5))
    assert torch.equal(own.forecast(SERIES, 2), own.forecast(SERIES, 2))
    assert own.training
    assert not own.lm.training


def test_a_prefix_of_another_form_is_refused():
    for bad in (torch.zeros(1, 5), torch.zeros(2, 4), torch.zeros(2, 1, 5)):
        with pytest.raises(ValueError, match="prefix must be"):
            model(prefix=5)(SERIES, bad)
    for own in (model(), LSTMForecaster(3)):
        with pytest.raises(ValueError, match="past must be finite"):
            own.forecast(SERIES * float("nan"), 2)


def test_decoders_without_keys_and_values_forecast_as_well():
    from transformers import OpenAIGPTConfig, OpenAIGPTModel

    own = model(lambda: OpenAIGPTModel(OpenAIGPTConfig(vocab_size=9, n_embd=16, n_layer=1, n_head=2, n_positions=64)))
    assert torch.allclose(own.forecast(SERIES, 3), own.forecast(SERIES, 3, cache=False), atol=1e-6)


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
