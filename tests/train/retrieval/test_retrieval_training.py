"""Mixing follows the equations of the specification, written here a second time with loops."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.train import PrimitiveMemory, PrimitiveSet, RetrievalAugmentedTraining

DIM = 6


class Model(nn.Module):
    """Words and numbers; with dropout and BatchNorm, so that modes are seen."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.words, self.regions = nn.Embedding(7, DIM), nn.Linear(3, DIM)
        self.norm, self.dropout = nn.BatchNorm1d(DIM), nn.Dropout(dropout)
        self.out = nn.Sequential(nn.Linear(DIM, 8), nn.Tanh(), nn.Linear(8, 3))

    def encode(self, batch):
        regions = self.norm(self.regions(batch[1]).transpose(1, 2)).transpose(1, 2)
        return self.dropout(torch.cat([self.words(batch[0]), regions], 1))

    def answer(self, features, batch):
        return self.out((features * torch.arange(1, features.shape[1] + 1).view(1, -1, 1)).sum(1))


def batch_of(seed, count=5):
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 7, (count, 2), generator=generator)
    return (
        words, torch.randn(count, 2, 3, generator=generator), torch.arange(count) + 10 * seed,
        torch.randint(0, 3, (count,), generator=generator),
    )  # fmt: skip


def primitives(batch):
    """Both words; and the first region, under two keys."""
    count = len(batch[0])
    rows, one = torch.arange(count), torch.ones(count).long()
    return PrimitiveSet(
        torch.cat([rows, rows, rows, rows]),
        torch.cat([0 * one, one, 2 * one, 2 * one]),
        torch.cat([batch[0][:, 0], batch[0][:, 1], batch[0][:, 0], 6 * one]),
        torch.cat([0 * one, 0 * one, one, one]),
        batch[2],
    )


def made(seed=0, dropout=0.0, **options):
    torch.manual_seed(seed)
    return RetrievalAugmentedTraining(Model(dropout), PrimitiveMemory(DIM, 50, tau=0.2), primitives, **options)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def by_loops(features, found, stored, mix, k, tau, databases):
    """``f'`` of every position, from a list of stored (feature, key, sample, modality)."""
    mixed = features.detach().clone()
    for row in range(features.shape[0]):
        for position in range(features.shape[1]):
            parts = []
            for r, p, key, modality in zip(*(column.tolist() for column in found[:4]), strict=True):
                if (r, p) != (row, position):
                    continue
                means = []
                for database in (0, 1):
                    if databases == "own" and database != modality:
                        continue
                    near = [
                        each for each in stored
                        if each[3] == database and each[1] == key and each[2] != int(found.samples[row])
                    ]  # fmt: skip
                    if not near:
                        continue
                    cosines = torch.stack([F.cosine_similarity(features[row, position], n[0], dim=0) for n in near])
                    best = cosines.argsort(descending=True)[:k]
                    weights = (cosines[best] / tau).softmax(0)
                    means.append(sum(w * near[int(i)][0] for w, i in zip(weights, best, strict=True)))
                if means:
                    parts.append(sum(means) / len(means))
            if parts:
                mixed[row, position] = (1 - mix) * features[row, position] + mix * sum(parts) / len(parts)
    return mixed


@pytest.mark.parametrize("databases", ["all", "own"])
@pytest.mark.parametrize("k", [1, 4])
def test_mixing_is_that_of_the_equations(databases, k):
    training = made(databases=databases, k=k, mix=0.4)
    first = batch_of(1)
    training.step(first)
    encoded = training.model.encode(first).detach()
    # the step stored what the model encoded then: in training mode BatchNorm gives the same again
    found = primitives(first)
    stored = [
        (encoded[r, p], key, int(found.samples[r]), modality)
        for r, p, key, modality in zip(*(column.tolist() for column in found[:4]), strict=True)
    ]
    again = (*first[:2], torch.tensor([10, 11, 99, 98, 97]), first[3])  # two of them must not find themselves
    features = training.model.encode(again)
    mixed = training.mixed(features, primitives(again))
    expected = by_loops(features, primitives(again), stored, 0.4, k, 0.2, databases)
    assert mixed.allclose(expected, atol=1e-5)
    assert not mixed[:, :3].allclose(features[:, :3], atol=1e-2)
    assert torch.equal(mixed[:, 3], features[:, 3])  # no primitive


