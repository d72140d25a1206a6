import functools
import importlib
import math
import sys
import types

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import heldout
from heldout.losses import divdis_mi
from heldout.nn import mlp, small_cnn
from heldout.tasks import l_shape
from heldout.train import Hypotheses, dbat, disambiguate, divdis, diversify

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


def network():
    return mlp(2, 2, (32,))


def loaders(agreement, n=256):
    world, target = l_shape(1.0, n, margin=0.1), l_shape(agreement, n, margin=0.1, seed=1)
    labelled = DataLoader(TensorDataset(world.points, world.labels), batch_size=64)
    return labelled, DataLoader(TensorDataset(target.points, target.labels), batch_size=128)


def balanced():
    test = l_shape(0.5, 400, margin=0.1, seed=2)
    return test.points, test.labels, test.spurious


@functools.lru_cache(maxsize=8)
def trained(method, agreement, k=2):
    return diversify(network, *loaders(agreement), method, k, epochs=20, optimizer=ADAM)


@pytest.mark.parametrize(("method", "agreement"), [("divdis", 0.5), ("dbat", 0.0)])
def test_at_its_sweet_spot_a_method_finds_both_cues(method, agreement):
    hypotheses, (x, y, spurious) = trained(method, agreement), balanced()
    right = hypotheses.accuracies(x, y)
    chosen = disambiguate(hypotheses, x[:32], y[:32])
    assert right[chosen] > 0.85 if method == "divdis" else right[chosen] > 0.7
    assert disambiguate(hypotheses, x, spurious) != disambiguate(hypotheses, x, y)
    source = l_shape(1.0, 200, margin=0.1, seed=3)
    assert hypotheses.accuracies(source.points, source.labels).min() > 0.95


def test_dbat_leaves_earlier_models_bit_identical():
    two, three = trained("dbat", 0.0), trained("dbat", 0.0, 3)
    for index in range(2):
        for name, value in two[index].state_dict().items():
            assert torch.equal(value, three[index].state_dict()[name])
    assert [entry["hypothesis"] for entry in three.history] == [0.0] * 20 + [1.0] * 20 + [2.0] * 20
    assert three.history[0]["diversity"] == 0
    assert three.history[-1]["diversity"] > 0


@pytest.mark.parametrize("method", ["divdis", "dbat"])
def test_hypotheses_are_plain_models_and_copies(method):
    hypotheses, x = trained(method, 0.5), balanced()[0]
    assert len(hypotheses) == 2
    logits = hypotheses(x)
    assert logits.shape == (400, 2, 2)
    for index in range(2):
        model = hypotheses[index].eval()
        assert list(model.state_dict()) == list(network().state_dict())
        torch.testing.assert_close(model(x), logits[:, index])
        nn.init.zeros_(model[-1].weight)
    assert torch.equal(hypotheses(x), logits)


def test_a_given_model_is_copied_and_stays_as_it_was():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for method in ("divdis", "dbat"):
        diversify(model, *loaders(0.5), method, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_hypotheses_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (diversify(network, *loaders(0.5), epochs=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    x = balanced()[0]
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


def test_a_penalty_of_ones_own_takes_the_place_of_the_mutual_information():
    seen = []

    def penalty(probs):
        seen.append(probs.shape)
        return divdis_mi(probs)

    hypotheses = diversify(network, *loaders(0.5), penalty, k=3, weight=2.0, epochs=1)
    assert set(seen) == {torch.Size([128, 3, 2])}
    assert len(hypotheses) == 3


def test_dict_batches_and_several_inputs_are_understood():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, a, b):
            return self.head(self.hidden(torch.cat([a, b], 1)).relu())

    a, b, y = torch.randn(32, 1), torch.randn(32, 2), torch.arange(32) % 2
    for method in ("divdis", "dbat"):
        pairs = diversify(Two, [(a, b, y)], [(a, b)], method, epochs=1)
        dicts = diversify(Two, [{"a": a, "b": b, "labels": y}], [{"a": a, "b": b, "id": y}], method, epochs=1)
        torch.testing.assert_close(pairs((a, b)), dicts({"a": a, "b": b}))


def test_the_most_disputed_examples_are_those_where_the_predictions_differ_most():
    class Shifted(nn.Module):
        def forward(self, x):
            return torch.stack([torch.cat([x, -x], 1), torch.cat([-x, x], 1)], 1)

    hypotheses = Hypotheses(Shifted(), [nn.Identity, nn.Identity])
    assert hypotheses.most_disputed(torch.tensor([[0.1], [-3.0], [2.0], [0.0]]), 2).tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"count must lie in 1..4, .* got 5"):
        hypotheses.most_disputed(torch.zeros(4, 1), 5)


X, Y = torch.randn(16, 2), torch.arange(16) % 2


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((network, [(X, Y)], [X]), {"k": 1}, "k of at least 2 hypotheses, got 1"),
        ((network, [(X, Y)], []), {}, "the unlabelled data yields no batches"),
        ((network, [], [X]), {}, "the labelled data yields no batches"),
        ((network, [(X, Y)], iter([X])), {}, "there more than once"),
        (
            (network, [(X, Y)], [torch.randn(16, 3)]),
            {},
            r"unlabelled example has the shape \(3,\), a labelled one \(2,\)",
        ),
        ((network, [(X, Y)], ["text"]), {}, "must be tensors, got str"),
        ((network, [{"x": X, "labels": Y}], [X]), {}, "must be dicts with x"),
        ((network, [(X, Y + 1)], [X]), {}, r"labels must lie in 0..1"),
        ((network, [(X, Y.float())], [X]), {}, "class indices"),
        ((network, [(X, Y)], [X]), {"method": "other"}, "method must be one of 'divdis', 'dbat' or callable"),
        ((network, [(X, Y)], [X]), {"epochs": 0}, "epochs must be at least 1"),
        ((nn.Sequential(nn.Linear(2, 2), nn.Softmax(1), nn.Flatten()), [(X, Y)], [X]), {}, "cannot be replaced"),
    ],
)
def test_bad_input_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        diversify(*arguments, **options)


