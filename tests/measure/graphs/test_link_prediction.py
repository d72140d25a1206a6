import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from heldout.data import split_links
from heldout.measure import probe_link_prediction
from heldout.measure.graphs.link_prediction import _auc, _decoded
from heldout.tasks import BlockModel

pytest.importorskip("torch_geometric")


@pytest.fixture(scope="module")
def world():
    graph = BlockModel(nodes=300, classes=4, degree=8.0, homophily=0.9).sample(0)
    h = torch.nn.functional.one_hot(graph.y).float() + 0.5 * torch.randn(
        300, 4, generator=torch.Generator().manual_seed(1)
    )
    return h, split_links(graph, seed=2)


def test_the_dot_product_is_scored_as_scikit_learn_scores_it(world):
    h, split = world
    found = probe_link_prediction(h, split, decoder="dot")
    scores = torch.cat([(h[a] * h[b]).sum(1) for a, b in (split.test, split.test_negatives)])
    labels = torch.cat([torch.ones(split.test.shape[1]), torch.zeros(split.test.shape[1])])
    assert found.auc == pytest.approx(roc_auc_score(labels, scores))
    assert found.ap == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert found.epoch == 0


def test_the_area_counts_ties_as_half():
    positive, negative = torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([2.0, 1.0, 0.0])
    labels = [1, 1, 1, 1, 0, 0, 0]
    assert _auc(positive, negative) == pytest.approx(roc_auc_score(labels, [3, 1, 2, 2, 2, 1, 0]))
    assert _auc(torch.zeros(3), torch.zeros(5)) == 0.5


def test_the_decoder_has_two_layers_and_dropout_keeps_the_mean():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(*shape, generator=generator) for shape in ((3, 5), (5,), (5, 1), (1,))]
    x = torch.randn(7, 3, generator=generator)
    wanted = torch.relu(x @ weights[0] + weights[1]) @ weights[2] + weights[3]
    torch.testing.assert_close(_decoded(x, weights), wanted[:, 0])
    drawn = torch.stack([_decoded(x, weights, 0.5, generator) for _ in range(4000)])
    torch.testing.assert_close(drawn.mean(0), wanted[:, 0], atol=0.15, rtol=0.05)


def test_a_trained_decoder_tells_links_and_noise_tells_none(world):
    h, split = world
    found = probe_link_prediction(h, split, epochs=60, width=32)
    assert found.auc > 0.7
    assert found.ap > 0.65
    noise = torch.randn(300, 4, generator=torch.Generator().manual_seed(5))
    assert probe_link_prediction(noise, split, epochs=20, width=32).auc == pytest.approx(0.5, abs=0.15)


def test_products_with_a_sign_are_learned_where_dot_products_fail():
    side = torch.randn(300, 3, generator=torch.Generator().manual_seed(1))
    side[:, 0] = torch.where(torch.arange(300) % 2 == 0, 1.0, -1.0)
    odd = torch.arange(300) % 2
    first = torch.randint(300, (2, 3000), generator=torch.Generator().manual_seed(2))
    first = first[:, (odd[first[0]] != odd[first[1]])].sort(0).values.unique(dim=1)
    bipartite = split_links(torch.cat([first, first.flip(0)], 1))
    assert probe_link_prediction(side, bipartite, decoder="dot").auc < 0.4
    assert probe_link_prediction(side, bipartite, epochs=60, width=16).auc > 0.6


def test_what_is_tested_is_not_looked_at_and_the_best_epoch_counts(world):
    h, split = world
    found = probe_link_prediction(h, split, epochs=40, width=16)
    swapped = split._replace(test=split.test_negatives, test_negatives=split.test)
    other = probe_link_prediction(h, swapped, epochs=40, width=16)
    assert (found.epoch, found.val_auc) == (other.epoch, other.val_auc)
    assert found.auc == pytest.approx(1 - other.auc, abs=1e-6)
    assert probe_link_prediction(h, split, epochs=found.epoch, width=16) == found


def test_one_seed_gives_one_answer_in_batches_too(world):
    h, split = world
    before = torch.get_rng_state()
    one, two, other = (probe_link_prediction(h, split, seed, epochs=3, width=8, batch_size=100) for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"h": torch.full((300, 2), torch.nan)}, "h must be finite"),
        ({"h": torch.zeros(299, 2)}, "h must have a row for each of 300"),
        ({"h": torch.zeros(300)}, "h must have 2 dimensions"),
        ({"decoder": "bilinear"}, "decoder"),
        ({"epochs": 0}, "epochs"),
        ({"width": 0}, "width"),
        ({"dropout": 1.0}, "dropout"),
        ({"lr": -1.0}, "lr"),
        ({"batch_size": 0}, "batch_size"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input_is_refused(world, change, says):
    h, split = world
    with pytest.raises(ValueError, match=says):
        probe_link_prediction(**{"h": h, "split": split, **change})
