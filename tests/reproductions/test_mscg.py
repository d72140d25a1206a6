"""What the study trains on and what is read off it."""

import pytest
import torch

from heldout.reproductions import mscg
from heldout.reproductions.mscg import ARMS, Size, primitives, right, world_of

SEED = 1000


@pytest.fixture(scope="module")
def world():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mscg.SIZES, ("letters", "laptop"), Size(300, 60, 5, 8))
        return world_of.__wrapped__("letters", SEED, "laptop")


def test_no_example_of_training_has_a_held_out_pair_and_every_novel_one_has(world):
    assert world.leaks == 0
    held = world.questions.held_out_pairs(8, seed=SEED)
    for name, batch in {"train": world.train, "val": world.val, **world.tests}.items():
        objects = batch[3]
        here = objects[:, :, 0] >= 0
        novel = (held[objects[:, :, 0], objects[:, :, 1]] & here).any(1)
        if name in ("VV", "LV"):
            assert novel.all()
        elif name == "LL":
            yes = batch[-1] == world.questions.answers.index("yes")
            assert torch.equal(novel, yes)
        else:
            assert not novel.any()


def test_primitives_are_the_words_and_the_regions_of_one_meaning(world):
    batch = [column[:40] for column in world.train]
    found, names = primitives(batch, world.questions), [*world.questions.colors, *world.questions.shapes]
    length = batch[0].shape[1]
    for row, position, key, modality in zip(*(column.tolist() for column in found[:4]), strict=True):
        if modality == 0:
            assert world.questions.vocabulary[int(batch[0][row, position])] == world.questions.vocabulary[key + 1]
        else:
            color, shape, _ = batch[3][row, position - length].tolist()
            assert names[key] in (world.questions.colors[color], world.questions.shapes[shape])
    words = [world.questions.vocabulary[key + 1] for key in found.keys[found.modalities == 0].tolist()]
    assert {"what", "is", "the", "thing"}.isdisjoint(words)
    assert len(found.keys[found.modalities == 1]) == 2 * int((batch[3][:, :, 0] >= 0).sum())


def test_what_is_measured_is_what_a_model_gets_right(world, monkeypatch):
    class Knows:
        """Right about seen pairs and about questions whether there is one."""

        def encode(self, batch):
            return batch[-1]

        def answer(self, features, batch):
            held = world.questions.held_out_pairs(8, seed=SEED)
            objects = batch[3]
            novel = (held[objects[:, :, 0], objects[:, :, 1]] & (objects[:, :, 0] >= 0)).any(1)
            wrong = novel & (batch[-1] > 1)
            return torch.nn.functional.one_hot(torch.where(wrong, 0, features), len(world.questions.answers)).double()

    monkeypatch.setattr(mscg, "world_of", lambda *_: world)
    monkeypatch.setattr(mscg, "trained", lambda *_: Knows())
    found = mscg.run(ARMS["retrieval"], SEED, "laptop")
    assert found["iid"] == found["LL"] == found["val"] == 1.0
    assert found["LV"] == found["VV"] == 0.0
    assert found["novel"] == pytest.approx(1 / 3)
    assert found["gap_LV"] == found["largest_gap"] == 1.0
    assert found["gap_LL"] == 0.0


def test_the_arms_differ_by_what_they_retrieve_alone(world, monkeypatch):
    seen = {}
    real = mscg.RetrievalAugmentedTraining

    def noted(*arguments, **options):
        made = real(*arguments, **options)
        seen[name] = made
        return made

    monkeypatch.setattr(mscg, "RetrievalAugmentedTraining", noted)
    size = Size(300, 60, 4, 8)
    models = {}
    for name in ("baseline", "retrieval", "own modality", "random"):
        models[name] = mscg.trained(ARMS[name], world, size, SEED)
    assert (seen["baseline"].mix, seen["retrieval"].mix, seen["random"].mix) == (0.0, 0.3, 0.3)
    assert (seen["own modality"].databases, seen["retrieval"].databases) == ("own", "all")
    assert (seen["random"].retrieval, seen["retrieval"].retrieval) == ("random", "key")
    for made in seen.values():
        assert made.memory.count("vision") > made.memory.count("language") > 0
    outputs = [model.answer(model.encode(world.val), world.val).detach() for model in models.values()]
    assert all(not a.allclose(b, atol=1e-3) for i, a in enumerate(outputs) for b in outputs[:i])
    assert right(models["baseline"], world.val).dtype == torch.bool
