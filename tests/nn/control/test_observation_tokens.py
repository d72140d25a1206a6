"""An encoder's features as a token of a sequence policy."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

from heldout.data import Trajectories
from heldout.nn import ObservationTokens, ReturnConditionedPolicy


def test_the_token_is_the_mapped_features_of_the_named_observation():
    encoder = nn.Linear(3, 5)
    tokens = ObservationTokens(encoder, 5, 8, name="picture")
    seen = torch.randn(2, 4, 3)
    found = tokens({"other": torch.zeros(1), "picture": seen})
    assert found.shape == (2, 4, 1, 8)
    assert torch.equal(found[:, :, 0], tokens.map(encoder(seen)))
    with pytest.raises(ValueError, match="picture"):
        tokens({"other": seen})
    with pytest.raises(ValueError, match="features"):
        ObservationTokens(encoder, 0, 8)


def test_a_policy_reads_them():
    lm = GPT2Model(GPT2Config(vocab_size=1, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    policy = ReturnConditionedPolicy(lm, ObservationTokens(nn.Linear(3, 5), 5, 8), actions=2, window=4)
    logged = Trajectories(torch.eye(3), torch.tensor([0, 1, 1]), torch.ones(3), torch.tensor([False, False, True]))
    assert policy(logged.batch(logged.windows(4), logged.returns())).shape == (1, 4, 2)
    assert policy.tokens_per_step == 3
    with pytest.raises(TypeError, match="encoder"):
        ReturnConditionedPolicy(lm, nn.Linear(3, 8), actions=2, window=4)
