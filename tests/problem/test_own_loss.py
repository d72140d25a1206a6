"""A loss that the file names: the plain one takes no Method away, one of its own only those that would replace it."""

import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout import Method, Splits
from heldout.method import Added
from heldout.methods import available, parse
from heldout.problem import Problem, check_problem, inapplicable, kind_of
from heldout.problem.own_loss import CALLS_IT, REPLACES_IT

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 6, generator=G), torch.arange(40) % 3
REAL = torch.randn(40, 2, generator=G)
LABELS = (torch.rand(40, 3, generator=G) > 0.5).float()
START = {"weight": torch.zeros(3, 6), "bias": torch.zeros(3)}
REPLACING = ("class_balanced", "label_smoothing", "learned_weights", "logit_adjustment", "mixup", "ps_kd")


class Smoothed(nn.CrossEntropyLoss):
    """A subclass, which may do anything."""

    def forward(self, outputs, targets):
        return super().forward(outputs, targets) + outputs.square().mean()


def problem(loss, targets=Y, outputs=3, **options):
    def make():
        return nn.Linear(6, outputs) if outputs else nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))

    kept = torch.arange(40) % 3 != 1
    kept[30:] = True  # so that classes are of unequal size
    splits = Splits(train=(X[kept], targets[kept]), val=(X, targets), test={"iid": (X, targets)},
                    groups=torch.arange(int(kept.sum())) % 2, initial_state=START)  # fmt: skip
    if outputs != 3 or targets is not Y:
        splits = Splits(train=splits.train, val=splits.val, test=splits.test)
    recipe = {"batch_size": 8, "epochs": 1, **({} if loss is None else {"loss": loss})}
    return Problem(Path("mine.py"), make, splits, recipe, **options)


def refused(given, names=None):
    return {name: reason for name in names or available() if (reason := inapplicable(given, parse(name)))}


PLAIN = [nn.CrossEntropyLoss(), F.cross_entropy, nn.CrossEntropyLoss(size_average=True)]
OWN = [
    nn.CrossEntropyLoss(weight=torch.ones(3)), nn.CrossEntropyLoss(label_smoothing=0.1),
    nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(ignore_index=0), nn.MultiMarginLoss(), Smoothed(),
    functools.partial(F.cross_entropy, reduction="mean"), lambda o, t: F.cross_entropy(o, t),
]  # fmt: skip


@pytest.mark.parametrize("loss", PLAIN, ids=lambda loss: getattr(loss, "__name__", type(loss).__name__))
def test_plain_cross_entropy_is_no_loss_of_ones_own(loss):
    given, without = problem(loss), problem(None)
    assert not given.own_loss
    assert given.as_given
    assert "loss" not in given.recipe
    assert refused(given, REPLACING) == {}
    assert given.fit(None, seed=1).predict(X).equal(without.fit(None, seed=1).predict(X))


@pytest.mark.parametrize("loss", OWN, ids=lambda loss: type(loss).__name__)
def test_what_is_not_known_to_be_plain_is_the_files_own(loss):
    given = problem(loss)
    assert given.own_loss
    assert given.recipe["loss"] is loss


def test_methods_that_replace_an_own_loss_go_and_say_why():
    given, without = problem(nn.CrossEntropyLoss(label_smoothing=0.1)), problem(None)
    gone = {name: reason for name, reason in refused(given).items() if name not in refused(without)}
    assert set(gone) == {"bang", *REPLACING, "group_dro", "l2r_gnn"} - {"mixup"}
    assert all(reason.startswith("it replaces the loss, and the file defines its own: ") for reason in gone.values())
    assert "shares of several classes" in gone["ps_kd"]
    assert "each example alone" in gone["group_dro"]
    assert "weighs the classes" in gone["class_balanced"]


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()])
def test_a_changed_module_is_no_plain_one(loss):
    plain = kind_of(torch.zeros(4, 3), Y) if isinstance(loss, nn.CrossEntropyLoss) else kind_of(torch.zeros(2), Y[:2])
    assert plain.is_plain(loss)
    loss.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not plain.is_plain(loss)
    other = type(loss)()
    other.forward = lambda outputs, targets: outputs.mean()
    assert not plain.is_plain(other)


def test_each_kind_has_its_plain_loss_and_no_other():
    one = kind_of(torch.zeros(4, 1), Y[:4] % 2)
    two, several = kind_of(torch.zeros(4, 2), Y[:4] % 2), kind_of(torch.zeros(4, 3), LABELS)
    real, flat = kind_of(torch.zeros(4, 2), REAL), kind_of(torch.zeros(4, 1), REAL[:, 0])
    tokens = kind_of(torch.zeros(4, 5, 3), torch.zeros(4, 5, dtype=torch.int64))
    one_hot = kind_of(torch.zeros(4, 3), torch.eye(3))
    plain = {
        F.cross_entropy: [two, one_hot], nn.CrossEntropyLoss(): [two, one_hot],
        F.binary_cross_entropy_with_logits: [one, several], nn.BCEWithLogitsLoss(): [one, several],
        F.mse_loss: [real], nn.MSELoss(): [real],
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)): [], nn.BCEWithLogitsLoss(reduction="sum"): [],
        nn.MSELoss(reduction="sum"): [], nn.L1Loss(): [], F.l1_loss: [], nn.NLLLoss(): [],
    }  # fmt: skip
    kinds = [one, two, several, real, flat, tokens, one_hot]
    for loss, own in plain.items():
        assert [kind for kind in kinds if kind.is_plain(loss)] == [kind for kind in kinds if kind in own], loss


