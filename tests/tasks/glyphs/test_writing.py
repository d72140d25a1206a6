import pytest
import torch

from heldout.tasks import rewritten


def bar():
    images = torch.zeros(2, 1, 21, 21)
    images[0, 0, 4:17, 10] = 1.0
    images[1, 0, 10, 3:12] = 1.0
    return images


def test_without_jitter_copies_come_in_a_row():
    images = bar()
    assert torch.equal(rewritten(images, 3, jitter=0.0), images[[0, 0, 0, 1, 1, 1]])


def test_each_is_another_writing_of_about_the_same_ink():
    drawn = rewritten(bar(), 40, seed=1)
    assert len(drawn.flatten(1).unique(dim=0)) == 80
    ink = drawn.sum((1, 2, 3)).view(2, 40).mean(1)
    torch.testing.assert_close(ink, bar().sum((1, 2, 3)), rtol=0.1, atol=0.0)
    assert torch.equal(drawn, rewritten(bar(), 40, seed=1))
    more = (rewritten(bar(), 40, jitter=0.2, seed=1) - bar().repeat_interleave(40, 0)).abs().sum()
    assert more < (drawn - bar().repeat_interleave(40, 0)).abs().sum()


def test_bytes_stay_bytes():
    assert rewritten((bar() * 255).byte(), 2).dtype == torch.uint8


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="images"):
        rewritten(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="images"):
        rewritten(torch.full((1, 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match="times"):
        rewritten(bar(), 0)
    with pytest.raises(ValueError, match="jitter"):
        rewritten(bar(), jitter=-1.0)
