"""Clinical pictures with prompts: boxes lie where things are, captions tell them apart, and what is held out is."""

import pytest
import torch

from heldout.tasks import IMAGING_DEVICES, IMAGING_TASKS, PROMPT_WORDS, promptable_imaging, prompted_shapes
from heldout.tasks.clinical import promptable_imaging as module

TASKS, DEVICES = list(IMAGING_TASKS), list(IMAGING_DEVICES)


@pytest.fixture(scope="module")
def sets():
    return promptable_imaging(TASKS, DEVICES, 60, 1000, unseen=["cell"])


def test_every_set_has_its_form(sets):
    assert list(sets) == [(task, device) for task in TASKS for device in DEVICES]
    for (task, _), made in sets.items():
        assert made.images.shape == (60, 3, 48, 48)
        assert made.images.dtype == torch.float32
        assert made.images.min() >= 0
        assert made.images.max() <= 1
        assert made.prompts.shape == (60, 4)
        assert made.boxes.shape == (60, 3, 4)
        look, shape = IMAGING_TASKS[task]
        for caption, row in zip(made.captions, made.prompts.tolist(), strict=True):
            assert caption == "a " + " ".join(PROMPT_WORDS[word] for word in row)
            assert caption.split()[2:] == [look, shape, "spot"]
        counts = torch.tensor([len(each) for each in made.targets])
        assert set(counts.tolist()) == {0, 1, 2, 3}
        assert 2 <= (counts == 0).sum() <= 26


def test_sizes_are_those_of_the_caption_and_boxes_do_not_overlap(sets):
    for made in sets.values():
        for caption, there in zip(made.captions, made.targets, strict=True):
            sides = 48 * (there[:, 2:] - there[:, :2])
            low, high = (8, 17) if "large" in caption else (5, 11)
            assert ((sides >= low) & (sides <= high)).all()
            for i, a in enumerate(there):
                for b in there[:i]:
                    assert (torch.minimum(a, b)[2:] <= torch.maximum(a, b)[:2]).any()