@pytest.mark.parametrize(("loss", "targets", "outputs"), [
    (nn.MSELoss(), REAL, 2), (F.mse_loss, REAL, 2), (nn.BCEWithLogitsLoss(), LABELS, 3),
    (nn.BCEWithLogitsLoss(), Y % 2, 1), (F.binary_cross_entropy_with_logits, Y % 2, 0),
    (nn.CrossEntropyLoss(), Y % 2, 2),
])  # fmt: skip
def test_the_plain_loss_of_another_kind_takes_nothing_away(loss, targets, outputs):
    given, without = problem(loss, targets, outputs), problem(None, targets, outputs)
    assert not given.own_loss
    assert refused(given, REPLACING) == refused(without, REPLACING)
    assert "mixup" not in refused(given, ["mixup"])
    assert given.fit(None, seed=1).predict(X).equal(without.fit(None, seed=1).predict(X))


def test_an_own_loss_of_real_numbers_keeps_mixup_and_one_of_whole_numbers_does_not():
    assert refused(problem(nn.L1Loss(), REAL, 2), ["mixup"]) == {}
    counts = problem(nn.L1Loss(), (Y + 5)[:, None].expand(-1, 2).contiguous(), 2, asked_kind="regression")
    assert "knows whole numbers" in refused(counts, ["mixup"])["mixup"]
    several = problem(nn.BCEWithLogitsLoss(pos_weight=torch.full((3,), 2.0)), LABELS)
    assert "knows whole numbers" in refused(several, ["mixup"])["mixup"]


def test_mixup_and_the_penalties_train_under_the_files_own_loss():
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0, 1.0]))
    given = problem(weighted)
    assert "mixup" not in refused(given, ["mixup"])
    assert "replaces" not in refused(given, ["fixmatch"])["fixmatch"]
    counts = []
    for each in (given, problem(None)):
        each.given_recipe |= {"epochs": 20, "optimizer": functools.partial(torch.optim.SGD, lr=0.3)}
        answers = each.fit(parse("mixup(alpha=1.0)"), seed=0).predict(X).argmax(1)
        counts.append(int((answers == 1).sum()))
    assert counts[0] > counts[1]  # a class that weighs nine times as much is answered more often


def test_methods_of_the_file_are_its_authors_to_judge_and_unknown_ones_are_refused():
    mine = Method("mine", loss=lambda run, batch: run.objective(batch.logits, batch.targets))
    given = problem(nn.MultiMarginLoss(), own_methods={"mine": mine})
    assert inapplicable(given, parse("mine", given.own_methods)) is None
    assert inapplicable(given, parse("mine + sam", given.own_methods)) is None
    assert inapplicable(given, mine.renamed("other")) == "it replaces the loss, and the file defines its own"
    assert "weighs the classes" in inapplicable(given, parse("sam + class_balanced(beta=0.9)"))
    assert inapplicable(given, parse("sam + mixup(alpha=0.4)")) is None


def test_every_method_that_replaces_the_loss_is_judged():
    replacing = {n for n in available() if (m := parse(n)).loss is not None and not isinstance(m.loss, Added)}
    assert replacing == {*CALLS_IT, *REPLACES_IT}


def test_a_function_that_gives_the_plain_loss_is_told_of():
    said = check_problem(problem(lambda o, t: F.cross_entropy(o, t)))
    assert [each for each in said if "write loss = torch.nn.functional.cross_entropy" in each]
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3])), nn.MultiMarginLoss()):
        assert not [each for each in check_problem(problem(loss)) if "the file's loss" in each]
    said = check_problem(problem(lambda o, t: F.mse_loss(o, t), REAL, 2))
    assert [each for each in said if "write loss = torch.nn.functional.mse_loss" in each]
    assert not [each for each in check_problem(problem(nn.SmoothL1Loss(), REAL, 2)) if "the file's loss" in each]
    said = check_problem(problem(lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t.float()), Y % 2, 1))
    assert [each for each in said if "binary_cross_entropy_with_logits" in each]


def test_a_loss_that_compares_each_output_with_each_target_is_told_of():
    said = check_problem(problem(nn.MSELoss(), REAL[:, 0], 1))
    assert [each for each in said if "outputs (batch, 1) and targets (batch)" in each]
    assert not [each for each in check_problem(problem(nn.MSELoss(), REAL[:, :1], 1)) if "the file's loss" in each]
