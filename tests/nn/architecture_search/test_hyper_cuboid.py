import itertools

import pytest
import torch
from torch import nn

from heldout.nn import HyperCuboid, MultiChannelNetwork, PathStep, ResizablePool, SharpSepConv, build_from_path
from heldout.nn import architecture_parameters as parameters_of

AXES = {"layer": ["a", "b", "c"], "width": [2, 3], "op": ["plain", "tanh"]}


def linear(layer, source, target, op):
    return nn.Sequential(nn.Linear(source, target), nn.Tanh() if op == "tanh" else nn.Identity())


def cuboid(axes=AXES, make=linear, seed=0, spread=1.0, **options):
    torch.manual_seed(seed)
    grid = HyperCuboid(axes, make, **options)
    with torch.no_grad():
        grid.alphas.normal_(std=spread)
    return grid


def inputs(widths=(2, 3)):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(4, width, generator=generator) for width in widths]


def all_paths(grid):
    """Every sequence of (source, target, choice) positions that join, with the sum of its weights."""
    w, there = grid.weights(), grid.there
    steps = [[tuple(at) for at in there[step].nonzero().tolist()] for step in range(len(grid.steps))]
    for path in itertools.product(*steps):
        if all(one[1] == two[0] for one, two in itertools.pairwise(path)):
            yield path, sum(w[(step, *at)].item() for step, at in enumerate(path))


def positions(grid, path):
    return tuple((grid.nodes.index(s.source), grid.nodes.index(s.target), grid.choices.index(s.choices)) for s in path)


@pytest.mark.parametrize("seed", range(8))
def test_the_longest_path_is_that_of_brute_force(seed):
    grid = cuboid(seed=seed)
    best, total = max(all_paths(grid), key=lambda each: each[1])
    found = grid.best_path()
    assert positions(grid, found) == best
    assert sum(step.weight for step in found) == pytest.approx(total)
    assert [step.step for step in found] == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(4))
def test_the_greedy_paths_take_the_largest_weight_that_joins(seed):
    grid = cuboid(seed=seed)
    w = grid.weights().detach()
    first = max(itertools.product(range(2), range(2), range(2)), key=lambda at: w[(0, *at)])
    expected = [first]
    for step in (1, 2):
        at = max(itertools.product(range(2), range(2)), key=lambda rest: w[(step, expected[-1][1], *rest)])
        expected.append((expected[-1][1], *at))
    assert positions(grid, grid.best_path("greedy")) == tuple(expected)
    last = max(itertools.product(range(2), range(2), range(2)), key=lambda at: w[(2, *at)])
    expected = [last]
    for step in (1, 0):
        source, choice = max(
            itertools.product(range(2), range(2)), key=lambda at: w[step, at[0], expected[0][0], at[1]]
        )
        expected.insert(0, (source, expected[0][0], choice))
    assert positions(grid, grid.best_path("greedy_from_end")) == tuple(expected)


def test_the_strategies_can_differ():
    found = {s: [cuboid(seed=i).best_path(s) for i in range(8)] for s in ("longest", "greedy", "greedy_from_end")}
    assert len({str(paths) for paths in found.values()}) == 3