def test_the_loss_is_that_of_both_passes_and_of_their_divergence():
    training = made(weight=0.5, consistency=2.0, mix=0.4)
    training.step(batch_of(1))
    batch = batch_of(2)
    features = training.model.encode(batch)
    mixed = training.model.answer(training.mixed(features, primitives(batch)), batch)
    own = training.model.answer(features, batch)
    p, q = own.softmax(1), mixed.softmax(1)
    expected = F.cross_entropy(own, batch[3]) + 0.5 * F.cross_entropy(mixed, batch[3])
    expected = expected + 2.0 * (p * (p.log() - q.log())).sum(1).mean()
    assert float(training.step(batch)) == pytest.approx(float(expected), rel=1e-5)
    assert float(F.cross_entropy(mixed, batch[3])) != pytest.approx(float(F.cross_entropy(own, batch[3])), rel=1e-3)


def test_what_is_retrieved_is_a_constant_and_the_features_get_their_share_of_the_gradient():
    training = made(mix=0.4)
    training.step(batch_of(1))
    features = training.model.encode(batch_of(2)).detach().requires_grad_()
    training.mixed(features, primitives(batch_of(2))).sum().backward()
    assert features.grad[:, :2].min() == pytest.approx(0.6)
    assert features.grad[:, 3].allclose(torch.ones(5, DIM))


@pytest.mark.parametrize("options", [{"mix": 0.0}, {"warm_up": 9}])
def test_without_mixing_loss_and_gradients_are_the_models_own(options):
    training, other = made(**options), made()
    for number in (1, 2):
        batch = batch_of(number)
        training.model.zero_grad()
        other.model.zero_grad()
        loss = training.step(batch)
        loss.backward()
        own = F.cross_entropy(other.model.answer(other.model.encode(batch), batch), batch[3])
        own.backward()
        assert float(loss) == pytest.approx(float(own), abs=1e-6)
        for mine, theirs in zip(gradients(training.model), gradients(other.model), strict=True):
            assert mine.allclose(theirs, atol=1e-6)
    assert training.memory.count("language") == 20


def test_mixing_starts_with_the_step_after_the_warm_up():
    training, plain = made(warm_up=2, mix=0.9), made(mix=0.0)
    same = [float(training.step(batch_of(n)).detach()) == float(plain.step(batch_of(n)).detach()) for n in (1, 2, 3)]
    assert same == [True, True, False]


def test_a_batch_without_primitives_gives_its_own_loss_twice_and_with_an_empty_memory_once():
    training = made()
    some, none = training.primitives, torch.zeros(0).long()
    training.primitives = lambda batch: PrimitiveSet(none, none, none, none, batch[2])
    own = float(training.step(batch_of(1)).detach())
    training.primitives = some
    training.step(batch_of(2))
    training.primitives = lambda batch: PrimitiveSet(none, none, none, none, batch[2])
    assert float(training.step(batch_of(1)).detach()) == pytest.approx(2 * own, rel=1e-5)


def test_random_retrieval_has_the_norms_of_retrieval_by_key_over_both_databases():
    norms = {}
    for retrieval in ("key", "random"):
        training = made(mix=1.0, retrieval=retrieval)
        for number in range(1, 6):
            training.step(batch_of(number, 30))
        mixed = training.mixed(training.model.encode(batch_of(9, 30)), primitives(batch_of(9, 30)))
        norms[retrieval] = mixed[:, :3].norm(dim=2).detach()
    assert float(norms["random"].mean()) == pytest.approx(float(norms["key"].mean()), rel=0.25)


