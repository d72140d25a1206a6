"""The student against what it was taught."""

import copy
import functools

import pytest
import torch
from torch import nn

from heldout.data import sample_triplets
from heldout.losses import pair_similarities
from heldout.measure import odd_one_out
from heldout.nn import Encoder, mlp
from heldout.train import (
    embed_images,
    pooled_features,
    soft_align,
)

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, 6, generator=GENERATOR) + torch.tensor([2.0, 0, 0, -1.0, 0, 0])
SCALE = torch.tensor([2.5, 1.6, 1.0, 0.6, 0.3, 0.05])
TRIPLETS = sample_triplets(torch.zeros(40).long(), 3000, "uniform", seed=2)
Q = pair_similarities(((X - X.mean(0)) * SCALE)[TRIPLETS]).softmax(1)


ADAM = functools.partial(torch.optim.Adam, lr=0.01)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 8))

    def forward(self, x):
        return self.body(x)


def network():
    torch.manual_seed(0)
    return Net()


def aligned(model=None, images=X, **options):
    options = {"head_dim": 32, "tau": 5.0, "steps": 120, "batch_size": 32, "optimizer": ADAM} | options
    return soft_align(network() if model is None else model, images, TRIPLETS, Q, **options)


def test_the_student_learns_the_choices_and_the_model_given_stays():
    model = network()
    before = copy.deepcopy(model.state_dict())
    found = aligned(model)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not found.module.training
    assert sum(found.history[-10:]) < 0.35 * sum(found.history[:10])
    z = found.head(embed_images(found.module, X)).detach()
    assert odd_one_out(z, TRIPLETS, 2 - Q.argmax(1)) > 0.8
    p = (pair_similarities(z[TRIPLETS]) / 5).softmax(1)
    assert (p - Q).abs().mean() < 0.1


def test_the_history_is_the_loss_of_the_batch_at_hand():
    found = aligned(steps=1, batch_size=3000, warmup=0.0)
    torch.manual_seed(0)
    model = network()  # as soft_align: same seed, one training pass over all items
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(8, 32)
        z = head(model(X))
    p, q = (pair_similarities(z[TRIPLETS]) / 5).softmax(1), Q
    m = (p + q) / 2
    expected = ((p * (p / m).log() + q * (q / m).log()).sum(1) / 2).mean()
    assert found.history == pytest.approx([expected.item()], rel=1e-4)


def test_a_batch_embeds_each_image_once():
    seen = []

    def embed(model, inputs):
        seen.append(len(inputs))
        assert len(inputs) == len(inputs.unique(dim=0))
        return model(inputs)

    aligned(embed=embed, steps=3, batch_size=500)
    assert seen[-3:] == [40, 40, 40]


def test_triplets_are_all_seen_before_one_comes_again():
    counted = []
    images = torch.arange(9.0)[:, None].repeat(1, 6)
    triplets = torch.arange(9).view(3, 3)

    def embed(model, inputs):
        counted.append(sorted({int(v) // 3 for v in inputs[:, 0]}))
        return model(inputs)

    soft_align(nn.Linear(6, 2), images, triplets, torch.full((3, 3), 1 / 3), embed=embed, steps=6, batch_size=1)
    steps = [each[0] for each in counted[-6:]]
    assert sorted(steps[:3]) == sorted(steps[3:]) == [0, 1, 2]


def test_it_decays_to_the_initial_weights_and_not_to_zero():
    model = network()
    free, near, far = (aligned(model, weight_decay=value, steps=60) for value in (0.0, 5.0, 50.0))
    moved = [(each.module.body[0].weight - model.body[0].weight).norm().item() for each in (free, near, far)]
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 0.3 * moved[0]


def test_the_rate_warms_up_and_falls_to_zero():
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    aligned(optimizer=lambda p: Watched(p, lr=1.0), steps=40, warmup=0.25, tau=1e4)
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01


def test_frozen_parts_stay_and_the_same_seed_gives_the_same_student():
    model = network()
    model.body[0].requires_grad_(False)
    one, two, other = (aligned(model, steps=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.module.body[0].weight, model.body[0].weight)
    assert one.history == two.history != other.history


class Pooled(nn.Module):
    """Like a transformers vision model."""

    def __init__(self, pooler=True):
        super().__init__()
        self.layer, self.pooler = nn.Linear(6, 5), pooler

    def forward(self, pixel_values):
        tokens = self.layer(pixel_values)[:, None].repeat(1, 3, 1)
        return type("Output", (), {"pooler_output": tokens[:, 0] if self.pooler else None, "last_hidden_state": tokens})


def test_transformers_like_models_dicts_data_sets_and_classifiers_are_taken():
    found = aligned(Pooled(), {"pixel_values": X}, steps=2)
    assert found.head.in_features == 5
    assert embed_images(Pooled(pooler=False), {"pixel_values": X}).shape == (40, 5)
    assert len(aligned(images=torch.utils.data.TensorDataset(X, torch.zeros(40)), steps=2).history) == 2
    classifier = mlp(6, 3, (7,))
    head = aligned(classifier, embed=lambda model, x: Encoder(model, model[-1])(x), steps=2).head
    assert head.in_features == 7


def test_a_transformers_vision_model_is_taken():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = aligned(transformers.ViTModel(config), images, steps=2)
    assert found.head.in_features == 16


def test_embeddings_are_in_order_and_in_evaluation_mode():
    model = network()
    found = embed_images(model, X, batch_size=7)
    torch.testing.assert_close(found, model.eval()(X).detach())
    model.train()
    before = model.body[1].running_mean.clone()
    embed_images(model, X)
    assert model.training
    assert torch.equal(model.body[1].running_mean, before)


def test_bad_input_is_refused():
    for name, call in {
        "targets": lambda: soft_align(network(), X, TRIPLETS, Q[:, :2]),
        "images": lambda: soft_align(network(), X[:0], TRIPLETS, Q),
        "one vector": lambda: soft_align(nn.Unflatten(1, (2, 3)), X, TRIPLETS, Q),
    }.items():
        with pytest.raises(ValueError, match=name):
            call()
    with pytest.raises(TypeError, match="pass embed"):
        pooled_features(Strings(), X)


class Strings(nn.Module):
    def forward(self, x):
        return ["no tensor"]


def test_a_loss_that_is_not_finite_ends_it():
    with pytest.raises(FloatingPointError, match="finite"):
        aligned(optimizer=functools.partial(torch.optim.SGD, lr=1e20), steps=20, tau=1e-3)
