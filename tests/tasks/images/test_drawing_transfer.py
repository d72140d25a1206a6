import pytest
import torch
from torch import nn

from heldout.sources import ENET, STYLE, TAGS, missing
from heldout.tasks import (
    DRAWING_TASKS,
    Drawings,
    DrawingTags,
    FixedStatistics,
    drawing_tasks,
    drawing_transfer,
    retrieval,
    why_no_drawing_transfer,
)
from heldout.tasks.images import drawing_transfer as module

SOURCES = [STYLE, TAGS, ENET]


def naive_retrieval(features):
    right = []
    for style in range(len(features)):
        for thing in range(len(features[0])):
            means = []
            for other in range(len(features[0])):
                rest = [features[s][other] / features[s][other].norm() for s in range(len(features)) if s != style]
                mean = sum(rest)
                means.append(mean / mean.norm())
            asked = features[style][thing] / features[style][thing].norm()
            right.append(max(range(len(means)), key=lambda other: float(asked @ means[other])) == thing)
    return 100 * sum(right) / len(right)


def test_retrieval_is_the_nearest_mean_of_the_other_styles():
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(12, 5, generator=generator)
    features = things + torch.randn(4, 12, 5, generator=generator)
    found = retrieval(nn.Identity(), features)
    assert found == pytest.approx(naive_retrieval(features))
    assert 20 < found < 100
    assert retrieval(nn.Identity(), features * torch.rand(4, 12, 1, generator=generator)) == pytest.approx(found)


def test_retrieval_asks_in_evaluation_mode_and_leaves_the_mode():
    model = nn.Sequential(nn.Dropout(0.9)).train()
    assert retrieval(model, torch.eye(6).expand(3, 6, 6)) == 100
    assert model.training


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 0, 2), (4, 3)])
def test_retrieval_needs_two_styles_of_things(shape):
    with pytest.raises(ValueError, match="at least 2 styles"):
        retrieval(nn.Identity(), torch.zeros(shape))


def test_fixed_statistics_stay_while_weights_learn():
    net = FixedStatistics(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Dropout())
    before = {name: value.clone() for name, value in net.named_buffers()}
    net.train()(torch.randn(8, 3)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert net[0][1].weight.grad is not None
    assert net[1].training
    assert not net.eval()[1].training


@pytest.fixture
def small(monkeypatch):
    """Twenty things of two classes and nine others, in four styles, on a network and inputs that need no package."""
    everything = tuple(f"{thing:02}" for thing in range(29))
    names = everything[:20]

    def pictures(label, size):
        shown = everything if label == "name" else names
        things = torch.arange(len(shown)).repeat(4)
        images = torch.zeros(len(things), 3, size, size, dtype=torch.uint8)
        styles = torch.arange(4).repeat_interleave(len(shown))
        return Drawings(images, things if label == "name" else things % 2, styles, things, ("a", "b"), shown)

    noise = torch.randn(4, 29, 6, generator=torch.Generator().manual_seed(0))
    inputs = noise + 6.0 * (torch.arange(29) % 2).view(1, 29, 1)

    class Net(FixedStatistics):
        @property
        def head(self):
            return self[-1]

    monkeypatch.setattr(module, "_pictures", pictures)
    monkeypatch.setattr(module, "_lower_outputs", lambda size: inputs)
    monkeypatch.setattr(module, "_upper", lambda n, seed: Net(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, n)))
    return inputs


def places(inputs, rows):
    """Style and thing of each row."""
    return [tuple((inputs == row).all(-1).nonzero()[0].tolist()) for row in rows]


def test_things_are_dealt_once_and_the_target_shows_those_of_the_source_test(small):
    problem = drawing_transfer(2, seed=1)
    train, val, source, target = (places(small, part[0]) for part in problem[:4])
    assert {style for style, _ in train} == {style for style, _ in val} == {style for style, _ in source} == {0, 1, 3}
    assert {style for style, _ in target} == {2}
    dealt = [{thing for _, thing in part} for part in (train, val, source)]
    assert sorted(thing for part in dealt for thing in part) == list(range(20))
    assert {thing for _, thing in target} == dealt[2]
    assert [len(part) for part in dealt] == [10, 2, 8]
    assert problem.train[1].tolist() == [thing % 2 for _, thing in train]


