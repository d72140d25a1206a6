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
        size = 0 if arm == "base" else 30
        assert len(set(model["rows"])) == len(model["rows"]) == size
        assert model["seed"] == seed
        drawn = [sum(name == own for name, _ in model["rows"]) for own in found.groups[target, seed, arm]]
        assert not drawn or max(drawn) - min(drawn) <= 1
    assert found.gain("related", "unrelated").estimate == 1
    assert len({found.groups["m-a-t", seed, "related"] for seed in (1000, 1001)}) == 2
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
    for constant in (
        alone.gain("related", "base"),
        CompositionStudy(scores).gain("related", "base", target="t2"),
    ):  # a constant difference has no width
        assert (constant.low, constant.estimate, constant.high) == pytest.approx((0.2, 0.2, 0.2))
    uneven = {k: v for k, v in scores.items() if k[0] != "t4" or k[1] < 2}  # targets count alike, however many seeds
    assert CompositionStudy(uneven).gain("related", "base").estimate == pytest.approx(0.2)


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
    with pytest.raises(ValueError, match="hold 40 examples, fewer than 41"):  # no arm is smaller than the others
        run(arms=("related",), n=41)
    with pytest.raises(ValueError, match="there is no data set"):
        run(arms=("related",), n=4, datasets={"m-a-t": [1]})
    with pytest.raises(ValueError, match="arm must be base"):
        run(arms=("near",))
    with pytest.raises(ValueError, match="score must be finite"):
        composition_study(known, lambda model, target: float("nan"), DATASETS, CATALOG, ["m-a-t"])
    with pytest.raises(ValueError, match="related and base were not both run with 3 shots"):
        run(arms=("base", "related"), n=4).gain("related", "base", 3)
    with pytest.raises(ValueError, match="related and base were not both run with 0 shots on other"):
        run(arms=("base", "related"), n=4).gain("related", "base", target="other")
    with pytest.raises(ValueError, match="near was not run with 0 shots"):
        run(arms=("base",)).mean("near")


def test_a_target_with_a_twin_sees_neither():
    catalog = CATALOG | {"twin": dict(CATALOG["m-a-t"])}
    found = composition_study(
        known, lambda model, target: float("twin" in {name for name, _ in model["rows"]}),
        DATASETS | {"twin": [("twin", i) for i in range(20)]}, catalog, ["m-a-t"], arms=("related", "all"), n=30,
        seeds=range(1000, 1005),
    )  # fmt: skip
    assert found.mean("all") == found.mean("related") == 0
    assert not any("twin" in group for group in found.groups.values())


def test_an_arm_of_ones_own_trains_on_its_group_and_never_on_the_target():
    seen = []
    found = composition_study(
        known, lambda model, target: seen.append({name for name, _ in model["rows"]}) or 0.0, DATASETS, CATALOG,
        ["m-a-t", "o-c-v"], arms=("mine",), n=4, groups={"mine": lambda target, seed: [f"n-b-{target[-1]}"]},
    )  # fmt: skip
    assert seen == [{"n-b-t"}, {"n-b-v"}]
    assert found.groups["o-c-v", 0, "mine"] == ("n-b-v",)
    with pytest.raises(ValueError, match="mine must not train on m-a-t for m-a-t"):
        composition_study(
            known, share, DATASETS, CATALOG, ["m-a-t"], arms=("mine",), n=4, groups={"mine": lambda *_: ["m-a-t"]}
        )


def test_labels_balance_the_draws_of_arms_and_shots():
    labels = {name: [i % 2 if i < 4 else 0 for i in range(20)] for name in CATALOG}
    shares = []
    composition_study(
        known, lambda model, target: shares.append([i in (1, 3) for _, i in model["rows"]]) or 0.0,
        DATASETS, CATALOG, ["m-a-t"], arms=("related",), n=8, shots=(0, 4), labels=labels,
    )  # fmt: skip
    assert [(sum(each), len(each)) for each in shares] == [(4, 8), (6, 12)]


def test_the_table_is_the_mean_over_seeds():
    scores = {("t", seed, arm, 0): seed + (arm == "b") for seed in (1, 2) for arm in "ab"}
    assert CompositionStudy(scores).table() == [
        {"target": "t", "arm": "a", "shots": 0, "score": 1.5, "seeds": 2},
        {"target": "t", "arm": "b", "shots": 0, "score": 2.5, "seeds": 2},
    ]
