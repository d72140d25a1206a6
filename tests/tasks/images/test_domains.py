import pytest
import torch

from heldout import tasks as worlds
from heldout.method import Splits


@pytest.mark.parametrize(("kind", "count", "channels"), [("rotation", 6, 1), ("colour", 3, 3), ("blur", 5, 1)])
def test_domains_deal_every_example_once(kind, count, channels):
    images, labels = worlds.digits()
    shifted, same, domain = worlds.domains(images, labels, kind)
    assert shifted.shape == (1797, channels, 8, 8)
    assert torch.equal(same, labels)
    assert domain.bincount().max() - domain.bincount().min() <= 1
    assert len(domain.unique()) == count
    if channels == 1:
        assert torch.equal(shifted[domain == 0], images[domain == 0])
        assert not torch.equal(shifted[domain == 1], images[domain == 1])
    with pytest.raises(ValueError, match="kind"):
        worlds.domains(images, labels, "weather")


def test_leave_one_domain_out_never_trains_on_the_held_out_domain():
    images, labels, domain = worlds.domains(*worlds.digits(), values=(0, 30, 60))
    splits = worlds.leave_one_domain_out(images, labels, domain, 1)
    assert isinstance(splits, Splits)
    assert splits.domains.unique().tolist() == [0, 2]
    assert torch.equal(splits.test["held_out"].tensors[0], images[domain == 1])
    assert len(splits.train) + len(splits.val) + sum(map(len, splits.test.values())) == 1797
    with pytest.raises(ValueError, match="held_out"):
        worlds.leave_one_domain_out(images, labels, domain, 7)


def test_rotation_sequence_keeps_the_stream_order_and_shares_no_source_image():
    images = torch.arange(400).div(400).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    labels = torch.arange(400) % 4
    splits = worlds.rotation_sequence(images, labels, train_size=200, val_size=40, domain_size=40, degrees=(20, 40, 90))
    assert list(splits.test) == ["0", "20", "40", "90"]
    centre = {name: set(part.tensors[0][:, 0, 3, 3].mul(400).round().tolist()) for name, part in splits.test.items()}
    source = set(splits.train.tensors[0][:, 0, 3, 3].mul(400).round().tolist())
    assert all(len(found) == 40 and not found & source for found in centre.values())
    assert not centre["0"] & centre["20"]
    with pytest.raises(ValueError, match="test domains"):
        worlds.rotation_sequence(images, labels, train_size=390, val_size=0, domain_size=40)