def test_the_others_are_things_outside_of_the_classes_dealt_into_two_parts(small):
    problem = drawing_transfer(2, seed=1)
    for style in range(4):
        parts = [places(small, part[style]) for part in (problem.others_val, problem.others_test)]
        assert [len(part) for part in parts] == [4, 5]
        assert sorted(parts[0] + parts[1]) == [(style, thing) for thing in range(20, 29)]


@pytest.fixture
def tagged(small, monkeypatch):
    """Thing 0 to 12: birds; 13 to 15, too few: bugs; 16 to 19, of no task: faces; then 12 fruits."""
    everything = tuple(f"{thing:02}" for thing in range(32))
    inputs = torch.randn(4, 32, 6, generator=torch.Generator().manual_seed(0))

    def pictures(label, size):
        things = torch.arange(32).repeat(4)
        return Drawings(things, things, torch.arange(4).repeat_interleave(32), things, everything, everything)

    def tags(names):
        kinds = [("animals-nature", "animal-bird")] * 13 + [("animals-nature", "animal-bug")] * 3
        kinds += [("smileys-emotion", "face")] * 4 + [("food-drink", "food-fruit")] * 12
        return {name: DrawingTags(name, (), *kind) for name, kind in zip(names, kinds, strict=True)}

    monkeypatch.setattr(module, "_pictures", pictures)
    monkeypatch.setattr(module, "_lower_outputs", lambda size: inputs)
    monkeypatch.setattr(module, "drawing_tags", tags)
    return inputs


def test_tasks_are_the_groups_and_their_classes_the_subgroups_with_enough_things(tagged):
    problem = drawing_tasks(1, seed=0)
    assert dict(zip(DRAWING_TASKS, problem.classes, strict=True)) == {
        "objects": (),
        "travel-places": (),
        "food-drink": ("food-fruit",),
        "animals-nature": ("animal-bird",),
    }
    for inputs, task, label in (problem.train, problem.val, problem.test, problem.unseen):
        wanted = [3 if thing < 13 else 2 for _, thing in places(tagged, inputs)]
        assert task.tolist() == wanted
        assert label.unique().tolist() == [0]
    assert len(problem.upper) == 2


def test_no_thing_of_a_task_is_in_two_parts_and_the_unseen_style_shows_those_of_the_test(tagged):
    problem = drawing_tasks(1, seed=0)
    train, val, test, unseen = (places(tagged, part[0]) for part in problem[:4])
    assert {style for style, _ in train + val + test} == {0, 2, 3}
    assert {style for style, _ in unseen} == {1}
    dealt = [{thing for _, thing in part} for part in (train, val, test)]
    assert sorted(thing for part in dealt for thing in part) == [*range(13), *range(20, 32)]
    assert [len(part) for part in dealt] == [14, 3, 8]
    assert {thing for _, thing in unseen} == dealt[2]


def test_an_unknown_style_of_tasks_is_refused(tagged):
    with pytest.raises(ValueError, match=r"held_out must be one of the styles \[0, 1, 2, 3\], got 4"):
        drawing_tasks(4)


def test_what_is_missing_is_named():
    assert why_no_drawing_transfer() == missing(SOURCES)


@pytest.mark.skipif(bool(missing(SOURCES)), reason=missing(SOURCES))
def test_the_upper_part_is_the_end_of_the_imagenet_network():
    from heldout.nn import efficientnet_lite0

    upper, whole = module._upper(3, 0), efficientnet_lite0(num_classes=3, seed=0)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    names = [name for name, _ in whole.named_children()]
    lower = whole[: names.index("stage6")]
    with torch.no_grad():
        torch.testing.assert_close(upper(lower(images)), whole(images))
