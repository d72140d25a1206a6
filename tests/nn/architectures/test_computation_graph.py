import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.nn import CG_OPERATIONS, computation_graph, shape_maxima


def names(graph):
    return [CG_OPERATIONS[each] for each in graph.op]


def edges(graph):
    return sorted(map(tuple, graph.edge_index.T.tolist()))


class Residual(nn.Module):
    """The addition, the pooling and the view are no modules; the weights of the last layer are used by hand."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, (3, 5), stride=2), nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.dropout(x + self.depth(x).sigmoid(), 0.5, self.training)
        return F.linear(x.mean((2, 3)).view(x.shape[0], -1), self.weight)


def test_a_known_network_has_its_nodes_edges_shapes_kernels_and_biases():
    graph = computation_graph(Residual(), torch.zeros(3, 2, 9, 12))
    assert names(graph) == [
        "input", "conv", "batchnorm", "relu", "depthwise", "sigmoid", "add", "identity", "mean", "matmul", "output",
    ]  # fmt: skip
    assert edges(graph) == [
        (0, 1), (1, 2), (2, 3), (3, 4), (3, 6), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 10),
    ]  # fmt: skip
    assert graph.shape[1].tolist() == [9, 12, 2, 4, 4, 6]
    assert graph.shape[0].tolist() == [9, 12, 2, 9, 12, 2]
    assert graph.shape[9].tolist() == [1, 1, 6, 1, 1, 4]
    assert graph.weighted.nonzero().flatten().tolist() == [1, 4, 9]
    assert graph.kernel[[1, 4, 9, 2]].tolist() == [[2, 4], [2, 2], [0, 0], [0, 0]]
    assert graph.bias.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert graph.parameters == 2 * 6 * 15 + 6 + 12 + 54 + 24
    assert graph.flops == 2 * (16 * 6 * 2 * 15 + 16 * 6 * 9 + 24)  # of one example


def test_names_of_modules_and_the_way_of_writing_do_not_matter():
    first = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.other_name, self.last = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

        def forward(self, x):
            x = F.conv2d(x, self.other_name.weight, self.other_name.bias)
            return self.last(torch.flatten(F.adaptive_avg_pool2d(torch.relu_(x), 1), 1))

    x = torch.zeros(2, 1, 6, 6)
    graphs = [computation_graph(model, x) for model in (first, first, ByHand())]
    for other in graphs[1:]:
        for key in ("op", "shape", "weighted", "kernel", "bias", "edge_index", "flops", "parameters"):
            assert torch.equal(torch.as_tensor(graphs[0][key]), torch.as_tensor(other[key])), key


class Branching(nn.Module):
    """No symbolic trace gets through the condition; torch.export does."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        if x.shape[0] > 0 and len(x) < 100:
            x = F.hardtanh(self.norm(self.conv(x)), 0.0, 6.0)
        return self.out(torch.cat([x, x * 2]).mean((2, 3)))


def test_what_fx_cannot_trace_is_exported_to_the_same_words():
    graph = computation_graph(Branching(), torch.zeros(2, 4, 5, 5))
    assert names(graph) == [
        "input", "depthwise", "batchnorm", "relu6", "mul", "concat", "mean", "matmul", "output",
    ]  # fmt: skip
    assert edges(graph) == [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (4, 5), (5, 6), (6, 7), (7, 8)]
    assert graph.kernel[1].tolist() == [2, 2]
    assert graph.bias.tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0]


def test_dead_code_is_left_out_and_branches_of_a_split_come_from_one_node():
    class Split(nn.Module):
        def forward(self, x):
            torch.tanh(x)
            first, second = x.chunk(2, 1)
            return first * second.transpose(1, 2).transpose(1, 2)

    graph = computation_graph(Split(), torch.zeros(2, 4, 3))
    assert names(graph) == ["input", "mul", "output"]
    assert edges(graph) == [(0, 1), (1, 2)]


def test_unknown_operations_are_oov_and_told():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Upsample(scale_factor=2), nn.Conv1d(2, 2, 1))
    with pytest.warns(UserWarning, match="Upsample"):
        graph = computation_graph(model, torch.zeros(1, 1, 8))
    assert names(graph) == ["input", "conv", "oov", "conv", "output"]


def test_the_model_stays_as_it_was():
    model = Residual().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    computation_graph(model, torch.randn(3, 2, 9, 12))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_vision_transformer_of_transformers_is_traced():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8,
        num_channels=1, num_labels=3, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = computation_graph(model, torch.zeros(1, 1, 16, 16))
    found = names(graph)
    assert found.count("softmax") == 2
    assert found.count("gelu") == 2
    assert found.count("matmul") == 2 * (6 + 2) + 1
    assert found.count("layernorm") == 5
    assert graph.parameters == sum(p.numel() for p in model.parameters())
    assert bool((graph.edge_index[0] < graph.edge_index[1]).all())


def test_what_cannot_be_traced_is_refused_and_says_where():
    class Untraceable(nn.Module):
        def forward(self, x):
            return x * float(x.sum().item() > 0) if x.sum().item() > 0 else x.tanh()

    with pytest.raises(ValueError, match=r"model cannot be traced.*control flow"):
        computation_graph(Untraceable(), torch.ones(2, 3))


@pytest.mark.parametrize("bad", [torch.zeros(0, 3), torch.full((2, 3), torch.nan)])
def test_bad_inputs_are_refused(bad):
    with pytest.raises(ValueError, match="example_input"):
        computation_graph(nn.Linear(3, 2), bad)


def test_an_input_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="example_input"):
        computation_graph(nn.Linear(3, 2), [1.0, 2.0, 3.0])


def test_maxima_are_over_inputs_outputs_and_graphs():
    graphs = [
        computation_graph(nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 3, 7)),
        computation_graph(nn.Linear(4, 9), torch.zeros(1, 4)),
    ]
    assert shape_maxima(graphs) == (3.0, 7.0, 9.0)
    with pytest.raises(ValueError, match="graphs"):
        shape_maxima([])


def test_flops_of_a_transformers_layer_are_counted_though_it_has_a_fused_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    tokens, products = 5, 3 * 8 * 8 + 8 * 8 + 2 * 8 * 16  # of weights, for each token
    attention = 2 * tokens * tokens * 8
    graph = computation_graph(layer, torch.zeros(1, tokens, 8))
    assert graph.flops == 2 * (tokens * products + attention)
    assert torch.backends.mha.get_fastpath_enabled()


def test_buffers_that_forward_counts_up_stay():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 2)
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x):
            self.calls += 1
            return self.map(x)

    model = Counting()
    computation_graph(model, torch.zeros(1, 3))
    assert model.calls == 0


def test_a_parametrised_layer_is_what_it_was():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.ReLU())
    graph = computation_graph(model, torch.zeros(1, 3))
    assert [CG_OPERATIONS[each] for each in graph.op] == ["input", "matmul", "relu", "output"]
    assert graph.weighted.tolist() == [False, True, False, False]


def test_a_model_whose_flops_are_not_counted_is_told():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        graph = computation_graph(Recurrent(), torch.zeros(1, 5, 3))
    assert (graph.flops > 0) != any("FLOPs" in str(each.message) for each in told)
