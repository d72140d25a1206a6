import pytest
import torch
from torch import nn

from heldout.measure import axis_report
from heldout.tasks import (
    GCOG,
    QUESTION_OPERATORS,
    GCOGTrials,
    answer_question,
    gcog_axes,
    gcog_leaks,
    gcog_split,
    object_groups,
    operator_families,
    operator_filter,
    question_of,
)

WORLD = GCOG(grid=6, colors=6, shapes=6)


def planted(test, position, train, source):
    """The test set with one of its trials replaced by a training trial."""
    order = torch.arange(len(test))
    kept = test.at(order[order != position])
    return kept.joined([train.at(torch.tensor([source]))])


@pytest.fixture(scope="module")
def splits():
    return {
        name: gcog_split(name, WORLD, train=1500, test=200, seed=1000)
        for name in ("distractor", "systematic1", "systematic3", "productive")
    }


@pytest.mark.parametrize(
    ("name", "part", "by"),
    [
        ("distractor", "10 distractors", "distractors"),
        ("systematic1", "unseen pairs", "objects"),
        ("systematic3", "unseen pairs", "operators"),
        ("productive", "depth 5", "depth"),
        ("productive", "depth 7", "depth"),
    ],
)
def test_what_is_held_out_is_never_trained_on_and_a_planted_leak_is_found(splits, name, part, by):
    train, test = splits[name]["train"], splits[name][part]
    leaks = gcog_leaks(train, test, by)
    assert leaks.total == 0
    found = gcog_leaks(train, planted(test, 17, train, 3), by)
    assert found.combinations.tolist() == [len(test) - 1]


def test_test_sets_of_the_same_kind_share_combinations_but_no_trial(splits):
    for name, sets in splits.items():
        for part, test in sets.items():
            if part != "train":
                assert gcog_leaks(sets["train"], test, "trials").total == 0, (name, part)
                found = gcog_leaks(sets["train"], planted(test, 0, sets["train"], 5), "trials")
                assert found.combinations.tolist() == [len(test) - 1]
    sets = splits["systematic1"]
    assert len(gcog_leaks(sets["train"], sets["iid"], "objects").combinations) > 150


def test_a_trial_is_its_question_and_its_scene():
    trials = WORLD.trials(30, 3, 2, seed=1004)
    rules, mask, scenes, answers = trials.tensors
    assert gcog_leaks(trials, trials, "trials").combinations.tolist() == list(range(30))
    for tensors in ([rules.roll(1, 0), mask, scenes, answers], [rules, mask, scenes.roll(1, 0), answers]):
        assert gcog_leaks(trials, GCOGTrials(WORLD, tensors, trials.factors), "trials").total == 0


def test_values_that_training_lacks_are_told_apart_from_combinations():
    reds = torch.zeros(8, 6, 6, dtype=torch.bool)
    reds[:, 0] = True
    others = ~reds
    leaks = gcog_leaks(
        WORLD.trials(300, pair_filter=others, seed=1), WORLD.trials(20, pair_filter=reds, seed=2), "objects"
    )
    assert leaks.combinations.tolist() == []
    assert leaks.values.tolist() == list(range(20))


def test_object_groups_are_disjoint_and_those_of_the_code_share_a_quarter():
    mine, theirs = object_groups(10, 10), object_groups(10, 10, overlap=True)
    assert (mine[0] ^ mine[1]).all()
    assert mine.any(1).all()
    assert mine.any(2).all()  # every colour and shape in both groups: no answer is unseen
    assert int(theirs.all(0).sum()) == 25
    assert int(theirs.any(0).sum()) == 75


def test_with_the_groups_of_the_code_half_of_what_is_held_out_is_seen():
    sets = gcog_split("systematic1", WORLD, train=3000, test=400, overlap=True, seed=1001)
    share = len(gcog_leaks(sets["train"], sets["unseen pairs"], "objects").combinations) / 400
    assert 0.4 < share < 0.6


def test_operators_ask_for_their_group_and_crossed_for_the_other():
    groups = object_groups(4, 6)
    usual, crossed = operator_filter(groups), operator_filter(groups, crossed=True)
    assert usual[QUESTION_OPERATORS.index("GetShape")].equal(groups[0])
    assert usual[QUESTION_OPERATORS.index("GetColor")].equal(groups[1])
    assert (usual ^ crossed).all()


def test_families_of_training_and_test_share_no_test_above_a_leaf():
    train, test = (
        {(a, b) for tests, leaves in operator_families(crossed=crossed) for a in tests for b in leaves}
        for crossed in (False, True)
    )
    assert not train & test
    assert {a for a, _ in train} == {a for a, _ in test}
    assert {b for _, b in train} == {b for _, b in test} == set(QUESTION_OPERATORS)


def test_sets_hold_what_their_names_say(splits):
    sets = splits["distractor"]
    assert list(sets) == ["train", "iid", "10 distractors", "20 distractors", "30 distractors"]  # 36 cells
    assert sets["train"].factors["distractors"].unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert sets["20 distractors"].factors["distractors"].unique().tolist() == [20]
    deep = splits["productive"]
    assert deep["train"].factors["depth"].unique(return_counts=True)[1].tolist() == [750, 750]
    assert [deep[f"depth {depth}"].factors["depth"].unique().tolist() for depth in (1, 3, 5, 7)] == [[1], [3], [5], [7]]
    assert all(len(test) == 200 for sets in splits.values() for part, test in sets.items() if part != "train")


