import copy
import math

import pytest
import torch
from torch import nn

import heldout
from heldout import adapt
from heldout.adapt import AdaNPC, AdaNPCBN, adanpc
from heldout.nn import KNNMemory

CLASSES = 3


def source(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    z = torch.randn(n, 4, generator=generator)
    z[torch.arange(n), y] += 1.5
    return z, y


def adapter(kind=AdaNPC, **options):
    return kind(nn.Identity(), [source()], CLASSES, **{"k": 20, "beta": 0.8} | options)


def batches(n=4, size=16):
    return list(source(n * size, seed=1)[0].split(size))


@torch.no_grad()
def test_log_probabilities_are_those_of_the_renormalised_vote():
    a, x = adapter(), batches()[0]
    memory = KNNMemory(4)
    memory.add(*source())
    vote = memory.vote(x, 20, 0.1, CLASSES)
    out = a(x)
    torch.testing.assert_close(out.exp(), (vote + 1e-5) / (1 + CLASSES * 1e-5))
    torch.testing.assert_close(out.exp().sum(1), torch.ones(16))
    assert torch.equal(out.argmax(1), vote.argmax(1))


def test_confident_features_join_with_their_predicted_label_after_they_are_predicted():
    a, x = adapter(), batches()[0]
    out = a(x)
    added = a.last_change["added"]
    assert 0 < added.sum() < 16
    assert torch.equal(added, a.last_change["confidence"] >= 0.8)
    assert len(a.memory) == 60 + added.sum()
    assert torch.equal(a.memory.labels[60:], out.argmax(1)[added])
    torch.testing.assert_close(a.memory.features[60:], nn.functional.normalize(x[added]))
    assert torch.equal(a.label_balance(), out.argmax(1)[added].bincount(minlength=CLASSES))


def test_a_confidence_of_exactly_beta_joins():
    a = adapter(k=1, beta=1.0)  # one neighbour votes for its class alone
    a(batches()[0])
    assert torch.equal(a.last_change["confidence"], torch.ones(16))
    assert a.last_change["added"].all()


@pytest.mark.parametrize("kind", [AdaNPC, AdaNPCBN])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_encoders_of_any_precision_answer_as_their_features_do_in_single(kind, dtype):
    class Encoder(nn.Module):
        def forward(self, x):
            return x.to(dtype)

    z, y = source()
    options = {"k": 20, "tau": 0.5, "beta": 0.6, **({"lr": 0.1} if kind is AdaNPCBN else {})}
    a = kind(Encoder(), [(z, y)], CLASSES, **options)
    b = kind(nn.Identity(), [(z.to(dtype).float(), y)], CLASSES, **options)
    for x in batches():
        out = a(x)
        assert out.dtype == torch.float32
        assert torch.equal(out, b(x.to(dtype).float()))
    assert torch.equal(a.memory.features, b.memory.features)


def test_beta_above_one_never_changes_the_memory():
    a = adapter(beta=1.1)
    before = a.memory.state_dict()["features"]
    first = [a(x) for x in batches()]
    assert torch.equal(a.memory.state_dict()["features"], before)
    assert all(torch.equal(y, a(x)) for x, y in zip(batches(), first))


@pytest.mark.parametrize("kind", [AdaNPC, AdaNPCBN])
@pytest.mark.parametrize("max_added", [None, 7])
def test_reset_restores_the_bytes_of_the_memory_and_the_predictions(kind, max_added):
    a = adapter(kind, beta=0.0, max_added=max_added)
    before = a.memory.state_dict()
    first = [a(x) for x in batches()]
    assert len(a.memory) == 60 + (max_added or 64)
    a.reset()
    after = a.memory.state_dict()
    assert torch.equal(after["features"], before["features"])
    assert torch.equal(after["labels"], before["labels"])
    assert all(torch.equal(y, a(x)) for x, y in zip(batches(), first))


@pytest.mark.parametrize("kind", [AdaNPC, AdaNPCBN])
def test_state_dict_continues_the_stream_exactly(kind):
    a, b = adapter(kind), adapter(kind)
    assert isinstance(a, adapt.TestTimeAdapter)
    for x in batches()[:2]:
        a(x)
    b.load_state_dict(a.state_dict())
    for x in batches()[2:]:
        assert torch.equal(a(x), b(x))


def test_order_inside_a_batch_does_not_matter():
    x = batches()[0]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    for options in ({}, {"max_per_class": 2}):
        a, b = adapter(**options), adapter(**options)
        torch.testing.assert_close(a(x)[order], b(x[order]))
        assert torch.equal(a.last_change["added"][order], b.last_change["added"])


def test_source_entries_stay_and_added_ones_are_replaced_oldest_first():
    a = adapter(beta=0.0, max_added=10)
    for x in batches():
        a(x)
    assert len(a.memory) == 70
    torch.testing.assert_close(a.memory.features[:60], nn.functional.normalize(source()[0]))
    newest = nn.functional.normalize(batches()[-1][-10:])
    torch.testing.assert_close(a.memory.state_dict()["features"][60:], newest)
    nothing = adapter(beta=0.0, max_added=0)
    nothing(batches()[0])
    assert not nothing.last_change["added"].any()
    assert len(nothing.memory) == 60


def test_cap_per_class_admits_the_most_confident_first():
    a = adapter(beta=0.5, max_per_class=2, tau=0.5)
    a(batches()[0])
    added, confidence, predicted = (a.last_change[key] for key in ("added", "confidence", "predicted"))
    assert a.label_balance().max() <= 2
    for c in range(CLASSES):
        of_class = (predicted == c) & (confidence >= 0.5)
        if added[of_class].any() and not added[of_class].all():
            assert confidence[of_class & added].min() >= confidence[of_class & ~added].max()
    for x in batches()[1:]:
        a(x)
    assert a.label_balance().tolist() == [2, 2, 2]


def test_double_softmax_confidence_lies_in_its_compressed_range():
    a = adapter(confidence="double_softmax", beta=0.5)
    a(batches()[0])
    confidence = a.last_change["confidence"]
    vote = a.last_change["added"]
    assert confidence.max() <= math.e / (math.e + CLASSES - 1) + 1e-6
    assert confidence.min() >= 1 / CLASSES
    assert torch.equal(vote, confidence >= 0.5)


def test_ball_votes_with_all_neighbours_inside_where_every_example_has_one():
    x = source()[0][:4]
    everywhere = adapter(eps_ball=-1.0, beta=2)(x)
    everyone = adapter(k=60, beta=2)(x)
    torch.testing.assert_close(everywhere, everyone)
    assert torch.equal(adapter(eps_ball=1.0001, beta=2)(x), adapter(beta=2)(x))


def test_gradual_shift_is_followed_and_a_jump_is_not():
    def turned(angle, n, seed):
        generator = torch.Generator().manual_seed(seed)
        y = torch.randint(0, 3, (n,), generator=generator)
        phi = 2 * math.pi * y / 3 + angle + 0.25 * torch.randn(n, generator=generator)
        return torch.stack([phi.cos(), phi.sin()], 1), y

    def final_accuracy(angles, beta):
        a = AdaNPC(nn.Identity(), [turned(0.0, 100, 0)], 3, k=10, beta=beta)
        for angle in angles:
            z, y = turned(angle, 200, 1)
            predicted = torch.cat([a(part) for part in z.split(20)]).argmax(1)
        return (predicted == y).float().mean().item()

    steps = [0.2 * i for i in range(1, 8)]
    assert final_accuracy(steps, beta=0.8) > 0.6
    assert final_accuracy(steps, beta=2.0) < 0.3
    assert final_accuracy(steps[-1:], beta=0.8) < 0.3


def test_bn_minimises_the_entropy_of_the_vote_and_standardises_by_batch():
    a, x = adapter(AdaNPCBN, beta=2, lr=0.1, k=30, tau=0.5), batches()[0]
    shifted = adapter(AdaNPCBN, beta=2, lr=0.1, k=30, tau=0.5)
    out = a(x)
    torch.testing.assert_close(out, shifted(5 * x - 3), atol=1e-3, rtol=1e-3)
    for _ in range(20):
        last = a(x)
    assert -(last.exp() * last).sum() < -(out.exp() * out).sum()
    assert a(x[:1]).shape == (1, CLASSES)


def test_encoder_is_run_in_eval_mode_and_left_as_it_was():
    encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    before = copy.deepcopy(encoder.state_dict())
    a = AdaNPC(encoder, [source()], CLASSES, k=3, beta=2)
    assert torch.equal(a(batches()[0]), a(batches()[0]))
    assert encoder.training
    assert encoder[2].training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_memory_loader_may_yield_dicts():
    z, y = source()
    encoder = torch.nn.Identity()
    encoder.forward = lambda input_ids: input_ids
    a = AdaNPC(encoder, [{"input_ids": z, "labels": y}], CLASSES, k=20)
    torch.testing.assert_close(a({"input_ids": batches()[0]}), adapter(beta=0.9)(batches()[0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adapter(k=61), r"k must lie in 1\.\.60"),
        (lambda: AdaNPC(nn.Identity(), [source()], 2, k=5), r"labels must lie in 0\.\.1, got 0\.\.2"),
        (lambda: AdaNPC(nn.Identity(), [], 2), "no batches"),
        (lambda: adapter(confidence="entropy"), "confidence"),
        (lambda: adapter(tau=0.0), "tau must be positive"),
        (lambda: adapter(tau=float("inf")), "tau must be positive and finite"),
        (lambda: adapter(beta=float("nan")), "beta must be a number, got nan"),
        (lambda: adapter(beta=-1.0), "beta must be at least 0"),
        (lambda: adapter(max_added=-1), "max_added must be at least 0"),
        (lambda: adapter(max_per_class=-1), "max_per_class must be at least 0"),
        (lambda: adapter(eps_ball=float("nan")), "eps_ball must be (finite|a number)"),
        (lambda: AdaNPC(nn.Identity(), [source()], 0), "num_classes must be at least 1"),
        (lambda: adapter(AdaNPCBN, lr=float("nan")), "lr must be a number"),
        (lambda: adapter(AdaNPCBN, lr=-1.0), "lr must be at least 0"),
        (lambda: adapter(AdaNPCBN, beta=-1.0), "beta must be at least 0"),
        (lambda: AdaNPC(nn.Flatten(0), [source()], CLASSES), r"features \(batch, dim\)"),
        (lambda: adapter()(torch.full((2, 4), float("nan"))), "NaN"),
        (lambda: adapter()(torch.ones(2, 5)), r"features must be \(batch, 4\)"),
        (lambda: adapter(AdaNPCBN, steps=0), "steps"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_method_votes_from_the_training_set_with_true_labels():
    x, y = source(90)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    fitted = heldout.fit(model, (x, y), adanpc(k=5), epochs=3, seed=0)
    memory = fitted.predictor.memory
    assert torch.equal(memory.labels[:90], y)
    assert fitted.evaluate((x, y))["accuracy"] > 0.6
    assert len(memory) > 90
    fitted.predictor.reset()
    assert len(memory) == 90


@pytest.mark.parametrize(
    ("model", "targets", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3)), torch.arange(20) % 3, "at least k=100 training examples, got 20"),
        (nn.Sequential(nn.Linear(4, 1)), torch.rand(120), "class labels"),
        (
            nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 3, 1), nn.Flatten()),
            torch.arange(120) % 3,
            "no nn.Linear",
        ),
    ],
    ids=["few examples", "regression", "no head"],
)
def test_method_says_where_it_cannot_act(model, targets, message):
    with pytest.raises(ValueError, match=f"adanpc cannot act here.*{message}"):
        heldout.fit(model, (torch.randn(len(targets), 4), targets), adanpc(), epochs=1)


def test_bn_standardises_source_and_test_features_by_the_biased_variance_as_batch_norm_does():
    z, y = source(5)  # so few that the unbiased variance is a quarter larger
    a = AdaNPCBN(nn.Identity(), [(z, y)], CLASSES, k=2, beta=0.0, lr=1e-12)
    expected = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(a.memory.features, nn.functional.normalize(expected, dim=1))
    # their length is lost in the memory: the statistics themselves say which variance it is
    torch.testing.assert_close(a.state_dict()["norm"]["running_var"], z.var(0, correction=0))
    x = batches(1, 4)[0]
    a(x)
    standardised = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(a.memory.features[5:], nn.functional.normalize(standardised, dim=1))
    a.reset()
    single = x[:1]  # by the source's statistics
    a(single)
    standardised = (single - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(a.memory.features[5:], nn.functional.normalize(standardised, dim=1))
