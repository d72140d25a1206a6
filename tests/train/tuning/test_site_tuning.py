import pytest
import torch
from torch import nn

from heldout.train import (
    ClusterRouted,
    TuningBudget,
    finetune_augmented,
    finetune_clusters,
    finetune_local,
    outputs_of,
)
from heldout.train.tuning import site_tuning

SHORT = TuningBudget(steps=60, looks=3, batch_size=16)


def world(n=240, seed=0):
    """At site 1 the label is told by the second number and not by the first, which tells it elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    sites = (torch.arange(n) % 4 == 3).long()
    y = torch.where(sites == 1, x[:, 1] > 0, x[:, 0] > 0).long()
    return x, y, sites


class Net(nn.Module):
    """With batch statistics and dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))

    def forward(self, x):
        return self.body(x)


def fast(module):
    return torch.optim.Adam(module.parameters(), lr=0.02)


@pytest.fixture
def seen(monkeypatch):
    """Rows that training and choosing were given."""
    found = {}
    real = site_tuning._tuned

    def watch(model, dataset, kept, held, *rest):
        found.update(kept=kept, held=held)
        return real(model, dataset, kept, held, *rest)

    monkeypatch.setattr(site_tuning, "_tuned", watch)
    return found


def test_local_tuning_learns_the_site_from_its_own_rows_alone(seen):
    torch.manual_seed(0)
    x, y, sites = world()
    start = Net()
    before = {name: value.clone() for name, value in start.state_dict().items()}
    tuned = finetune_local(start, (x, y), sites, 1, SHORT, optimizer=fast)
    for name, value in start.state_dict().items():
        assert value.equal(before[name])  # a copy was trained
    both = torch.cat([seen["kept"], seen["held"]])
    assert sorted(both.tolist()) == (sites == 1).nonzero().flatten().tolist()
    assert len(seen["held"]) == 12
    new_x, new_y, new_sites = world(2000, seed=1)
    there = new_sites == 1
    assert (tuned.predict(new_x[there]).argmax(1) == new_y[there]).double().mean() > 0.75
    assert len(tuned.history) == 3
    assert not tuned.module.training


def test_no_unit_is_learnt_from_and_chooses(seen):
    x, y, sites = world()
    units = torch.arange(240) // 8
    finetune_local(Net(), (x, y), sites, 0, SHORT, units=units)
    kept, held = units[seen["kept"]].unique(), units[seen["held"]].unique()
    assert not set(kept.tolist()) & set(held.tolist())
    assert len(held) == 6
    finetune_augmented(Net(), (x, y), sites, 1, nn.Identity(), SHORT, units=units, per_item=3)
    assert not set(units[seen["kept"]].tolist()) & set(units[seen["held"]].tolist())


def test_what_chooses_may_be_told(seen):
    x, y, sites = world()
    choosing = torch.arange(240) % 5 == 0
    finetune_local(Net(), (x, y), sites, 1, SHORT, choosing=choosing)
    assert seen["held"].tolist() == (choosing & (sites == 1)).nonzero().flatten().tolist()
    assert seen["kept"].tolist() == (~choosing & (sites == 1)).nonzero().flatten().tolist()
    finetune_augmented(Net(), (x, y), sites, 1, nn.Identity(), SHORT, choosing=choosing, per_item=5)
    assert not choosing[seen["kept"]].any()
    finetune_clusters(Net(), (x, y), nn.Identity(), 1, SHORT, choosing=choosing)
    assert seen["held"].tolist() == choosing.nonzero().flatten().tolist()


def test_augmented_adds_the_nearest_of_other_sites(seen):
    x, y, sites = world()
    finetune_augmented(Net(), (x, y), sites, 1, lambda batch: batch[:, :2], SHORT, per_item=2)
    own = seen["kept"][sites[seen["kept"]] == 1]
    added = seen["kept"][sites[seen["kept"]] == 0]
    assert len(own) == 48
    assert len(added.unique()) == len(added) > 20
    unit = nn.functional.normalize(x[:, :2], dim=1)
    elsewhere = (sites == 0).nonzero().flatten()
    expected = {elsewhere[i].item() for row in unit[own] @ unit[elsewhere].T for i in row.topk(2).indices}
    assert set(added.tolist()) == expected


def test_where_no_step_helps_the_start_is_kept():
    x, y, sites = world()
    good = nn.Linear(4, 2)
    with torch.no_grad():
        good.weight.copy_(torch.tensor([[0, -9.0, 0, 0], [0, 9.0, 0, 0]]))
        good.bias.zero_()
    worse = finetune_local(good, (x, 1 - y), sites, 1, SHORT, optimizer=fast)
    assert not worse.predict(x).equal(good(x))
    same = finetune_local(
        good, (x, y), sites, 1, SHORT, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.5, maximize=True)
    )
    assert same.predict(x).equal(good(x))
    last = finetune_local(
        good, (x, y), sites, 1, TuningBudget(steps=4, looks=1, validation=0.0),
        optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.5, maximize=True),
    )  # fmt: skip
    assert not last.predict(x).equal(good(x))


