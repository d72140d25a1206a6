import pytest
import torch
from torch import nn

from heldout.weights import derive_rule
from heldout.weights.quantization.block_rules import block_stacks, gain_offset, scale_group
from tests.weights.families import FAMILIES, family


class Norm(nn.Module):
    """Adds one to its gain, as Gemma's does."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.arange(width))

    def forward(self, x):
        return (1 + self.weight) * x / x.square().mean(-1, keepdim=True).sqrt()


class Block(nn.Module):
    def __init__(self, norm=None, act=nn.Identity, residual_of_norm=False):
        super().__init__()
        self.norm, self.act, self.residual_of_norm = norm or nn.LayerNorm(8), act(), residual_of_norm
        self.q, self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        h = self.norm(x)
        return (h if self.residual_of_norm else x) + self.down(self.act(self.gate(h)) * self.up(h)) + self.q(h).mean()


def derived(block, **options):
    layers = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    x = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in block.state_dict().items()}
    with torch.no_grad():
        rule = derive_rule(block, layers, lambda: block(x), **options)
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    return rule


def test_what_shares_an_input_is_scaled_with_its_norm_and_the_linear_half_of_a_gate():
    rule = derived(Block(act=nn.SiLU))
    found = {group.producer: group.consumers for group in rule.groups}
    assert found == {"norm": ("gate", "up", "q"), "up": ("down",)}
    assert rule.unclipped == ("q",)
    assert rule.notes == ()


def test_a_norm_that_feeds_the_residual_stream_is_left_alone_and_told():
    rule = derived(Block(residual_of_norm=True))
    assert [group.producer for group in rule.groups] == ["up"]
    assert "gate, up, q: not scaled, because the norm before feeds something else" in rule.notes[0]


def test_a_gain_that_adds_one_is_scaled_as_a_whole():
    assert derived(Block(norm=Norm(8))).groups[0].producer == "norm"
    norm, x = Norm(8), torch.randn(3, 8)
    root, scale = nn.ModuleDict({"norm": norm}), torch.rand(8) + 0.5
    before = norm(x)
    with torch.no_grad():
        scale_group(root, "norm", [], scale)
    torch.testing.assert_close(norm(x) * scale, before)


@pytest.mark.parametrize(
    ("module", "offset"),
    [(nn.LayerNorm(4), 0.0), (nn.RMSNorm(4), 0.0), (Norm(4), 1.0), (nn.Linear(4, 4), None), (nn.GELU(), None)],
)
def test_the_offset_of_a_gain_is_asked_of_the_module(module, offset):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert gain_offset(module) == offset
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Activated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


def test_an_activation_function_is_the_maker_where_nothing_else_commutes():
    assert [(g.producer, g.consumers) for g in derived(Activated()).groups] == [("act", ("down",))]
    rule = derived(Activated(), activations=False)
    assert rule.groups == ()
    assert any("down: follows an activation function" in note for note in rule.notes)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_blocks_of_every_family_are_found(kind):
    stacks = block_stacks(family(kind))
    assert [len(stack) for stack in stacks] == ([2, 2] if kind.startswith("t5") else [2])
    assert len({type(block) for stack in stacks for block in stack.values()}) == 1


def test_a_model_of_one_block_is_found_by_its_module_list():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 20}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1))
    assert [list(stack) for stack in block_stacks(model)] == [["model.layers.0"]]
    with pytest.raises(ValueError, match="no list of blocks with linear layers in Linear"):
        block_stacks(nn.Linear(2, 2))
