"""What each arm is given, and what is read off it; scores of four graphs in a smoke run say nothing."""

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from heldout.measure import LebedResult, atc_error, rank_correlation
from heldout.reproductions import lebed
from heldout.reproductions.lebed import BACKBONES, BASELINES, SIZES, SOURCES, TARGETS, Size

SEED = 1000
SMALL = Size(60, 3, 3, 9, 2)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "smoke", SMALL)
    cached = (lebed.world_of, lebed.trained, lebed.learned)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """Arguments of every call of the score, whose epochs are counted up."""
    calls = []

    def score(model, initial, graph, **options):
        calls.append((model, initial, graph, options))
        return LebedResult(float(len(calls)), len(calls), 0.0, True, 1.0, 5)

    monkeypatch.setattr(lebed, "lebed_score", score)
    return calls


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_score_is_given_the_first_weights_and_no_labels_of_targets(asked):
    lebed.learned("lebed", "gcn", "blocks", SEED, "smoke")
    assert len(asked) == 12
    model = asked[0][0]
    before = asked[0][1]
    torch.manual_seed(SEED)
    assert same(before, lebed.network_for("gcn", lebed.world_of("blocks", SEED, "smoke").source).state_dict())
    assert not same(before, model.state_dict())
    world = lebed.world_of("blocks", SEED, "smoke")
    assert [call[2] for call in asked] == [graph for graphs in world.axes.values() for graph in graphs]
    assert all((call[3]["lr"], call[3]["margin"]) == (lebed.LR, lebed.MARGIN) for call in asked)
    assert all((call[3]["min_epochs"], call[3]["max_epochs"]) == (5, 9) for call in asked)
    assert all(set(call[3]) == {"head", "lr", "margin", "min_epochs", "max_epochs", "seed"} for call in asked)


def test_each_seed_has_a_source_of_its_own():
    first, second = (lebed.blocks(seed, SMALL).source for seed in (SEED, SEED + 1))
    assert not torch.equal(first.y, second.y)
    assert not torch.equal(first.edge_index, second.edge_index)


@pytest.mark.parametrize("score", ["lebed", "fresh start", *BASELINES])
def test_what_is_expected_does_not_depend_on_the_labels_of_targets(score):
    first = lebed.expected_errors(score, "gin", "blocks", SEED, "smoke")
    lebed.learned.cache_clear()
    for graphs in lebed.world_of("blocks", SEED, "smoke").axes.values():
        for graph in graphs:
            graph.y = graph.y.flip(0)
    assert lebed.expected_errors(score, "gin", "blocks", SEED, "smoke") == first


def test_a_fresh_start_is_another_start_and_nothing_else(asked):
    lebed.learned("lebed", "mlp", "blocks", SEED, "smoke")
    usual = list(asked)
    asked.clear()
    lebed.learned("fresh start", "mlp", "blocks", SEED, "smoke")
    for before, now in zip(usual, asked, strict=True):
        assert not same(before[1], now[1])
        assert same(asked[0][1], now[1])
        assert before[0] is now[0]
        assert before[3] == now[3]


def test_fixed_epochs_are_the_mean_stop(asked):
    lebed.learned("lebed", "mlp", "blocks", SEED, "smoke")
    usual = list(asked)
    asked.clear()
    lebed.learned("fixed epochs", "mlp", "blocks", SEED, "smoke")
    assert {(call[3]["min_epochs"], call[3]["max_epochs"]) for call in asked} == {(6, 6)}  # of 1..12: 6.5, to even
    assert all(same(before[1], now[1]) for before, now in zip(usual, asked, strict=True))


def test_labels_that_were_held_back_are_not_trained_on():
    model = lebed.trained("gcn", "blocks", SEED, "smoke").model
    world = lebed.world_of("blocks", SEED, "smoke")
    world.source.y[~world.labelled] = 0
    lebed.trained.cache_clear()
    again = lebed.trained("gcn", "blocks", SEED, "smoke")
    assert same(model.state_dict(), again.model.state_dict())
    assert len(again.known) == len(again.labels) == int((~world.labelled).sum())
    world.source.y[world.labelled] = 0
    lebed.trained.cache_clear()
    assert not same(model.state_dict(), lebed.trained("gcn", "blocks", SEED, "smoke").model.state_dict())