@pytest.mark.parametrize("weighting", ["scalar", "max_w"])
def test_the_forward_is_the_weighted_sum_over_all_ways(weighting):
    grid = cuboid(weighting=weighting, skip=False)
    w = grid.alphas.detach().flatten(1).softmax(1).view_as(grid.alphas)
    states = inputs()
    for step in range(3):
        m = w[step].max() if weighting == "max_w" else 1
        states = [
            sum((1 - m + w[step, s, t, c]) * grid.ops[f"{step}_{s}_{t}_{c}"](states[s]) for s in (0, 1) for c in (0, 1))
            for t in (0, 1)
        ]
    for found, expected in zip(grid(inputs()), states, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_one_softmax_weighs_a_step_and_equal_modules_have_coefficient_one():
    grid = cuboid()
    assert torch.allclose(grid.weights().sum((1, 2, 3)), torch.ones(3))
    assert grid.coefficients().amax((1, 2, 3)).tolist() == pytest.approx([1.0] * 3)
    fresh = HyperCuboid(AXES, linear)
    assert torch.equal(fresh.coefficients(), torch.ones(3, 2, 2, 2))
    assert fresh.entropy().item() == pytest.approx(1.0)


def test_modules_of_at_most_one_over_n_squared_are_left_out_but_for_the_best_into_each_node():
    grid = HyperCuboid(AXES, linear)
    with torch.no_grad():
        grid.alphas[1] = -10.0
        grid.alphas[1, 0, 0, 1] = 0.0  # alone worth computing
        grid.alphas[1, 1, 1, 0] = -9.0  # the best into node 1, far below 1 / 64
    called = []
    for name, op in grid.ops.items():
        op.register_forward_hook(lambda *_, name=name: called.append(name))
    grid(inputs())
    assert [name for name in called if name.startswith("1")] == ["1_0_0_1", "1_1_1_0"]
    assert len([name for name in called if name.startswith("0")]) == 8
    limit = HyperCuboid({"layer": [0], "width": [2], "op": ["plain", "tanh"]}, linear)
    for share, count in ((0.26, 2), (0.24, 1)):
        with torch.no_grad():
            limit.alphas.copy_(torch.tensor([1 - share, share]).log().view(1, 1, 1, 2))
        seen = []
        hooks = [op.register_forward_hook(lambda *_, seen=seen: seen.append(1)) for op in limit.ops.values()]
        limit([torch.ones(1, 2)])
        assert len(seen) == count
        for hook in hooks:
            hook.remove()


def chain(layer, source, target, op):
    """Upwards only, and from layer "b" on no plain module."""
    return None if target < source or (layer != "a" and op == "plain") else linear(layer, source, target, op)


def test_edges_that_the_grid_does_not_have_weigh_nothing():
    grid = cuboid(make=chain, seed=3)
    assert set(grid.ops) == {"_".join(map(str, at)) for at in grid.there.nonzero().tolist()}
    assert (grid.weights()[~grid.there] == 0).all()
    assert (grid.coefficients()[~grid.there] == 0).all()
    assert all(f.shape == (4, w) for f, w in zip(grid(inputs()), (2, 3)))
    best = max(all_paths(grid), key=lambda each: each[1])[0]
    assert positions(grid, grid.best_path()) == best
    for _ in range(20):
        grid.random_path()


def test_a_node_that_nothing_leads_to_has_no_features():
    grid = cuboid(make=lambda layer, s, t, op: linear(layer, s, t, op) if t == 2 else None)
    first, second = grid(inputs())
    assert first.shape == (4, 2)
    assert second is None


def test_the_best_module_that_features_arrive_at_is_computed():
    """Nothing leads to width 3 at first: what goes on from there is the best into width 3 by its weight alone."""

    def make(layer, source, target, op):
        return linear(layer, source, target, op) if layer != "a" or target == 2 else None

    grid = HyperCuboid(AXES, make)
    with torch.no_grad():
        grid.alphas[1] = -20.0
        grid.alphas[1, 1] = 0.0
    for skip in (True, False):
        grid.skip = skip
        called = []
        hooks = [op.register_forward_hook(lambda *_, n=n, c=called: c.append(n)) for n, op in grid.ops.items()]
        assert [tuple(each.shape) for each in grid(inputs())] == [(4, 2), (4, 3)]
        assert not [name for name in called if name.startswith("1_1")]
        for hook in hooks:
            hook.remove()


def test_a_path_of_alphas_that_are_not_finite_is_refused():
    grid = cuboid()
    with torch.no_grad():
        grid.alphas[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="alphas must be finite"):
        grid.best_path()


def test_no_path_is_told():
    def broken(layer, source, target, op):
        return linear(layer, source, target, op) if (source, target) == ((2, 3) if layer == "a" else (2, 2)) else None

    for strategy in ("longest", "greedy"):
        with pytest.raises(ValueError, match="no path through all steps"):
            cuboid(make=broken).best_path(strategy)
    with pytest.raises(ValueError, match="no path on from 3 at step 1"):
        cuboid(make=broken).random_path()


def test_random_paths_are_drawn_evenly_and_repeat_with_their_seed():
    grid = cuboid()
    drawn = [positions(grid, grid.random_path(torch.Generator().manual_seed(i)))[0] for i in range(400)]
    counts = torch.tensor([drawn.count(at) for at in itertools.product((0, 1), (0, 1), (0, 1))])
    assert counts.sum() == 400
    assert ((counts - 50).abs() < 30).all()
    assert grid.random_path(torch.Generator().manual_seed(1)) == grid.random_path(torch.Generator().manual_seed(1))


def test_a_path_by_hand_runs_with_the_shared_weights():
    grid = cuboid()
    path = grid.path_of([2, 3, 3, 2], op="tanh")
    x = inputs()[0]
    expected = grid.ops["2_1_0_1"](grid.ops["1_1_1_1"](grid.ops["0_0_1_1"](x)))
    assert torch.equal(grid.along(path, x), expected)
    assert path[0] == PathStep("a", 2, 3, {"op": "tanh"}, grid.weights()[0, 0, 1, 1].item())
    for nodes, options in (([2, 3, 4, 2], {"op": "tanh"}), ([2, 3, 3, 2], {"op": "relu"}), ([2, 3, 3, 2], {})):
        with pytest.raises(ValueError, match="path has a step that the grid does not have"):
            grid.path_of(nodes, **options)
    with pytest.raises(ValueError, match="nodes must have 4 entries"):
        grid.path_of([2, 3], op="tanh")


@pytest.mark.parametrize(
    ("axes", "make", "said"),
    [
        ({"layer": [0]}, linear, "axes must name the steps and the nodes"),
        ({"layer": [0], "width": [], "op": ["plain"]}, linear, "axes must have values"),
        ({"layer": [0], "width": [2, 2], "op": ["plain"]}, linear, "axes must have each value once"),
        (AXES, lambda *a, **k: None, "make_op must give a module at every step"),
    ],
)
def test_bad_grids_are_refused(axes, make, said):
    with pytest.raises(ValueError, match=said):
        HyperCuboid(axes, make)


def test_outputs_that_do_not_fit_and_missing_inputs_are_refused():
    grid = HyperCuboid(AXES, lambda layer, s, t, op: nn.Linear(s, t + (op == "tanh")))
    with pytest.raises(ValueError, match="make_op must give modules whose outputs"):
        grid(inputs())
    with pytest.raises(ValueError, match="inputs must have 2 entries"):
        cuboid()(inputs()[:1])


def images():
    return torch.rand(3, 1, 9, 7, generator=torch.Generator().manual_seed(0))


def multi(**options):
    torch.manual_seed(0)
    return MultiChannelNetwork(5, **{"channels": (4, 6), "strides": (1, 2), "in_channels": 1, **options})


def test_the_network_of_the_grid_sums_its_widths_and_has_norms_without_weights():
    net = multi(final_channels=8).eval()
    stems = [stem(images()) for stem in net.stems]
    total = sum(final(each) for final, each in zip(net.finals, net.cuboid(stems)))
    assert torch.allclose(net(images()), net.classifier(total.mean((2, 3))), atol=1e-6)
    assert total.shape == (3, 8, 5, 4)
    assert all(m.weight is None for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert [tuple(p.shape) for p in parameters_of(net)] == [(2, 2, 2, 2)]
    net(images()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_path_through_the_network_uses_its_modules_alone():
    net = multi().eval()
    path = net.cuboid.path_of([4, 6, 4], primitive="sep_conv")
    x = net.cuboid.ops["1_1_0_0"](net.cuboid.ops["0_0_1_0"](net.stems[0](images())))
    assert torch.allclose(net(images(), path), net.classifier(net.finals[0](x).mean((2, 3))), atol=1e-6)


def test_the_plain_network_of_a_path_has_its_steps_strides_and_norms_with_weights():
    path = [PathStep(1, 4, 6, {"primitive": "sep_conv"}, 0.1), PathStep(2, 6, 6, {"primitive": "pool"}, 0.1)]
    net = build_from_path(path, 5, in_channels=1, final_channels=8)
    assert net(images()).shape == (3, 5)
    kinds = [type(layer) for layer in net[1:4]]
    assert kinds == [SharpSepConv, ResizablePool, SharpSepConv]
    assert net[2].layers[0].stride == 2
    assert net[3].layers[-1].num_features == 8
    assert all(m.weight is not None for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_bad_paths_are_refused():
    with pytest.raises(ValueError, match="path must have steps of which each starts"):
        build_from_path([PathStep(1, 4, 6, {"primitive": "pool"}, 0), PathStep(1, 4, 6, {"primitive": "pool"}, 0)], 5)
    with pytest.raises(ValueError, match="path has the primitive 'conv'"):
        build_from_path([PathStep(1, 4, 6, {"primitive": "conv"}, 0)], 5)
    with pytest.raises(ValueError, match="path must not be empty"):
        build_from_path([], 5)