@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_steps_do_not_depend_on_the_number_of_examples(validation):
    x, y, sites = world()
    counts = []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            counts[-1] += 1
            return super().step(closure)

    budget = TuningBudget(steps=12, looks=3, validation=validation)
    for site in (0, 1):
        counts.append(0)
        finetune_local(Net(), (x, y), sites, site, budget, optimizer=lambda m: Counting(m.parameters(), lr=0.01))
    assert counts == [12, 12]


def test_clusters_are_tuned_apart_and_routed():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    x[:, 3] = torch.where(torch.arange(200) % 2 == 0, 8.0, -8.0)
    y = ((x[:, 0] > 0) ^ (x[:, 3] > 0)).long()  # the rule is turned round in one of two clusters
    torch.manual_seed(0)
    routed = finetune_clusters(
        nn.Linear(4, 2), (x, y), nn.Identity(), 2, TuningBudget(steps=150, looks=3), optimizer=fast
    )
    assert (outputs_of(routed, (x, y))[0].argmax(1) == y).double().mean() > 0.9
    cluster = routed.cluster_of(x)
    assert cluster.unique().tolist() == [0, 1]
    for number in (0, 1):
        assert routed(x)[cluster == number].equal(routed.models[number](x[cluster == number]))


def test_a_cluster_of_one_class_keeps_the_start():
    x = torch.cat([torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 5.0]])]).repeat_interleave(20, 0)
    x = x + 0.1 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    y = torch.cat([torch.zeros(20), torch.arange(20) % 2]).long()
    start = nn.Linear(2, 2)
    routed = finetune_clusters(start, (x, y), nn.Identity(), 2, TuningBudget(steps=6, looks=1), optimizer=fast)
    same = [all(a.equal(b) for a, b in zip(m.parameters(), start.parameters(), strict=True)) for m in routed.models]
    assert same == [number == routed.cluster_of(x[:1]).item() for number in (0, 1)]


def test_routing_takes_tuples_mappings_and_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    ids = torch.randint(1, 20, (40, 6), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "attention_mask": torch.ones(6).long(), "labels": i % 2} for i, row in enumerate(ids)]

    def embed(input_ids, attention_mask):
        return nn.functional.one_hot(input_ids, 20).float().mean(1)

    budget = TuningBudget(steps=4, looks=2, batch_size=8)
    routed = finetune_clusters(model, rows, embed, 3, budget)
    assert routed(input_ids=ids, attention_mask=torch.ones_like(ids)).shape == (40, 2)
    sites = torch.arange(40) % 3
    tuned = finetune_augmented(model, rows, sites, 2, embed, budget)
    assert tuned.predict({"input_ids": ids[:3], "attention_mask": torch.ones(3, 6).long()}).shape == (3, 2)

    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    pair = (torch.eye(2), torch.ones(2, 2))
    assert ClusterRouted([Two(), Two()], torch.eye(2), lambda a, b: a)(*pair).equal(sum(pair))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": 7}, "site must be one of 0, 1, got 7"),
        ({"sites": torch.zeros(3).long()}, "equally long"),
        ({"units": torch.zeros(3).long()}, "equally long"),
        ({"data": (torch.zeros(8, 2), torch.zeros(8).long())}, "site 1 has examples of one class only, 0"),
        ({"choosing": torch.zeros(8).bool()}, "choosing must hold some of the examples of site 1, and not all"),
        ({"choosing": torch.zeros(8)}, "choosing must be bool"),
        ({"choosing": torch.arange(8) < 4, "units": torch.arange(8) // 3}, "must not part a unit, got examples of 1"),
        ({"data": (torch.zeros(0, 2), torch.zeros(0).long())}, "data must not be empty"),
    ],
)
@pytest.mark.parametrize("function", [finetune_local, finetune_augmented])
def test_bad_input_is_refused(function, change, message):
    data = (torch.randn(8, 2), torch.arange(8) // 2 % 2)
    given = {"data": data, "sites": torch.arange(8) % 2, "site": 1, "units": None, "choosing": None} | change
    more = [nn.Identity()] if function is finetune_augmented else []
    with pytest.raises(ValueError, match=message):
        function(
            nn.Linear(2, 2), given["data"], given["sites"], given["site"], *more, units=given["units"],
            choosing=given["choosing"],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 10, "looks": 3}, "looks must divide the 10 steps"),
        ({"validation": 1.0}, "validation must be"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TuningBudget(**options)


def test_clusters_that_cannot_be_are_refused():
    data = (torch.randn(8, 2), torch.arange(8) % 2)
    with pytest.raises(ValueError, match="clusters must be at least 1"):
        finetune_clusters(nn.Linear(2, 2), data, nn.Identity(), 0)
    with pytest.raises(ValueError, match="models and centroids must be equally long"):
        ClusterRouted([nn.Linear(2, 2)], torch.eye(2), nn.Identity())