def test_baselines_say_more_where_more_is_expected_to_be_wrong():
    known = lebed.trained("gcn", "blocks", SEED, "smoke")
    found = {name: lebed.expected_errors(name, "gcn", "blocks", SEED, "smoke") for name in BASELINES}
    graph = lebed.world_of("blocks", SEED, "smoke").axes["masking"][1]
    probs = lebed.probabilities(known.model, graph).double()
    assert found["confidence"]["masking"][1] == pytest.approx(1 - probs.amax(1).mean().item())
    assert found["entropy"]["masking"][1] == pytest.approx(-(probs * probs.log()).sum(1).mean().item())
    assert found["atc"]["masking"][1] == atc_error(known.known, known.labels, probs, lebed.ATC)


def test_correlations_are_means_over_networks_and_pooled_is_of_all_graphs(monkeypatch):
    says = {backbone: np.random.default_rng(n).random((4, 3)).tolist() for n, backbone in enumerate(BACKBONES)}
    axes = ("noise", "masking", "homophily", "prior")
    monkeypatch.setattr(
        lebed, "expected_errors", lambda score, backbone, *rest: dict(zip(axes, says[backbone], strict=True))
    )
    found = lebed.run({"score": "entropy", "cell": "blocks"}, SEED, "smoke")
    world = lebed.world_of("blocks", SEED, "smoke")
    for backbone in BACKBONES:
        model = lebed.trained(backbone, "blocks", SEED, "smoke").model
        errors = {
            axis: [(model(g.x, g.edge_index).argmax(1) != g.y).double().mean().item() for g in graphs]
            for axis, graphs in world.axes.items()
        }
        for axis, scores in zip(axes, says[backbone], strict=True):
            assert found[f"{axis}_{backbone}"] == pytest.approx(rank_correlation(errors[axis], scores).spearman)
        everything = rank_correlation(sum(errors.values(), []), sum(says[backbone], []))  # noqa: RUF017
        assert (found[f"pooled_{backbone}"], found[f"r2_{backbone}"]) == pytest.approx(everything)
    for name in (*axes, "pooled", "r2"):
        assert found[name] == pytest.approx(np.mean([found[f"{name}_{backbone}"] for backbone in BACKBONES]))
    assert found["features"] == pytest.approx((found["noise"] + found["masking"]) / 2)


def test_what_the_score_did_is_told(asked):
    found = lebed.run({"score": "lebed", "cell": "blocks"}, SEED, "smoke")
    assert found["epochs_gcn"] == 6.5
    assert found["within_gcn"] == pytest.approx(7 / 12)  # of epochs 6 to 12, as 5 is the first that is allowed
    assert 0 <= found["lowest_gcn"] <= found["highest_gcn"] <= 1
    model, noisy = (
        lebed.trained("mlp", "blocks", SEED, "smoke").model,
        lebed.world_of("blocks", SEED, "smoke").axes["noise"],
    )
    sure = [lebed.probabilities(model, graph).amax(1).double().mean().item() for graph in noisy]
    right = [(lebed.probabilities(model, graph).argmax(1) == graph.y).double().mean().item() for graph in noisy]
    assert found["overconfidence_mlp"] == pytest.approx(np.mean(sure) - np.mean(right))


def test_no_package_is_both_trained_on_and_ranked(monkeypatch):
    taken = []
    graph = type("Graph", (), {"y": torch.zeros(4, dtype=torch.int64)})
    monkeypatch.setattr(lebed, "package_graph", lambda name: taken.append(name) or graph)
    for seed in range(SEED, SEED + len(SOURCES)):
        taken.clear()
        world = lebed.calls(seed, SIZES["laptop"])
        own, *others = taken
        assert own == SOURCES[seed % len(SOURCES)]
        assert own not in others
        assert len(set(others)) == len(others) == len(world.axes["packages"]) == 21
        assert {*others, own} == {*TARGETS, *SOURCES}


def test_a_package_that_is_not_here_is_named(monkeypatch):
    assert lebed.packages_missing() == ""
    monkeypatch.setattr(lebed, "SOURCES", ("asyncio", "no_such_package_here"))
    assert "no_such_package_here" in lebed.packages_missing()