def test_disambiguate_needs_a_label_for_each_example():
    with pytest.raises(ValueError, match="one label for each of the 16 examples, got \\(3,\\)"):
        disambiguate(trained("divdis", 0.5), X, Y[:3])
    with pytest.raises(ValueError, match="one label for each of the 0"):
        disambiguate(trained("divdis", 0.5), X[:0], Y[:0])


def splits(agreement, **changes):
    source, target, few = (
        l_shape(r, n, margin=0.1, seed=s) for r, n, s in [(1, 256, 0), (agreement, 256, 1), (0.5, 64, 2)]
    )
    given = {
        "train": (source.points, source.labels),
        "val": (few.points, few.labels),
        "unlabeled": TensorDataset(target.points),
    }
    return heldout.Splits(**given | changes)


def fit(method, data, seed=0):
    return heldout.fit(network, data, method, epochs=20, optimizer=ADAM, seed=seed)


@pytest.mark.parametrize(("method", "agreement"), [(divdis(), 0.5), (dbat(), 0.0)])
def test_the_methods_return_a_plain_model_that_generalises_better(method, agreement):
    x, y, _ = balanced()
    fitted, plain = (fit(m, splits(agreement)) for m in (method, None))
    assert list(fitted.module.state_dict()) == list(network().state_dict())
    assert fitted.evaluate((x, y))["accuracy"] > plain.evaluate((x, y))["accuracy"]
    assert all(p.requires_grad for p in fitted.module.parameters())
    assert "train_error" in fitted.history[-1]


def with_norm_and_dropout():
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))


def test_dbat_asks_its_first_model_in_eval_mode_and_leaves_its_statistics():
    found = {}

    def watch(run, module):
        train_plain = run.train_plain

        def watched(*arguments):
            found["model"], errors = train_plain(*arguments)
            found["state"] = {name: value.clone() for name, value in found["model"].state_dict().items()}
            return found["model"], errors

        run.train_plain = watched
        return module

    spy = heldout.Method("spy", model=watch)
    heldout.fit(with_norm_and_dropout, splits(0.0), spy + dbat(), epochs=2, optimizer=ADAM)
    assert not found["model"].training
    assert int(found["state"]["1.num_batches_tracked"]) > 0
    for name, value in found["model"].state_dict().items():
        assert torch.equal(value, found["state"][name])


def test_the_first_model_of_dbat_is_the_plain_one_to_the_statistics():
    data = splits(0.0)
    methods = (dbat(), None)
    fitted, plain = (heldout.fit(with_norm_and_dropout, data, m, epochs=2, optimizer=ADAM) for m in methods)
    first = fitted.run.state["dbat"][0].state_dict()
    for name, value in plain.module.state_dict().items():
        assert torch.equal(value, first[name]), name


def test_earlier_models_of_dbat_answer_in_eval_mode_and_keep_their_statistics():
    two, three = (diversify(with_norm_and_dropout, *loaders(0.0), "dbat", k, epochs=2) for k in (2, 3))
    for index in range(2):
        for name, value in two[index].state_dict().items():
            assert torch.equal(value, three[index].state_dict()[name])


