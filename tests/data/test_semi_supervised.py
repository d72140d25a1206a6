import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from heldout.data import InputsOnly, all_targets, semi_supervised_split

X = torch.arange(120.0).view(120, 1)
Y = torch.tensor([0] * 60 + [1] * 40 + [2] * 20)


def test_parts_share_no_example_and_have_the_classes_as_frequent():
    split = semi_supervised_split((X, Y), 12, 24, seed=3)
    parts = [split.labelled.indices, split.val.indices, split.unlabelled.dataset.indices]
    assert [len(part) for part in parts] == [12, 24, 84]
    assert sorted(position for part in parts for position in part) == list(range(120))
    assert all_targets(split.labelled).bincount().tolist() == [6, 4, 2]
    assert all_targets(split.val).bincount().tolist() == [12, 8, 4]


def test_the_same_seed_gives_the_same_parts_and_another_one_others():
    first, again, other = (semi_supervised_split((X, Y), 12, seed=seed) for seed in (1, 1, 2))
    assert first.labelled.indices == again.labelled.indices != other.labelled.indices
    assert len(first.val) == 0


def test_what_is_unlabelled_holds_inputs_only_and_keeps_the_truth_beside_it():
    split = semi_supervised_split(TensorDataset(X, Y), 12, 24)
    batch = next(iter(DataLoader(split.unlabelled, 84)))
    assert torch.equal(batch, X[split.unlabelled.dataset.indices])
    assert torch.equal(split.unlabelled[5], batch[5])
    assert all_targets(split.unlabelled.dataset).bincount().tolist() == [42, 28, 14]


def test_dicts_lose_their_labels_only():
    data = [{"input_ids": torch.tensor([i]), "mask": torch.ones(1), "labels": i % 2} for i in range(20)]
    split = semi_supervised_split(data, 4, 4)
    assert set(split.unlabelled[0]) == {"input_ids", "mask"}
    assert InputsOnly(data).__getitems__([3])[0]["input_ids"].item() == 3


@pytest.mark.parametrize(
    ("data", "n", "val", "message"),
    [
        ((X, Y), 100, 20, "must leave unlabelled examples of 120"),
        ((X, Y), 2, 0, "n_labelled of 2 is too few"),
        ((X, Y), 12, 1, "n_val of 1 is too few"),
        ((X, Y), 0, 0, "n_labelled must be at least 1"),
        ((X, Y.float()), 12, 0, "must have class labels"),
        ((X, torch.zeros(120, dtype=torch.long)), 12, 0, "hold only one class"),
        ((X[:0], Y[:0]), 12, 0, "dataset must not be empty"),
    ],
)
def test_bad_input_is_refused(data, n, val, message):
    with pytest.raises(ValueError, match=message):
        semi_supervised_split(data, n, val)
