import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.train import StepLog
from heldout.train.semi_supervised.loop import class_logits, fit_batches, labelled_batch, unlabelled_batch


class Noted:
    """A trainer that writes down what it is given."""

    def __init__(self, rewards=()):
        self.predictor = nn.Dropout()
        self.given, self.modes, self.rewards = [], [], iter(rewards)

    def step(self, labelled, unlabelled, validation=None):
        self.given.append((labelled, unlabelled, validation))
        self.modes.append(self.predictor.training)
        return StepLog(labelled_loss=float(len(self.given)), reward=next(self.rewards, None))


def test_an_epoch_is_a_pass_over_the_unlabelled_batches_and_the_others_begin_again():
    trainer = Noted()
    trainer.predictor.eval()
    history = fit_batches(trainer, ["a", "b"], [1, 2, 3], ["v"], 2)
    assert trainer.given == [(name, number, "v") for name, number in zip("ababab", [1, 2, 3] * 2, strict=True)]
    assert history == [{"epoch": 1.0, "labelled_loss": 2.0}, {"epoch": 2.0, "labelled_loss": 5.0}]
    assert all(trainer.modes)
    assert not trainer.predictor.training


def test_the_share_of_zero_rewards_is_of_the_steps_that_have_one():
    trainer = Noted([0.0, 0.5, 0.0, 0.0])
    seen = []
    history = fit_batches(trainer, ["a"], range(5), None, 1, on_epoch=seen.append)
    assert history[0]["zero_rewards"] == 0.75
    assert history[0]["reward"] == 0.125
    assert seen == history
    assert trainer.given[0][2] is None


def test_a_look_that_evaluates_does_not_stop_training():
    trainer = Noted()
    fit_batches(trainer, ["a"], [1], None, 3, on_epoch=lambda _: trainer.predictor.eval())
    assert trainer.modes == [True] * 3


@pytest.mark.parametrize("name", ["labelled", "unlabelled", "validation"])
def test_no_batches_and_what_is_over_after_one_pass_are_refused(name):
    given = {"labelled": ["a"], "unlabelled": [1], "validation": ["v"]}
    with pytest.raises(ValueError, match=f"the {name} data yields no batches"):
        fit_batches(Noted(), **(given | {name: []}), epochs=1)
    with pytest.raises(ValueError, match=f"the {name} batches must be there more than once"):
        fit_batches(Noted(), **(given | {name: iter([1])}), epochs=1)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        fit_batches(Noted(), **given, epochs=0)


def test_one_output_is_the_log_odds_of_class_1():
    z = torch.tensor([[2.0], [-1.0], [0.3]])
    targets = torch.tensor([1, 0, 0])
    for outputs in (z, z[:, 0]):
        logits = class_logits(outputs)
        assert logits.softmax(1)[:, 1].tolist() == pytest.approx(z.sigmoid()[:, 0].tolist())
        expected = F.binary_cross_entropy_with_logits(z[:, 0], targets.float())
        assert F.cross_entropy(logits, targets).item() == pytest.approx(expected.item())
    assert class_logits(torch.eye(3)).shape == (3, 3)
    with pytest.raises(ValueError, match="must give logits"):
        class_logits(torch.zeros(2, 3, 4))


def test_labels_may_be_real_numbers_0_and_1():
    model = nn.Linear(1, 1)
    for labels in (torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [1.0]]), torch.tensor([False, True])):
        assert labelled_batch(model, (torch.zeros(2, 1), labels))[1].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"0\.0 and 1\.0"):
        labelled_batch(model, (torch.zeros(2, 1), torch.tensor([0.5, 1.0])))
    with pytest.raises(ValueError, match="at least one example"):
        labelled_batch(model, (torch.zeros(0, 1), torch.zeros(0)))
    inputs, labels = labelled_batch(model, {"input_ids": torch.ones(2, 3), "labels": torch.tensor([1, 0])})
    assert list(inputs) == ["input_ids"]


def test_unlabelled_batches_lose_labels_and_may_have_texts_of_another_length():
    ids = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3)}
    assert unlabelled_batch({**ids, "labels": torch.ones(2)}) == ids
    assert unlabelled_batch({**ids, "extra": 1}, {"input_ids": torch.ones(1, 7)}) == {"input_ids": ids["input_ids"]}
    with pytest.raises(ValueError, match="form of labelled ones"):
        unlabelled_batch(ids, {"pixel_values": torch.ones(1)})
    with pytest.raises(ValueError, match="has the shape"):
        unlabelled_batch(torch.ones(2, 3), torch.ones(2, 4))
