"""What each arm is trained on and judged by; a handful of call sites in a smoke run says nothing of the claims."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from heldout.reproductions import code_continual as module
from heldout.reproductions.code_continual import SIZES, World, guessed, run, scores_of, stream, world_of
from heldout.tasks import CallWindows

SEED = 1000


def sites(names: list[str], contexts: list[list[int]]) -> CallWindows:
    """One site a row: its context, then a name of one token and its bracket, 9."""
    length = max(map(len, contexts)) + 2
    ids = torch.tensor([[*c, 7, 9, *[0] * (length - len(c) - 2)] for c in contexts])
    calls = torch.tensor([[row, len(c), len(c) + 1] for row, c in enumerate(contexts)])
    usages = torch.tensor([[row, 1, len(c) + 2] for row, c in enumerate(contexts)])
    return CallWindows(ids, ids, calls, usages, names, torch.tensor([9]), ["a.py"] * len(names))


@pytest.fixture
def two_groups() -> World:
    train = [sites(["a", "a", "b"], [[1, 2], [3, 2], [3, 4]]), sites(["c", "c", "a"], [[1, 2], [5, 2], [5, 2]])]
    test = [sites(["a", "b"], [[3, 2], [9, 4]]), sites(["c", "c", "b"], [[5, 2], [6, 6], [3, 4]])]
    return World(nn.Identity(), train, test, [{"b"}, {"c"}])


def test_a_constant_is_the_most_frequent_name_of_the_group_itself(two_groups):
    assert guessed("constant", two_groups) == pytest.approx(dict.fromkeys(("average", "learning"), (1 / 2 + 2 / 3) / 2))


def test_a_lookup_knows_all_groups_so_far_and_no_later_one(two_groups):
    # After the first group it says a, b; a, a, b. After both: a, b; c, of the two after [5, 2] the first; a, the most
    # frequent of all; b.
    found = guessed("lookup", two_groups)
    matrix = [[1, 1 / 3], [1, 2 / 3]]
    assert found["average"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["learning"] == pytest.approx((matrix[0][0] + matrix[1][1]) / 2)
    assert found["forgetting"] == pytest.approx(0)
    assert found["unseen_gap"] == pytest.approx(1 / 3)


def test_exclusive_counts_names_of_one_group_alone(two_groups):
    hits = [[[True, True], [False, False, True]], [[False, True], [True, True, False]]]
    found = scores_of(hits, two_groups)
    assert found["average"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["exclusive"] == pytest.approx(1)  # b of the first group, the two c of the second
    assert found["exclusive_forgetting"] == pytest.approx(0)
    assert found["forgetting"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("cell", ["stdlib", "packages"])
def test_no_file_is_both_trained_on_and_judged_by(cell):
    for parts in stream(cell, "smoke").tasks.values():
        files = [{function.file for function in some} for some in parts.values()]
        assert sum(map(len, files)) == len(set().union(*files))


def test_pretraining_functions_call_no_name_of_one_group_alone():
    made = stream("stdlib", "smoke")
    assert made.pretrain
    names = set().union(*made.exclusive_names().values())
    assert not any(f".{name}(" in text for text in made.pretrain for name in names)


def test_odd_seeds_have_the_groups_the_other_way_round_and_seeds_draw_other_windows():
    even, odd, later = (world_of("stdlib", seed, "smoke", "test") for seed in (SEED, SEED + 1, SEED + 2))
    assert odd.exclusive == even.exclusive[::-1] == later.exclusive[::-1]
    assert any(not torch.equal(a.ids, b.ids) for a, b in zip(even.train, later.train, strict=True))
    assert any(not torch.equal(a.ids, b.ids) for a, b in zip(even.test, later.test, strict=True))


def test_no_file_has_more_windows_than_it_may():
    found = world_of("stdlib", SEED, "smoke", "test")
    assert SIZES["laptop"].test > module.PER_FILE["test"]
    for each in found.test:
        assert max(each.files.count(file) for file in each.files) <= module.PER_FILE["test"]
        assert len(each) <= SIZES["smoke"].test


def test_everything_so_far_is_trained_on_for_as_many_steps_as_its_tasks(monkeypatch):
    asked, fit = [], module.fit_stream

    def spied(model, tasks, *rest, **options):
        asked.append((options.get("steps"), [len(task) for task in tasks]))
        return fit(model, tasks, *rest, **options)

    monkeypatch.setattr(module, "fit_stream", spied)
    run(module.study.arms["cumulative"], SEED, "smoke")
    sizes = [len(each) for each in world_of("stdlib", SEED, "smoke", "test").train]
    steps = SIZES["smoke"].steps
    assert asked[0] == (None, sizes)
    assert asked[1:] == [(steps * (t + 1), [sum(sizes[: t + 1])]) for t in range(len(sizes))]
    asked.clear()
    run(module.study.arms["naive"], SEED, "smoke")
    assert asked == [(steps, sizes)]


def test_the_base_is_what_zero_shot_judges_and_no_arm_changes_it(monkeypatch):
    base = world_of("stdlib", SEED, "smoke", "test").base
    before = {name: value.clone() for name, value in base.state_dict().items()}
    for name in ("naive", "cumulative", "replay 20"):
        run(module.study.arms[name], SEED, "smoke")
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_usages_of_packages_are_short_and_read_as_states():
    if module.study.needs["packages naive"]():
        pytest.skip("SmolLM2 is not here")
    found = world_of("packages", SEED, "smoke", "test")
    for each in (*found.train, *found.test):
        assert each.ids.shape[1] == module.TOKENS + 1
        assert each.inputs.shape == (*each.ids.shape, found.base.head.shape[1])
        assert each.ids.max() < len(found.base.head)
        assert replace(each, inputs=None).inputs is each.ids
    assert (found.train[0].usages[:, 1] == 1).all()
