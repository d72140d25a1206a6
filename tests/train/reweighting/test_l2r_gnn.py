import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import heldout
from heldout.nn import tiny_vit
from heldout.train import SampleReweighter, l2r, train_reweighted


def biased(n=240, same=0.9, seed=0):
    """Two inputs tell of a class: the first weakly and always, the second strongly and by chance."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=g)
    go = torch.where(torch.rand(n, generator=g) < same, y, 1 - y)
    x = torch.stack([y * 2.0 - 1, go * 2.0 - 1, torch.zeros(n)], 1) + torch.tensor([1.0, 0.3, 1.0]) * torch.randn(
        n, 3, generator=g
    )
    return TensorDataset(x, y)


def network(seed=0, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 2))


def loader(data, size=40):
    return DataLoader(data, batch_size=size, shuffle=True)


def train(model=None, **options):
    options = {"epochs": 6, "warmup": 2, "recluster": 2, "reweighter": SampleReweighter(3, steps=3)} | options
    return train_reweighted(model or network(), loader(biased()), loader(biased(80, seed=1)), **options)


def test_without_weights_it_is_plain_training():
    model, data = network(), biased()
    found = train(model, decorrelate="none", bilevel=False, schedule="constant", epochs=2, seed=5)
    plain = network()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    with heldout.train.seeded(5):
        batches = loader(data)
        next(iter(batches))  # asked for once to see what the model takes
        for _ in range(2):
            for x, y in batches:
                optimizer.zero_grad()
                F.cross_entropy(plain(x), y).backward()
                optimizer.step()
    for ours, theirs in zip(found.module.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), atol=1e-6)
    assert {entry["ess"] for entry in found.history} == {1.0}


def test_weights_move_after_the_warm_up_and_the_model_that_was_given_stays():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    found = train(model, on_batch=lambda batch, weights: seen.append((len(batch[1]), weights)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [entry["ess"] == 1 for entry in found.history] == [True, True, False, False, False, False]
    assert len(seen) == 4 * 6
    assert all(size == len(weights) and abs(weights.mean() - 1) < 1e-4 for size, weights in seen)
    assert found.reweighter.mask is not None
    assert not found.module.training
    assert model.training
    again = train(network())
    assert all(torch.equal(a, b) for a, b in zip(found.module.parameters(), again.module.parameters(), strict=True))


def test_validation_examples_pull_weights_to_those_like_them_and_statistics_stay():
    """Held-out examples all contradict the bias: such training examples get the larger weights."""
    data, contrary = biased(), biased(200, same=0.0, seed=3)
    rare, common = [], []

    def note(batch, weights):
        x, y = batch
        odd = (x[:, 1] > 0) != (y == 1)
        rare.extend(weights[odd].tolist())
        common.extend(weights[~odd].tolist())

    options = {"decorrelate": "none", "reweighter": SampleReweighter(None, pull_rate=0.5), "on_batch": note}
    found = train_reweighted(network(), loader(data), loader(contrary), epochs=8, warmup=2, **options)
    assert sum(rare) / len(rare) > 1.3 * sum(common) / len(common)
    assert found.module[1].num_batches_tracked == 8 * 6  # not once more for the held-out forward passes


def test_alternating_gives_less_weight_to_what_is_learnt_badly():
    seen = []

    def note(batch, weights):
        seen.append((batch[1], weights))

    def loss(outputs, y):
        return torch.where(y == 1, 5.0, 1.0) + 0 * outputs[:, 0]

    weigher = SampleReweighter(None, steps=0, pull_rate=0.5)
    train(decorrelate="all", bilevel=False, warmup=0, epochs=1, on_batch=note, reweighter=weigher, loss=loss)
    assert len(seen) == 6
    assert all(weights[y == 1].max() < weights[y == 0].min() for y, weights in seen)


def test_all_pairs_leave_no_mask_and_random_variables_give_random_clusters():
    assert train(decorrelate="all").reweighter.mask is None
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    found = train(variables=lambda model: (rows, torch.arange(60) % 6)).reweighter.mask
    expected = SampleReweighter(3)
    expected.cluster(rows, torch.arange(60) % 6)
    assert torch.equal(found, expected.mask)


def test_a_representation_of_ones_own_takes_models_without_a_last_linear_layer():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 6)

        def forward(self, x):
            return self.body(x).view(-1, 2, 3).sum(2)

    options = {"representation": lambda model, x: model.body(x), "epochs": 3, "warmup": 1}
    found = train_reweighted(
        Odd(), loader(biased()), loader(biased(80)), reweighter=SampleReweighter(2, steps=2), **options
    )
    assert found.history[-1]["ess"] < 1
    with pytest.raises(ValueError, match="classification layer"):
        train_reweighted(Odd(), loader(biased()), loader(biased(80)))


def test_graphs_go_to_models_as_these_take_them():
    geometric = pytest.importorskip("torch_geometric.loader")
    from heldout.nn import GraphClassifier
    from heldout.tasks import motif_graphs

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = GraphClassifier("gin", 4, 2, hidden=6)

        def forward(self, data):
            return self.inner(data.x, data.edge_index, data.batch)

    graphs = motif_graphs(24, 0.9)
    torch.manual_seed(0)
    whole = Whole()
    results = []
    for model in (whole, whole.inner):
        loaders = [geometric.DataLoader(graphs, 8, shuffle=True) for _ in range(2)]
        results.append(train_reweighted(model, *loaders, epochs=2, warmup=0, reweighter=SampleReweighter(2, steps=2)))
    assert results[0].history[0]["loss"] == pytest.approx(results[1].history[0]["loss"], rel=1e-4)
    assert results[0].history[-1]["ess"] < 1


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"epochs": 0}, "epochs"),
        ({"warmup": -1}, "warmup"),
        ({"recluster": 0}, "recluster"),
        ({"decorrelate": "some"}, "decorrelate"),
        ({"loss": F.cross_entropy}, "loss"),
        ({"reweighter": SampleReweighter(9)}, "clusters"),
    ],
)
def test_bad_options_are_refused_by_name(options, argument):
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        train(**options)


def test_loaders_without_a_batch_or_a_length_and_inputs_that_are_not_finite_are_refused():
    good = loader(biased())
    with pytest.raises(ValueError, match="train"):
        train_reweighted(network(), [], good)
    with pytest.raises(ValueError, match="val"):
        train_reweighted(network(), good, iter(good), epochs=9, warmup=0)
    with pytest.raises(TypeError, match="val"):
        train_reweighted(network(), good, (batch for batch in good))
    x, y = biased().tensors
    with pytest.raises(FloatingPointError):
        train_reweighted(network(), loader(TensorDataset(x * float("nan"), y)), good, epochs=1)


FAST = {"epochs": 5, "batch_size": 40, "seed": 0}


def test_the_method_sets_examples_aside_learns_weights_and_goes_with_others():
    for method in (l2r(3, 3), l2r(3, 3) + heldout.methods.sam(), l2r(3, 0)):
        fitted = heldout.fit(network(), biased(), method, **FAST)
        assert fitted.evaluate(biased(seed=2))["accuracy"] > 0.5
        assert len(fitted.run.train_set) == 240 - 24
        weights = fitted.run.state["l2r weights"]
        assert weights.std() > 0
        assert weights.mean().item() == pytest.approx(1, abs=1e-4)


def test_the_method_takes_the_groups_of_the_user_for_those_between_which_correlations_are_to_be_stable(monkeypatch):
    data = biased()
    domains = (torch.arange(240) // 80)[torch.randperm(240, generator=torch.Generator().manual_seed(0))]
    seen = []
    original = SampleReweighter.cluster
    monkeypatch.setattr(
        SampleReweighter, "cluster", lambda self, z, groups: seen.append(groups) or original(self, z, groups)
    )
    fitted = heldout.fit(network(), heldout.Splits(train=data, domains=domains), l2r(3, 1), **FAST)
    assert torch.equal(seen[0], domains[torch.tensor(fitted.run.train_set.indices)])
    seen.clear()
    heldout.fit(network(), data, l2r(3, 1), **FAST)
    assert len(seen[0].unique()) == 10


def test_the_method_trains_a_transformer_whose_layer_reads_tokens():
    x, y = torch.randn(48, 1, 8, 8), torch.arange(48) % 2
    method = l2r(2, 1, trusted=0.2, warmup=0.5)
    model = tiny_vit(image_size=8, patch_size=4, channels=1, num_classes=2, dim=16, depth=1, heads=2)
    fitted = heldout.fit(model, (x, y), method, epochs=2, batch_size=16)
    assert fitted.run.state["l2r weights"].isfinite().all()


def test_the_method_says_when_it_cannot_act():
    x, y = biased().tensors
    for model, data, reason in (
        (network(), (x, y.float()), "class labels"),
        (
            nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (2, 3)), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
            (x, y),
            "classification layer",
        ),
        (network(width=4), (x, y), "reads 4 variables"),
        (network(), (x[:2], torch.tensor([0, 1])), "no class has two"),
    ):
        assert reason in l2r(5).check(model, heldout.Splits(train=data))
    assert l2r(5).check(network(), heldout.Splits(train=(x, y))) is None


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"clusters": 0}, "clusters"),
        ({"steps": -1}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"pull_rate": -1.0}, "pull_rate"),
        ({"trusted": 0.0}, "trusted"),
        ({"trusted": 0.6}, "trusted"),
        ({"warmup": 1.5}, "warmup"),
        ({"recluster": 0}, "recluster"),
        ({"form": "other"}, "form"),
    ],
)
def test_bad_options_of_the_method_are_refused_by_name(options, argument):
    with pytest.raises(ValueError, match=rf"\b{argument}\b"):
        l2r(**options)


def test_the_method_trains_a_network_on_the_graphs_of_a_problem():
    pytest.importorskip("torch_geometric")
    from heldout.nn import GraphClassifier
    from heldout.problem.graphs import graph_splits, on_graphs
    from heldout.tasks import motif_graphs

    torch.manual_seed(0)
    model = on_graphs(GraphClassifier("gin", 4, 2, hidden=6))
    splits, _ = graph_splits(heldout.Splits(train=motif_graphs(40, 0.9), test={"other": motif_graphs(10)}))
    assert l2r(3).check(model, splits) is None
    fitted = heldout.fit(model, splits, l2r(3, 2, trusted=0.2, warmup=0.4), epochs=3, batch_size=16, seed=0)
    assert fitted.run.state["l2r weights"].std() > 0
    assert fitted.evaluate(splits.test["other"])["loss"] > 0
