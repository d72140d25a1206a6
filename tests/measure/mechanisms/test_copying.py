"""The loss of copying, of oracles whose loss is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from heldout.measure import copying_loss

VOCAB = 12
SEGMENTS = torch.randint(VOCAB, (5, 7), generator=torch.Generator().manual_seed(0))


def copier(length):
    """Sure of the token one segment back, and of nothing in the first one."""

    def logits(ids):
        back = F.pad(ids, (length, 0))[:, 1 : ids.shape[1] + 1]
        sure = 50.0 * F.one_hot(back, VOCAB).float()
        sure[:, : length - 1] = 0.0
        return sure

    return logits


def test_an_oracle_that_copies_has_no_loss_on_any_copy_but_the_first():
    assert copying_loss(copier(7), SEGMENTS) == pytest.approx(0.0, abs=1e-6)
    assert copying_loss(copier(7), SEGMENTS, copies=2) == pytest.approx(0.0, abs=1e-6)
    assert copying_loss(copier(6), SEGMENTS, copies=2) > 10  # looks one token too far ahead


def test_a_model_that_knows_nothing_loses_the_log_of_its_vocabulary():
    uniform = nn.Embedding.from_pretrained(torch.zeros(VOCAB, VOCAB))
    assert copying_loss(uniform, SEGMENTS) == pytest.approx(math.log(VOCAB), rel=1e-6)


def gpt2(**options):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=8, n_layer=1, n_head=2, **options))


def test_the_loss_of_a_model_is_that_of_a_loop_over_tokens():
    model = gpt2(resid_pdrop=0.5).train()
    segments = [SEGMENTS[0], SEGMENTS[1, :4], SEGMENTS[2, :4], SEGMENTS[3, :1]]
    losses = []
    for segment in segments:
        ids = segment.repeat(3)
        with torch.no_grad():
            scores = model.eval()(ids[None]).logits[0].log_softmax(-1)
        losses += [-float(scores[place - 1, ids[place]]) for place in range(len(segment), len(ids))]
    model.train()
    assert copying_loss(model, segments, copies=3, batch_size=2) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert model.training


def test_what_cannot_be_copied_is_refused_by_name():
    model = gpt2()
    with pytest.raises(ValueError, match="copies of the longest segment are 77 tokens, more than the model's 64"):
        copying_loss(model, SEGMENTS)
    with pytest.raises(ValueError, match="copies"):
        copying_loss(model, SEGMENTS, copies=1)
    with pytest.raises(ValueError, match="segments"):
        copying_loss(model, [])
    with pytest.raises(ValueError, match="segments"):
        copying_loss(model, [torch.tensor([], dtype=torch.long)])
    with pytest.raises(ValueError, match="segments"):
        copying_loss(model, torch.tensor(3))
    with pytest.raises(ValueError, match="segments"):
        copying_loss(lambda ids: torch.zeros(*ids.shape, VOCAB), SEGMENTS + VOCAB, copies=2)
    with pytest.raises(ValueError, match=r"model must give logits \(batch, length, vocabulary\)"):
        copying_loss(lambda ids: torch.zeros(2, 3), SEGMENTS)
    with pytest.raises(ValueError, match="input_ids"):
        copying_loss(model, SEGMENTS + VOCAB, copies=2)
    with pytest.raises(ValueError, match="finite"):
        copying_loss(lambda ids: torch.full((*ids.shape, VOCAB), math.nan), SEGMENTS)
