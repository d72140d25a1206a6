import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from heldout.data import all_targets, batches, gather, predict_all, sample_ids


class Items(Dataset):
    """A data set of items, with everything that a tensor data set does not have."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 7

    def __getitem__(self, i):
        x = torch.full((2,), float(i))
        if self.kind == "dict":
            return {"x": x, "mask": i, "labels": i % 3}
        if self.kind == "two inputs":
            return x, x + 1, i % 3
        return x, i % 3


def test_a_tensor_data_set_and_its_views_are_gathered_by_indexing():
    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    view = Subset(Subset(data, [9, 8, 7, 6]), [3, 0])
    inputs, targets = gather(view, torch.tensor([1, 0]))
    assert inputs.tolist() == [9, 6]
    assert targets.tolist() == [9, 6]


@pytest.mark.parametrize("kind", ["pair", "dict", "two inputs"])
def test_items_are_collated(kind):
    inputs, targets = gather(Items(kind), torch.tensor([4, 2]))
    assert targets.tolist() == [1, 2]
    first = inputs["x"] if kind == "dict" else inputs[0] if kind == "two inputs" else inputs
    assert first.tolist() == [[4, 4], [2, 2]]


def test_workers_give_the_same_batches():
    alone = [targets.tolist() for _, targets, _ in batches(Items("pair"), 3)]
    loaded = [targets.tolist() for _, targets, _ in batches(Items("pair"), 3, num_workers=1)]
    assert alone == loaded == [[0, 1, 2], [0, 1, 2], [0]]


def test_sample_ids_follow_views_to_their_base():
    base = Items("pair")
    assert sample_ids(base, base).tolist() == list(range(7))
    assert sample_ids(Subset(base, [5, 5, 1]), base).tolist() == [5, 5, 1]
    assert sample_ids(Items("pair"), base).tolist() == list(range(7))


def test_all_targets_reads_every_kind_of_data_set():
    assert all_targets(Items("dict")).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert all_targets(Subset(TensorDataset(torch.zeros(4), torch.arange(4)), [2, 0])).tolist() == [2, 0]


def test_predict_all_uses_eval_mode_and_restores_each_module():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))
    model.train()
    model[1].eval()
    data = TensorDataset(torch.ones(5, 2), torch.zeros(5))
    outputs, _ = predict_all(model, data, batch_size=2)
    assert outputs.shape == (5, 2)
    assert not outputs.requires_grad
    assert model.training
    assert model[0].training
    assert not model[1].training


def test_predict_all_refuses_an_empty_set():
    with pytest.raises(ValueError, match="empty"):
        predict_all(nn.Identity(), TensorDataset(torch.zeros(0, 2), torch.zeros(0)))


def test_an_example_without_target_is_refused():
    with pytest.raises(TypeError, match="needs one of the entries labels"):
        gather([{"x": torch.zeros(1)}], torch.tensor([0]))
    with pytest.raises(TypeError, match=r"must be \(inputs, target\)"):
        gather([3.0, 4.0], torch.tensor([0, 1]))
