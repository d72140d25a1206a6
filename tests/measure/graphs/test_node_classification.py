import pytest
import torch
from sklearn.linear_model import LogisticRegression

from heldout.measure import probe_node_classification


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def three_classes(n=400, seed=0):
    y = torch.randint(3, (n,), generator=generator(seed))
    h = 1.2 * torch.eye(3)[y].repeat(1, 2) + torch.randn(n, 6, generator=generator(seed + 1))
    return h, y, [torch.arange(n) % 4 == part for part in (0, 1)] + [torch.arange(n) % 4 > 1]


def test_it_reaches_what_a_logistic_regression_reaches():
    h, y, masks = three_classes()
    found = probe_node_classification(h, y, masks, epochs=400)
    peer = LogisticRegression(C=1.0, max_iter=1000).fit(h[masks[0]].numpy(), y[masks[0]].numpy())
    assert found.accuracy == pytest.approx(peer.score(h[masks[2]].numpy(), y[masks[2]].numpy()), abs=0.05)


def test_it_is_the_test_accuracy_at_the_first_best_epoch_by_validation():
    h, y, masks = three_classes()
    found = probe_node_classification(h, y, masks, epochs=60)
    shorter = probe_node_classification(h, y, masks, epochs=found.epoch)
    assert shorter == found
    assert probe_node_classification(h, y, masks, epochs=found.epoch - 1).val_accuracy < found.val_accuracy


def test_labels_to_test_on_are_not_looked_at():
    h, y, masks = three_classes()
    other = torch.where(masks[2], (y + 1) % 3, y)
    one, two = probe_node_classification(h, y, masks, epochs=50), probe_node_classification(h, other, masks, epochs=50)
    assert (one.epoch, one.val_accuracy) == (two.epoch, two.val_accuracy)
    assert two.accuracy < one.accuracy


def test_one_seed_gives_one_answer_and_torch_state_is_left_alone():
    h, y, masks = three_classes()
    before = torch.get_rng_state()
    one, two, other = (probe_node_classification(h, y, masks, seed, epochs=5) for seed in (3, 3, 4))
    assert one == two
    assert one != other
    assert torch.equal(before, torch.get_rng_state())


def test_no_gradient_reaches_embeddings_and_none_is_needed_around():
    h, y, masks = three_classes()
    h.requires_grad_()
    with torch.no_grad():
        assert probe_node_classification(h, y, masks, epochs=30).accuracy > 0.6
    assert h.grad is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"h": torch.full((8, 2), torch.nan)}, "h must be finite"),
        ({"h": torch.zeros(7, 2)}, "h and y must be equally long"),
        ({"y": torch.zeros(8, dtype=torch.int64)}, "y must hold at least 2 classes"),
        ({"y": torch.full((8,), -1)}, "y must be integers"),
        ({"masks": [torch.ones(8, dtype=torch.bool)] * 2}, "masks must have 3 entries"),
        ({"masks": [torch.ones(8, dtype=torch.bool)] * 3}, "masks must not overlap"),
        ({"masks": [torch.zeros(8, dtype=torch.bool)] * 3}, "hold a node each"),
        ({"masks": [torch.zeros(8)] * 3}, "masks must be bool"),
        ({"epochs": 0}, "epochs"),
        ({"lr": 0.0}, "lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input_is_refused(change, says):
    part = torch.arange(8) % 4
    good = {"h": torch.eye(8)[:, :2], "y": torch.arange(8) // 4, "masks": [part == 0, part == 1, part == 2]}
    with pytest.raises(ValueError, match=says):
        probe_node_classification(**{**good, **change})
