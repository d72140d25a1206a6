import json

import pytest
import torch
from torch import nn

from heldout.nn import CG_OPERATIONS, computation_graph
from heldout.tasks import NETWORK_FAMILIES, build_network, draw_network, resize_network


@pytest.mark.parametrize("family", NETWORK_FAMILIES)
def test_designs_are_plain_data_and_networks_classify_and_learn(family):
    for seed in range(6):
        design = json.loads(json.dumps(draw_network(family, seed)))
        assert design == draw_network(family, seed)
        model = build_network(design)
        model(torch.randn(3, 1, 16, 16)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
        graph = computation_graph(model, torch.zeros(1, 1, 16, 16))
        assert CG_OPERATIONS.index("oov") not in graph.op
    assert len({json.dumps(draw_network(family, seed)) for seed in range(20)}) > 15


def test_families_have_what_sets_them_apart():
    def operations(family):
        found = set()
        for seed in range(12):
            graph = computation_graph(build_network(draw_network(family, seed)), torch.zeros(1, 1, 16, 16))
            found |= {CG_OPERATIONS[each] for each in graph.op}
        return found

    own = {family: operations(family) for family in NETWORK_FAMILIES}
    assert {"conv", "maxpool", "add", "concat"} <= own["cells"]
    assert {"depthwise", "relu6"} <= own["separable"] - own["cells"]
    assert "avgpool" in own["inception"] - own["cells"]
    assert "gelu" in own["mixer"] - own["cells"]


def test_cells_sum_what_meets_and_concatenate_what_ends():
    design = {
        "family": "cells", "operations": ["3", "pool"], "links": [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]], "cells": 1,
        "width": 4, "stride": 2, "norm": False, "activation": "tanh",
    }  # fmt: skip
    graph = computation_graph(build_network(design), torch.zeros(1, 1, 16, 16))
    assert [CG_OPERATIONS[each] for each in graph.op] == [
        "input", "conv", "tanh", "conv", "tanh", "add", "maxpool", "concat", "conv", "tanh", "mean", "matmul", "output",
    ]  # fmt: skip


def test_bad_designs_are_refused_by_name():
    with pytest.raises(ValueError, match="family"):
        draw_network("resnets", 0)
    with pytest.raises(ValueError, match="seed"):
        draw_network("cells", -1)
    with pytest.raises(ValueError, match="family"):
        build_network({"family": "resnets"})
    with pytest.raises(ValueError, match="layers"):
        build_network({"family": "chains"})
    assert isinstance(build_network(draw_network("two_path", 1)), nn.Module)


@pytest.mark.parametrize("family", NETWORK_FAMILIES)
def test_a_resized_network_has_about_as_many_parameters_and_is_built_alike(family):
    near = 0
    for seed in range(12):
        design = draw_network(family, seed)
        small, large = (resize_network(design, parameters) for parameters in (1500, 6000))
        count = [sum(p.numel() for p in build_network(each).parameters()) for each in (small, large)]
        near += abs(count[1] / 6000 - 1) < 0.15
        assert count[0] < count[1]
        kinds = [[type(part) for part in build_network(each).modules()] for each in (design, small, large)]
        assert kinds[0] == kinds[1] == kinds[2]
        assert {k: v for k, v in small.items() if k in ("norm", "activation", "links", "patch", "paths", "join")} == {
            k: v for k, v in design.items() if k in ("norm", "activation", "links", "patch", "paths", "join")
        }
    assert near >= 9
    with pytest.raises(ValueError, match="parameters"):
        resize_network(draw_network(family, 0), 0)
    with pytest.raises(ValueError, match="entry"):
        resize_network({"family": family}, 100)
