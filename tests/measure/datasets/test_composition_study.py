"""A study of what data sets teach a target that they share elements with."""

import numpy as np
import pytest

from heldout.measure import CompositionStudy, composition_study

CATALOG = {
    f"{modality}-{area}-{task}": {"modality": modality, "area": area, "task": task}
    for modality in "mno" for area in "abc" for task in "tuv"
}  # fmt: skip
DATASETS = {name: [(name, i) for i in range(20)] for name in CATALOG}


def known(data, seed):
    """A model that knows which elements it has seen, and how many examples of each data set."""
    rows = [] if data is None else [data[i] for i in range(len(data))]
    return {"elements": {e for name, _ in rows for e in name.split("-")}, "rows": rows, "seed": seed}


def share(model, target):
    return len(model["elements"] & set(target.split("-"))) / 3


def test_arms_see_the_elements_that_they_should_and_never_the_target():
    seen = []

    def train(data, seed):
        seen.append(known(data, seed))
        return seen[-1]

    arms = ("base", "related", "unrelated", "all", "all-related", "without modality", "without task")
    found = composition_study(train, share, DATASETS, CATALOG, ["m-a-t", "o-c-v"], arms=arms, n=30, seeds=(1000, 1001))
    expected = {"base": 0, "related": 1, "unrelated": 0, "all": 1, "all-related": 1} | dict.fromkeys(arms[5:], 2 / 3)
    for arm in arms:
        assert found.mean(arm) == pytest.approx(expected[arm])
    order = [(target, seed, arm) for target in ("m-a-t", "o-c-v") for seed in (1000, 1001) for arm in arms]
    for (target, seed, arm), model in zip(order, seen, strict=True):
        assert all(name != target for name, _ in model["rows"])
        size = 0 if arm == "base" else min(30, 20 * len(found.groups[target, seed, arm]))
        assert len(set(model["rows"])) == len(model["rows"]) == size
        assert model["seed"] == seed
    assert found.gain("related", "unrelated").estimate == 1
    assert len(found.table()) == 2 * len(arms)


def test_shots_are_the_targets_own_and_come_besides():
    counts = []
    composition_study(
        lambda data, seed: known(data, seed),
        lambda model, target: counts.append(sum(name == target for name, _ in model["rows"])) or 0.0,
        DATASETS, CATALOG, ["m-a-t"], arms=("base", "related"), n=10, shots=(0, 4),
    )  # fmt: skip
    assert counts == [0, 4, 0, 4]


def test_gains_are_drawn_over_targets_not_over_seeds():
    rng = np.random.default_rng(1000)
    effects = {f"t{k}": gain for k, gain in enumerate((0.0, 0.1, 0.2, 0.3, 0.4))}
    scores = {}
    for target, gain in effects.items():
        for seed in range(200):
            base = rng.normal()
            scores[target, seed, "base", 0] = base
            scores[target, seed, "related", 0] = base + gain
    found = CompositionStudy(scores).gain("related", "base")
    assert found.estimate == pytest.approx(0.2)
    assert found.low < 0.08 and found.high > 0.32  # 200 seeds of a target make it no surer  # noqa: PT018
    alone = CompositionStudy({key: value for key, value in scores.items() if key[0] == "t2"})
    assert alone.gain("related", "base").low == pytest.approx(0.2)  # a constant difference has no width


def test_what_cannot_be_studied_is_refused():
    def run(**changes):
        arguments = {"datasets": DATASETS, "catalog": CATALOG, "targets": ["m-a-t"]} | changes
        return composition_study(known, share, **arguments)

    with pytest.raises(ValueError, match="m-a-x has no elements in the catalog"):
        run(targets=["m-a-x"])
    with pytest.raises(ValueError, match="targets must not be empty"):
        run(targets=[])
    with pytest.raises(ValueError, match="n must be"):
        run(n=0)
    with pytest.raises(ValueError, match="arm must be base"):
        run(arms=("near",))
    with pytest.raises(ValueError, match="score must be finite"):
        composition_study(known, lambda model, target: float("nan"), DATASETS, CATALOG, ["m-a-t"])
    with pytest.raises(ValueError, match="related and base were not both run with 3 shots"):
        run(arms=("base", "related")).gain("related", "base", 3)