def test_dbat_keeps_the_plain_model_where_validation_prefers_it():
    world = l_shape(1.0, 64, margin=0.1, seed=5)
    data = splits(1.0, val={"a": (world.points, world.labels)})
    fitted, plain = fit(dbat(), data), fit(None, data)
    for name, value in plain.module.state_dict().items():
        assert torch.equal(value, fitted.module.state_dict()[name])
    assert all(p.requires_grad for p in fitted.module.parameters())


def test_validation_sets_count_alike_whatever_their_size():
    class First(nn.Module):  # says what is written in its input
        def forward(self, x):
            return torch.nn.functional.one_hot(x.long(), 2).float()

    y = torch.ones(10, dtype=torch.long)
    first, second = torch.ones(10), (torch.arange(10) < 6).float()
    many = (torch.stack([first, second], 1), y)
    few = (torch.tensor([[0.0, 1.0]]), y[:1])
    data = splits(0.0, val={"many": many, "few": few})
    run = types.SimpleNamespace(splits=data, device=torch.device("cpu"))
    assert sys.modules[dbat.__module__]._best_on_validation(First(), run) == 1


def test_every_head_of_divdis_fits_the_labels():
    found = []
    spy = heldout.Method("spy", weights=lambda run, module: (found.append(run.state["divdis"][0]), module)[1])
    data = splits(0.5)
    heldout.fit(network, data, spy + divdis(), epochs=20, optimizer=ADAM)
    x, y = data.train.tensors
    with torch.no_grad():
        right = (found[0].eval().all(x).argmax(2) == y.unsqueeze(1)).double().mean(0)
    assert right.min() > 0.95


def test_both_evaluations_of_a_sam_step_see_the_same_unlabelled_batch(monkeypatch):
    from heldout.optim import sam

    module = importlib.import_module("heldout.train.semi_supervised.unlabelled")
    drawn, draw = [], module.UnlabelledBatches.draw
    monkeypatch.setattr(
        module.UnlabelledBatches, "draw", lambda self, run: (drawn.append(draw(self, run)), drawn[-1])[1]
    )
    heldout.fit(network, splits(0.5), dbat(unlabelled_batch=32) + sam(), epochs=1, optimizer=ADAM)
    assert len(drawn) == 8
    assert all(drawn[i] is drawn[i + 1] for i in range(0, 8, 2))
    assert drawn[0] is not drawn[2]


def test_the_methods_take_unlabelled_data_in_any_form():
    x, y, _ = balanced()
    outputs = [
        heldout.fit(network, splits(0.5, unlabeled=data), divdis(), epochs=1).predict(x)
        for data in (x, TensorDataset(x), TensorDataset(x, y), [(row, 0) for row in x])
    ]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_the_methods_compose():
    from heldout.optim import sam

    for method in (divdis() + sam(), dbat() + sam()):
        fitted = heldout.fit(network, splits(0.5), method, epochs=1, optimizer=ADAM)
        assert list(fitted.module.state_dict()) == list(network().state_dict())


@pytest.mark.parametrize("method", [divdis(), dbat()])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabeled": None}, r"needs unlabelled inputs .* Splits\(unlabeled"),
        ({"unlabeled": TensorDataset(torch.zeros(0, 2))}, "is empty"),
        ({"unlabeled": TensorDataset(torch.zeros(9, 3))}, r"has the shape \(3,\), a labelled one \(2,\)"),
        ({"val": None}, r"Splits\(val=...\) must hold"),
        ({"train": (X, X)}, "targets are real numbers"),
    ],
)
def test_the_check_says_why_a_method_cannot_act(method, changes, message):
    with pytest.raises(ValueError, match=message):
        heldout.fit(network, splits(0.5, **changes), method)


def test_divdis_needs_a_classification_layer():
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4) % 2
    data = heldout.Splits(train=(images, labels), val=(images, labels), unlabeled=images)
    with pytest.raises(ValueError, match="no classification layer"):
        heldout.fit(nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten()), data, divdis())
    assert heldout.fit(small_cnn(1, 2, (4,)), data, divdis(), epochs=1, batch_size=4).module


@pytest.mark.parametrize("make", [lambda: divdis(k=1), lambda: dbat(alpha=-1.0), lambda: dbat(alpha=math.nan)])
def test_bad_options_are_refused(make):
    with pytest.raises(ValueError, match=r"needs|alpha must be a number"):
        make()
