"""The blocks of the network that is tuned on drawings, and the factors that they get."""

import pytest
import torch

from heldout.reproductions.lines import factors, upper_blocks

NAMES = [f"stage6.{block}.body.{part}.weight" for block in range(4) for part in range(2)]
STATE = dict.fromkeys(
    [*NAMES, "stage7.0.body.0.weight", "top.0.weight", "top.1.running_mean", "head.weight"], torch.ones(1)
)


def test_blocks_are_in_order_of_depth_and_the_head_is_none():
    index = upper_blocks(STATE)
    assert [index[name] for name in NAMES] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert index["stage7.0.body.0.weight"] == 4
    assert index["top.0.weight"] == index["top.1.running_mean"] == 5
    assert index["head.weight"] is None


@pytest.mark.parametrize(("ramp", "ends"), [("lines", (0.3, 1.0)), ("reversed", (1.0, 0.3)), ("uniform", (0.3, 0.3))])
def test_a_ramp_goes_from_the_first_block_to_the_last(ramp, ends):
    index = upper_blocks(STATE)
    found = factors({"ramp": ramp}, 0.3, index)
    assert found[NAMES[0]] == pytest.approx(ends[0])
    assert found["top.0.weight"] == pytest.approx(ends[1])
    assert found["stage6.2.body.0.weight"] == pytest.approx(ends[0] + (ends[1] - ends[0]) * 2 / 5)


def test_restored_blocks_get_their_old_weights_back():
    found = factors({"restored": [0, 1, 2]}, 1.0, upper_blocks(STATE))
    assert [found[name] for name in NAMES[::2]] == [0.0, 0.0, 0.0, 1.0]
    assert found["head.weight"] == 1.0