def middles(images, boxes, part):
    """Mean grey of the middle of each box, or of a frame about it."""
    found = []
    for image, there in zip(images, boxes, strict=True):
        for left, top, right, bottom in (48 * there).round().long().tolist():
            grey = image.mean(0)
            inside = torch.zeros(48, 48, dtype=torch.bool)
            if part == "middle":
                y, x = (top + bottom) // 2, (left + right) // 2
                inside[y - 1 : y + 1, x - 1 : x + 1] = True
            elif part == "box":
                inside[top:bottom, left:right] = True
            else:
                inside[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = True
                inside[top:bottom, left:right] = False
            found.append(grey[inside].mean())
    return torch.stack(found)


def test_things_look_as_they_are_called():
    for device in DEVICES:
        made = promptable_imaging(TASKS, [device], 80, 1001)
        for task, sign in (("lesion", -1), ("nodule", 1), ("cell", -1)):
            pictures = made[task, device]
            middle, box, frame = (middles(pictures.images, pictures.targets, p) for p in ("middle", "box", "frame"))
            assert (sign * (box - frame) > 0).float().mean() > 0.9
            if task == "cell":  # a ring is as its surroundings in the middle
                assert (middle - box).mean() > 0.04
        polyps = made["polyp", device]
        box, frame = (middles(polyps.images, polyps.targets, p) for p in ("box", "frame"))
        assert (box - frame).abs().mean() < 0.06  # lit on one side, dark on the other


def test_devices_differ_and_a_set_does_not_depend_on_what_else_is_asked_for(sets):
    means = torch.stack([sets["lesion", device].images.mean((0, 2, 3)) for device in DEVICES])
    assert torch.pdist(means).min() > 0.1
    alone = promptable_imaging(["lesion"], ["scanner"], 60, 1000, unseen=["cell"])["lesion", "scanner"]
    assert torch.equal(alone.images, sets["lesion", "scanner"].images)
    assert torch.equal(alone.boxes, sets["lesion", "scanner"].boxes)
    other = promptable_imaging(["lesion"], ["scanner"], 60, 1001, unseen=["cell"])["lesion", "scanner"]
    assert not torch.equal(alone.images, other.images)
    assert not torch.equal(sets["lesion", "endoscope"].boxes, sets["lesion", "scanner"].boxes)


def test_things_stand_out_by_the_contrast_of_the_device(monkeypatch):
    def taken(contrast):
        plain = IMAGING_DEVICES["scanner"]._replace(contrast=contrast, noise=0.0)
        monkeypatch.setitem(module.IMAGING_DEVICES, "scanner", plain)
        return promptable_imaging(["nodule"], ["scanner"], 10, 3)["nodule", "scanner"].images

    ground, weak, strong = taken(0.0), taken(0.2), taken(0.4)
    assert (weak - ground).abs().max() > 0.03
    torch.testing.assert_close(strong - ground, 2 * (weak - ground), atol=1e-5, rtol=0)


def drawn_things(monkeypatch, make):
    """(look, shape) of all that is drawn and shown."""
    seen, add = set(), module._Canvas.add

    def note(self, things, large, cells, shown):
        seen.update(map(tuple, things[shown].tolist()))
        return add(self, things, large, cells, shown)

    monkeypatch.setattr(module._Canvas, "add", note)
    made = make()
    return made, {(module._LOOKS[look], module._SHAPES[shape]) for look, shape in seen}


def test_what_is_unseen_is_neither_asked_nor_beside(monkeypatch):
    _, seen = drawn_things(monkeypatch, lambda: promptable_imaging(TASKS[:3], DEVICES[:2], 200, 1000, unseen=["cell"]))
    assert IMAGING_TASKS["cell"] not in seen
    assert set(IMAGING_TASKS.values()) - {IMAGING_TASKS["cell"]} <= seen
    _, seen = drawn_things(monkeypatch, lambda: promptable_imaging(["polyp"], ["scanner"], 200, 1000))
    assert IMAGING_TASKS["cell"] in seen


def test_nothing_beside_is_what_the_prompt_asks_for(monkeypatch):
    made, seen = drawn_things(monkeypatch, lambda: promptable_imaging(["nodule"], ["scanner"], 200, 3, empty=1.0))
    assert not made["nodule", "scanner"].boxes.any()
    assert IMAGING_TASKS["nodule"] not in seen
    assert len(seen) == 8


def test_shapes_to_begin_with_have_each_word_but_no_combination_of_a_task(monkeypatch):
    made, seen = drawn_things(monkeypatch, lambda: prompted_shapes(600, seed=1000))
    assert not set(IMAGING_TASKS.values()) & seen
    words = {word for caption in made.captions for word in caption.split()[1:]}
    assert words == set(PROMPT_WORDS) - {""}
    for look, shape in IMAGING_TASKS.values():  # each attribute alone, never both
        assert any(look in caption for caption in made.captions)
        assert any(shape in caption for caption in made.captions)
        assert not any(f"{look} {shape}" in caption for caption in made.captions)


def test_other_sizes_and_bad_input():
    assert promptable_imaging(["cell"], ["scanner"], 2, 0, size=32)["cell", "scanner"].images.shape == (2, 3, 32, 32)
    for name, call in {
        "tasks": lambda: promptable_imaging(["wart"], ["scanner"], 2),
        "domains": lambda: promptable_imaging(["cell"], ["phone"], 2),
        "unseen": lambda: promptable_imaging(["cell"], ["scanner"], 2, unseen=["wart"]),
        "tasks must not be empty": lambda: promptable_imaging([], ["scanner"], 2),
        "n must": lambda: promptable_imaging(["cell"], ["scanner"], 0),
        "empty": lambda: promptable_imaging(["cell"], ["scanner"], 2, empty=1.5),
        "size": lambda: prompted_shapes(2, size=8),
    }.items():
        with pytest.raises(ValueError, match=name):
            call()
