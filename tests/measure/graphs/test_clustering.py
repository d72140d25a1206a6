import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from heldout.measure import probe_clustering


def world(n=90):
    y = torch.arange(n) % 3
    return 2.0 * torch.eye(3)[y] + torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), y


def test_it_is_what_scikit_learn_says():
    h, y = world()
    found = probe_clustering(h, y, 4, seed=7)
    clusters = KMeans(4, n_init=10, random_state=7).fit_predict(h.numpy())
    assert found.clusters.tolist() == clusters.tolist()
    assert found.nmi == pytest.approx(normalized_mutual_info_score(y, clusters))
    assert found.ari == pytest.approx(adjusted_rand_score(y, clusters))


def test_clusters_are_as_many_as_classes_and_labels_need_not_begin_at_0():
    h, y = world()
    assert len(probe_clustering(h, 5 + 2 * y).clusters.unique()) == 3
    assert probe_clustering(h, 5 + 2 * y).nmi == probe_clustering(h, y).nmi


def test_numbers_of_clusters_do_not_count():
    h = torch.tensor([[0.0], [0.1], [9.0], [9.1], [20.0], [20.1]])
    assert probe_clustering(h, torch.tensor([2, 2, 0, 0, 1, 1]))[:2] == (1.0, 1.0)


def test_nodes_alone_are_compared_though_all_are_clustered():
    h, y = world()
    nodes = torch.arange(90) % 5 < 2
    found, whole = probe_clustering(h, y, nodes=nodes), probe_clustering(h, y)
    assert torch.equal(found.clusters, whole.clusters)
    assert found.nmi == pytest.approx(normalized_mutual_info_score(y[nodes], whole.clusters[nodes]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"h": torch.full((6, 2), torch.nan)}, "h must be finite"),
        ({"k": 7}, "k must be at most the number of nodes"),
        ({"k": 0}, "k must be at least 1"),
        ({"y": torch.zeros(5, dtype=torch.int64)}, "equally long"),
        ({"nodes": torch.zeros(6, dtype=torch.bool)}, "nodes must be bool"),
        ({"restarts": 0}, "restarts"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        probe_clustering(**{"h": torch.eye(6), "y": torch.arange(6) % 2, **change})