@pytest.fixture(scope="module")
def axes():
    return gcog_axes(GCOG(grid=5, colors=5, shapes=5), train=1500, test=150, seed=1002)


@pytest.mark.parametrize(
    ("part", "by"),
    [
        ("distractors", "distractors"),
        ("systematic1", "objects"),
        ("systematic3", "operators"),
        ("depth 5", "depth"),
        ("iid", "trials"),
    ],
)
def test_on_each_axis_one_thing_is_unseen_and_a_planted_leak_is_found(axes, part, by):
    train, test = axes["train"], axes[part]
    assert gcog_leaks(train, test, by).total == 0
    assert gcog_leaks(train, planted(test, 2, train, 4), by).combinations.tolist() == [len(test) - 1]
    others = {"objects", "operators", "depth"} - {by}
    if part != "iid":  # what is not asked for stays as in training
        for other in others - ({"operators"} if part in ("distractors", "systematic1") else set()):
            shared = len(gcog_leaks(train, test, other).combinations)
            assert shared > 0.95 * len(test), other


def test_one_training_set_has_both_depths_and_few_distractors(axes):
    assert axes["train"].factors["depth"].unique(return_counts=True)[1].tolist() == [750, 750]
    assert axes["train"].factors["distractors"].unique().tolist() == [0, 1, 2, 3]
    assert axes["distractors"].factors["distractors"].unique().tolist() == [10]
    depths = {name: each.factors["depth"].unique().tolist() for name, each in axes.items()}
    assert depths == {"train": [1, 3], "val": [1, 3], "iid": [1, 3], "distractors": [1], "systematic1": [1],
                      "systematic3": [3], "depth 5": [5]}  # fmt: skip
    assert axes["depth 5"].factors["distractors"].unique().tolist() == [0, 1, 2, 3]


def test_deeper_trees_keep_to_the_groups_of_training(axes):
    families = [(set(tests), set(leaves)) for tests, leaves in operator_families()]
    for row in axes["depth 5"].factors["operators"].tolist():
        names = [QUESTION_OPERATORS[number] for number in row]
        assert any(set(names[:3]) <= tests and set(names[3:]) <= leaves for tests, leaves in families), names


def test_no_trial_is_both_in_val_and_in_iid():
    """On 4 x 4 cells, of questions about the only object in a scene, they would share a dozen."""
    world = GCOG(grid=4, colors=5, shapes=5)
    sets = gcog_axes(world, train=1500, test=600, distractors=(0, 1), seed=1003)
    assert gcog_leaks(sets["val"], sets["iid"], "trials").total == 0
    assert gcog_leaks(sets["train"], sets["iid"], "trials").total == 0


class Executor(nn.Module):
    """Reads the tokens alone, and answers by the executor; or, of one operator, always wrongly."""

    def __init__(self, wrong=None):
        super().__init__()
        self.wrong = wrong

    def forward(self, rules, mask, scenes):
        logits = torch.zeros(len(rules), WORLD.classes)
        for row, tokens, kept, scene in zip(logits, rules, mask, scenes, strict=True):
            question = question_of(tokens[kept])
            answer = WORLD.class_of(answer_question(question, scene[:-1, :2].view(WORLD.grid, WORLD.grid, 2)))
            row[(answer + 1) % WORLD.classes if question.operator == self.wrong else answer] = 1.0
        return logits


def test_a_report_tells_splits_operators_and_depths_apart(splits):
    tests = {part: test for part, test in splits["productive"].items() if part != "train"}
    report = axis_report(Executor(wrong="Go"), tests)
    shallow = report["depth 1"]
    assert shallow.by["operator"]["Go"].estimate == 0.0
    assert shallow.balanced["operator"].estimate == pytest.approx(7 / 8)
    assert {part: list(found.by["depth"]) for part, found in report.items()} == {
        f"depth {d}": [d] for d in (1, 3, 5, 7)
    }
    assert all(report[f"depth {depth}"].accuracy.estimate == 1.0 for depth in (3, 5, 7))


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="world must have all"):
        gcog_split("distractor", GCOG(operators=("Go",)))
    for grid, name in ((2, "distractor"), (3, "productive")):
        with pytest.raises(ValueError, match="world must have at least"):
            gcog_split(name, GCOG(grid=grid))
    with pytest.raises(ValueError, match="world must have all"):
        gcog_axes(GCOG(operators=("Go",)))
    with pytest.raises(ValueError, match="distractors"):
        gcog_axes(WORLD, distractors=(3, 3))
    with pytest.raises(ValueError, match="world of train"):
        gcog_leaks(WORLD.trials(2), GCOG().trials(2), "depth")
    with pytest.raises(ValueError, match="train and test must have trees"):
        gcog_leaks(WORLD.trials(2), WORLD.trials(2), "operators")
    with pytest.raises(ValueError, match="groups"):
        operator_filter(torch.ones(3, 2, 2, dtype=torch.bool))