def test_random_retrieval_takes_nothing_of_ones_own_example():
    training, eye = made(mix=1.0, retrieval="random"), torch.eye(DIM)
    for sample in (7, 8):  # half of the entries are its own
        training.memory.add(
            eye[sample - 7].expand(20, -1), torch.zeros(20).long(), "language", torch.full((20,), sample)
        )
    one = torch.zeros(1).long()
    mixed = training.mixed(torch.ones(1, 1, DIM), PrimitiveSet(one, one, one, one, torch.tensor([7])))
    assert mixed[0, 0].allclose(eye[1], atol=1e-5)


def test_random_retrieval_mixes_in_means_of_the_same_length_and_another_direction():
    near, random = made(mix=1.0, databases="own"), made(mix=1.0, databases="own", retrieval="random", k=3)
    near.k = 3
    for number in (1, 2, 3):
        near.step(batch_of(number))
        random.step(batch_of(number))
    batch = batch_of(4)
    features = near.model.encode(batch)
    one, other = near.mixed(features, primitives(batch)), random.mixed(features, primitives(batch))
    assert one[:, :2].norm(dim=2).allclose(other[:, :2].norm(dim=2), atol=1e-4)
    assert F.cosine_similarity(one[:, :2], other[:, :2], dim=2).mean() < 0.9
    assert one[:, :2].norm(dim=2).std() > 0.01


def test_by_similarity_any_key_may_be_found():
    training = made(mix=1.0, retrieval="similarity", databases="own", k=1)
    first = batch_of(1)
    training.step(first)
    features = training.model.encode(first).detach()
    unknown = primitives(first)._replace(keys=torch.full((20,), 50), samples=torch.arange(5) + 70)
    assert training.mixed(features, unknown)[:, :3].allclose(features[:, :3], atol=1e-4)  # each found itself
    training.retrieval = "key"
    assert torch.equal(training.mixed(features, unknown), features)


def test_refresh_replaces_what_is_stored_by_what_the_model_says_in_evaluation_mode():
    training = made(dropout=0.5, queue=False)
    training.step(batch_of(1))
    assert training.memory.count("vision") == 0
    training.refresh([batch_of(1), batch_of(2)])
    assert training.memory.count("language") == training.memory.count("vision") == 20
    assert training.model.training
    training.model.eval()
    features = training.model.encode(batch_of(1))
    found = training.memory.search(features[:, 0].detach(), 1, "language", keys=batch_of(1)[0][:, 0])
    assert found.features[:, 0].allclose(features[:, 0], atol=1e-5)
    training.refresh([batch_of(3)])
    assert training.memory.count("language") == 10


def test_a_model_learns_with_it():
    training = made(warm_up=2)
    optimizer = torch.optim.Adam(training.model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = training.step(batch_of(1))
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[3]


def wrong(**changed):
    training = made()
    training.primitives = lambda batch: primitives(batch)._replace(**changed)
    return lambda: training.step(batch_of(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (wrong(positions=torch.full((20,), 4)), "positions"),
        (wrong(rows=torch.full((20,), 5)), "rows"),
        (wrong(modalities=torch.full((20,), 2)), "modalities"),
        (wrong(keys=torch.full((20,), -1)), "keys"),
        (wrong(samples=torch.arange(4)), "samples"),
        (wrong(keys=torch.arange(3)), "keys"),
        (lambda: made().mixed(torch.ones(5, 4, DIM), primitives(batch_of(1))), "memory is empty"),
        (lambda: made(mix=1.5), "mix"),
        (lambda: made(k=0), "k"),
        (lambda: made(retrieval="near"), "retrieval"),
        (lambda: made(weight=-1.0), "weight"),
        (lambda: RetrievalAugmentedTraining(nn.Linear(1, 1), PrimitiveMemory(2, 2), primitives), "encode"),
    ],
)
def test_what_cannot_be_mixed_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_loss_that_is_not_finite_stops_the_training():
    training = made(objective=lambda outputs, batch: outputs.sum() * torch.nan)
    with pytest.raises(FloatingPointError, match="step 1"):
        training.step(batch_of(1))
