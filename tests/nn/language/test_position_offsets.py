"""Random first positions while a model trains, and nothing afterwards."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from heldout import Splits, fit
from heldout.nn import (
    CausalTransformer,
    position_limit,
    position_offsets,
    random_position_offsets,
    takes_argument,
    takes_positions,
)

IDS = torch.tensor([[1, 3, 4], [2, 2, 5]])


def gpt2(**options):
    from transformers import GPT2Config, GPT2LMHeadModel

    plain = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"vocab_size": 7, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, **plain, **options))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=16, max_position_embeddings=16))


class Spy(nn.Module):
    max_positions = 16

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None):
        self.seen.append(position_ids)


def test_each_row_has_an_offset_of_its_own_uniform_over_those_that_fit():
    spy = Spy()
    random_position_offsets(spy, generator=torch.Generator().manual_seed(0))
    for _ in range(700):
        spy(input_ids=IDS)
    places = torch.cat(spy.seen)
    assert torch.equal(places.diff(dim=1), torch.ones_like(places[:, 1:]))
    counts = places[:, 0].bincount()
    assert len(counts) == 14
    assert counts.min() > 60
    assert not torch.equal(places[0::2, 0], places[1::2, 0])


def test_filling_may_end_at_the_last_position_and_given_positions_are_moved():
    spy = Spy()
    random_position_offsets(spy, max_offset=100, generator=torch.Generator().manual_seed(0))
    ids, real = torch.zeros(1, 15, dtype=torch.int64), torch.tensor([[1] * 4 + [0] * 11])
    for _ in range(300):
        spy(ids, attention_mask=real)
    places = torch.cat(spy.seen)
    assert places[:, 0].max() == 12
    assert places.max() == 15
    spy.seen.clear()
    for _ in range(50):
        spy(ids[:, :4], position_ids=torch.tensor([[0, 1, 0, 1]]))
    moved = torch.cat(spy.seen)
    assert torch.equal(moved - moved[:, :1], torch.tensor([[0, 1, 0, 1]]).expand(50, -1))


def test_nothing_changes_in_eval_mode_with_a_cache_without_room_or_after_removal():
    spy = Spy()
    handle = random_position_offsets(spy)
    spy(IDS, past_key_values=1)
    spy(torch.zeros(1, 16, dtype=torch.int64))
    spy.eval()(IDS)
    handle.remove()
    spy.train()(IDS)
    assert spy.seen == [None] * 4


def test_models_of_transformers_are_moved():
    model = gpt2()
    usual = model.eval()(IDS).logits
    random_position_offsets(model, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(input_ids=IDS).logits, usual)
    assert not torch.allclose(model.train()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits, usual)


def test_what_a_model_tells_of_its_positions():
    assert takes_positions(gpt2())
    assert position_limit(gpt2()) == 16
    assert not takes_positions(nn.Linear(2, 2))
    assert takes_argument(gpt2(), "use_cache")
    assert not takes_argument(Spy(), "use_cache")
    assert position_limit(nn.Linear(2, 2)) is None


def test_the_method_refuses_relative_positions_and_models_without_any():
    check = position_offsets().check
    splits = Splits(train=[(torch.zeros(2), 0)])
    assert check(gpt2(), splits) is None
    assert check(CausalTransformer(7, dim=8, heads=2), splits) is None
    for relative in (llama(), CausalTransformer(7, dim=8, heads=2, positions="alibi")):
        assert "relative" in check(relative, splits)
    assert "position_ids" in check(nn.Linear(2, 2), splits)
    with pytest.raises(ValueError, match="model must take positions"):
        random_position_offsets(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="max_offset"):
        position_offsets(-1)


def test_the_method_trains_positions_that_no_example_reaches_and_leaves_no_hook():
    class Last(nn.Module):
        """The logits at the last token."""

        max_positions = 16

        def __init__(self):
            super().__init__()
            self.model = CausalTransformer(7, dim=8, heads=2, max_positions=16)

        def forward(self, input_ids, position_ids=None):
            return self.model(input_ids, position_ids).logits[:, -1]

    data = [({"input_ids": IDS[i % 2]}, i % 2) for i in range(16)]
    torch.manual_seed(0)
    start = Last()
    trained = {}
    for name, method in {"plain": None, "offsets": position_offsets()}.items():
        fitted = fit(
            start, data, method, epochs=2, batch_size=4, seed=0,
            optimizer=lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
        )  # fmt: skip
        moved = (fitted.module.model.places.weight - start.model.places.weight).abs().amax(1)
        trained[name] = int((moved > 1e-6).sum())
        assert not fitted.module._forward_pre_hooks
    assert trained["plain"] == 3
    assert trained["offsets"] > 10


def test_offsets_are_at_most_what_is_asked_for_and_masks_of_another_shape_do_not_count():
    spy = Spy()
    random_position_offsets(spy, max_offset=3, generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        spy(IDS, attention_mask=torch.ones(2, 1, 3, 3))
    assert torch.cat(spy.seen)[:, 0].unique().tolist() == [0, 1, 2, 3]


def test_a_model_of_one_position_and_one_whose_positions_are_hidden_by_an_adapter():
    spy = Spy()
    spy.max_positions = 1
    with pytest.raises(ValueError, match="tells how many positions"):
        random_position_offsets(spy)

    class Adapter(nn.Module):
        def get_base_model(self):
            return spy

        def forward(self, *args, **kwargs):
            return None

    assert takes_positions(Adapter())
    assert not takes_argument(Adapter(), "use_cache")


def test_small_outputs_are_told_from_relative_positions():
    model = gpt2()
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(1e-5)
    assert position_offsets().check(model, Splits(train=[(torch.zeros(2), 0)])) is None


def test_the_method_draws_from_the_run_alone():
    found = []
    for noise in (1, 2):
        run, spy = SimpleNamespace(state={}, generator=torch.Generator().manual_seed(0)), Spy()
        torch.manual_seed(noise)
        position_offsets().model(run, spy)
        for _ in range(20):
            spy(IDS)
        position_offsets().weights(run, spy)
        found.append(torch.cat(spy.seen))
        assert not run.state
        assert not spy._forward_pre_hooks
    assert torch.equal(*found)


@pytest.mark.parametrize("positions", [2, 3, 4])
def test_models_of_few_positions_are_checked_within_them(positions):
    model = CausalTransformer(7, dim=8, heads=2, max_positions=positions)
    assert position_offsets().check(model, Splits(train=[(torch.zeros(2), 0)])) is None
