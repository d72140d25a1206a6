import pytest
import torch
import torch.nn.functional as F

from heldout.nn import AttentionBlock
from heldout.nn.fusion.attention_block import last_token


def tokens(batch=2, length=5, d=8, seed=1000):
    return torch.randn(batch, length, d, generator=torch.Generator().manual_seed(seed))


def test_a_block_is_attention_and_perceptron_each_added_and_normalised_after():
    torch.manual_seed(1001)
    block, x = AttentionBlock(8), tokens()
    query, key, value = F.linear(x, block.attention.in_proj_weight, block.attention.in_proj_bias).chunk(3, 2)
    found = block.attention.out_proj((query @ key.transpose(1, 2) / 8**0.5).softmax(2) @ value)
    hidden = block.norm1(x + found)
    first, _, second, _ = block.perceptron
    wanted = block.norm2(hidden + second(first(hidden).relu()).relu())
    torch.testing.assert_close(block(x), wanted)


def test_what_is_masked_has_no_influence_and_no_gradient_even_where_it_is_nan():
    torch.manual_seed(1002)
    block = AttentionBlock(8, heads=2)
    x, mask = tokens(), torch.tensor([[True, True, True, False, False], [True] * 5])
    short = block(x[:1, :3])
    x[0, 3:] = float("nan")
    x.requires_grad_()
    whole = block(x, mask)
    torch.testing.assert_close(whole[:1, :3], short)
    whole[mask].pow(2).sum().backward()
    assert (x.grad[0, 3:] == 0).all()
    assert (x.grad[mask].abs().sum(1) > 0).all()


def test_tokens_in_another_order_come_back_in_it():
    torch.manual_seed(1003)
    block, x, order = AttentionBlock(8), tokens(), torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])


def test_the_last_token_is_the_last_that_is_not_masked():
    mask = torch.tensor([[True, False, True, False, False], [True] * 5])
    x = tokens()
    assert last_token(x, mask).equal(torch.stack([x[0, 2], x[1, 4]]))
    assert last_token(x, None).equal(x[:, 4])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: AttentionBlock(8, heads=3), "d must be a multiple of heads"),
        (lambda: AttentionBlock(0), "d must be"),
        (lambda: AttentionBlock(8)(torch.zeros(2, 5, 4)), "tokens"),
        (lambda: AttentionBlock(8)(torch.zeros(2, 0, 8)), "tokens"),
        (lambda: AttentionBlock(8)(torch.zeros(2, 8)), "tokens"),
        (lambda: AttentionBlock(8)(torch.zeros(2, 3, 8), torch.ones(2, 4, dtype=torch.bool)), "mask"),
        (lambda: AttentionBlock(8)(torch.zeros(2, 3, 8), torch.ones(2, 3)), "mask"),
        (lambda: AttentionBlock(8)(torch.zeros(2, 3, 8), torch.zeros(2, 3, dtype=torch.bool)), "mask"),
    ],
)
def test_sizes_and_masks_that_do_not_fit_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
