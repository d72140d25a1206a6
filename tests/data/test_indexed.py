import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from heldout.data import IndexedDataset


class Dicts(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, position):
        return {"x": torch.tensor(position), "labels": 0}


def test_batches_carry_their_positions():
    data = TensorDataset(torch.arange(10) * 2, torch.zeros(10))
    for x, _, index in DataLoader(IndexedDataset(data), batch_size=4, shuffle=True):
        assert torch.equal(x, index * 2)


def test_views_and_negative_positions_keep_the_original_position():
    data = IndexedDataset(TensorDataset(torch.arange(5)))
    assert [int(item[-1]) for item in Subset(data, [4, 0, 4])] == [4, 0, 4]
    assert data[-1][-1] == 4
    assert len(data) == 5


def test_dict_examples_gain_an_entry():
    assert IndexedDataset(Dicts())[2]["index"] == 2
    assert set(next(iter(DataLoader(IndexedDataset(Dicts()), batch_size=3)))) == {"x", "labels", "index"}


def test_other_examples_are_refused():
    with pytest.raises(TypeError, match="tuple or a dict"):
        IndexedDataset(torch.arange(3))[0]
