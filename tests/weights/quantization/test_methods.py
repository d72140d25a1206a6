"""Quantisation as Methods: the weights that follow from the parts, on classifiers and on language models."""

import copy

import pytest
import torch
from torch import nn

from heldout import Splits, fit
from heldout.data import batches
from heldout.methods import parse
from heldout.saved import load
from heldout.weights import apply_awq, awq_method, awq_search, block_linears, fake_quantize, rtn, rtn_method


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.dropout(self.down(torch.relu(self.up(self.norm(x)))))


def transformer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Sequential(Block(), Block()), nn.BatchNorm1d(16), nn.Linear(16, 3))


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    return Splits(train=(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()))


def trained(method=None):
    return fit(transformer(), data(), method, epochs=2, seed=0).module


def test_rounding_leaves_all_but_the_linear_weights_as_they_were_trained():
    plain, rounded = trained().state_dict(), trained(rtn_method(bits=3, group_size=2)).state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], rounded[name])}
    assert changed == {name for name in plain if name.endswith("weight") and plain[name].ndim == 2}
    for name in changed:
        assert torch.equal(rounded[name], fake_quantize(plain[name], 3, 2))


def test_what_awq_has_made_is_kept_and_loaded(tmp_path):
    fitted = fit(transformer(), data(), awq_method(bits=3, group_size=8), epochs=1, seed=0)
    fitted.save(tmp_path / "kept", {"method": "awq(bits=3,group_size=8)"})
    x = data().train.tensors[0]
    assert torch.equal(load(tmp_path / "kept", transformer).predict(x), fitted.predict(x))


def test_without_a_group_size_the_largest_that_fits_is_taken():
    module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
    splits = Splits(train=(torch.randn(8, 64), torch.arange(8) % 3))
    plain = fit(copy.deepcopy(module), splits, epochs=1, seed=0).module
    rounded = fit(copy.deepcopy(module), splits, rtn_method(), epochs=1, seed=0).module
    assert torch.equal(rounded[0].weight, fake_quantize(plain[0].weight.detach(), 4, 32))
    odd = fit(nn.Linear(6, 3), data(), rtn_method(), epochs=1).module
    assert len(odd.weight[0].unique()) <= 16


def test_awq_is_that_of_the_parts_and_beats_rounding():
    plain, found = trained(), trained(awq_method(bits=3, group_size=8, examples=60))
    calib = [inputs for inputs, _, _ in batches(data().train, 1)]
    by_hand = apply_awq(copy.deepcopy(plain), awq_search(copy.deepcopy(plain), calib, 3, 8, activations=False))
    rtn(by_hand, 3, 8, layers=block_linears(by_hand))
    plain.eval(), by_hand.eval(), found.eval()
    inputs = data().train.tensors[0]
    assert torch.allclose(found(inputs), by_hand(inputs), atol=5e-3)  # another order of the examples
    assert torch.equal(found[0].weight, plain[0].weight)  # outside of the blocks
    rounded = copy.deepcopy(plain)
    rtn(rounded, 3, 8, layers=block_linears(rounded))
    errors = [(each(inputs) - plain(inputs)).square().mean() for each in (found, rounded)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("method", "module", "reason"),
    [
        (rtn_method(), nn.Flatten(), "no linear layer"),
        (rtn_method(group_size=4), nn.Linear(6, 2), "does not divide"),
        (awq_method(), nn.Linear(6, 2), "no list of blocks"),
        (awq_method(group_size=5), transformer(), "does not divide"),
    ],
)
def test_what_cannot_be_quantised_is_told_before_training(method, module, reason):
    assert reason in method.check(module, data())


def test_adapters_are_merged_first():
    module = nn.ModuleDict({"lora_A": nn.Linear(4, 2)})
    assert "merge" in rtn_method().check(module, data())


@pytest.mark.parametrize("factory", [rtn_method, awq_method])
@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 9}, {"group_size": 0}])
def test_bad_options_are_refused_when_the_method_is_made(factory, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        factory(**options)


def test_language_models_are_quantised_after_their_training(tmp_path):
    pytest.importorskip("transformers")
    from heldout.problem import load_problem

    file = tmp_path / "lm.py"
    file.write_text(
        "import heldout\nfrom heldout.lm import tiny_llama, word_tokenizer\n"
        "tokenizer = word_tokenizer(['a b c d e'])\nepochs = 1\n"
        "def model(): return tiny_llama(tokenizer, seed=0)\n"
        "def data():\n"
        "    rows = [('a b', 'c'), ('a', 'd e'), ('b c a', 'e')]\n"
        "    return heldout.Splits(train=rows, val=rows, test={'same': rows})\n"
    )
    problem = load_problem(str(file))
    plain = problem.fit(None, seed=0).module.state_dict()
    for name in ("rtn(bits=4)", "awq(bits=4,examples=3)"):
        method = parse(name, problem.own_methods)
        assert method.check(problem.model(0), problem.splits) is None
        found = problem.fit(method, seed=0).module.state_dict()
        assert found.keys() == plain.keys()
        assert any(not torch.equal(found[key], plain[key]) for key in plain)
        assert torch.equal(found["model.embed_tokens.weight"], plain["model.embed_tokens.weight"])
