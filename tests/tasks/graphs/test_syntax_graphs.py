import pytest
import torch

from heldout.tasks import SYNTAX_KINDS, syntax_graphs

pytest.importorskip("torch_geometric")

SOURCE = """
def looks(a):
    for each in a:
        print(each)

def calls(a):
    def inner(b):
        for each in b:
            yield each
    return inner(a) + 1

class Some:
    def empty(self):
        pass
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "module.py").write_text(SOURCE)
    return tmp_path


def test_a_function_is_its_tree_and_what_it_uses(folder):
    graphs = syntax_graphs(folder, "For", nodes=(2, 50))
    assert [int(graph.y) for graph in graphs] == [1, 0, 1, 0]  # inner comes before the class, by its line
    first = graphs[0]
    kinds = [SYNTAX_KINDS[kind] for kind in first.x.argmax(1).tolist()]
    # looks, its arguments with one, the loop with its target, iterable and a statement, a call of a name with a name
    expected = ["statement", "other", "other", "statement", "Name", "Name", "statement", "Call", "Name", "Name"]
    assert sorted(kinds) == sorted(expected)
    assert first.num_edges == 2 * (first.num_nodes - 1)
    assert first.is_undirected()
    assert torch.equal(first.x.sum(1), torch.ones(first.num_nodes))


def test_nothing_names_the_construct(folder):
    looped, tried = (syntax_graphs(folder, name, nodes=(2, 50)) for name in ("For", "Try"))
    assert all(
        torch.equal(a.x, b.x) and torch.equal(a.edge_index, b.edge_index) for a, b in zip(looped, tried, strict=True)
    )
    assert [int(graph.y) for graph in tried] == [0, 0, 0, 0]


def test_functions_that_are_too_small_or_too_large_are_left_out(folder):
    sizes = [graph.num_nodes for graph in syntax_graphs(folder, nodes=(2, 50))]
    assert [graph.num_nodes for graph in syntax_graphs(folder, nodes=(5, 8))] == [s for s in sizes if 5 <= s <= 8]


def test_larger_functions_of_the_standard_library_use_loops_more_often():
    graphs = syntax_graphs("email", "For", skip=("test",))
    sizes, y = torch.tensor([graph.num_nodes for graph in graphs]), torch.cat([graph.y for graph in graphs])
    assert 0.05 < y.float().mean() < 0.6
    assert sizes[y == 1].float().mean() > 1.3 * sizes[y == 0].float().mean()


def test_bad_input_is_refused_by_name(folder):
    for options, name in (
        ({"construct": "Name"}, "construct"),
        ({"construct": "Loop"}, "construct"),
        ({"construct": "stmt"}, "construct"),
        ({"nodes": (9, 5)}, "nodes"),
        ({"nodes": (1, 5)}, "nodes"),
    ):
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            syntax_graphs(folder, **options)
    with pytest.raises(FileNotFoundError):
        syntax_graphs("no_such_package_here")
