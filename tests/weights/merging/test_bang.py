import functools
import warnings

import pytest
import torch
from torch import nn

import heldout
from heldout.data import soft_labels
from heldout.nn import mlp, small_cnn
from heldout.optim import sam
from heldout.weights import balanced_finetune, bang, interpolate, wise_ft
from tests.weights.networks import ResNet, finetuned, transformer

SGD = functools.partial(torch.optim.SGD, lr=0.1)


def data(seed=0, n=60):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_wise_ft_is_the_interpolation_of_the_states(alpha):
    pre, ft = mlp(4, 3), mlp(4, 3)
    before = [value.clone() for value in (*pre.state_dict().values(), *ft.state_dict().values())]
    merged = wise_ft(pre, ft, alpha).state_dict()
    for name, value in interpolate(pre, ft, alpha).items():
        assert torch.equal(merged[name], value)
    for name, value in {0.0: pre, 1.0: ft}.get(alpha, wise_ft(pre, ft, alpha)).state_dict().items():
        assert torch.equal(merged[name], value)
    assert all(map(torch.equal, before, (*pre.state_dict().values(), *ft.state_dict().values())))


def test_tied_weights_stay_tied_in_wise_ft():
    model = transformer("gpt2")
    merged = wise_ft(model, finetuned(model))
    assert merged.lm_head.weight is merged.transformer.wte.weight


def test_alpha_outside_the_unit_interval_needs_leave():
    pre, ft = mlp(4, 3), mlp(4, 3)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha must"):
            wise_ft(pre, ft, alpha)
    beyond = wise_ft(pre, ft, 2.0, allow_extrapolation=True)
    torch.testing.assert_close(beyond[1].bias, 2 * ft[1].bias - pre[1].bias)
    with pytest.raises(ValueError, match="only in pre"):
        wise_ft(mlp(4, 3), mlp(4, 3, (8,)))


def test_averaging_batch_norm_models_warns():
    network = ResNet()
    with pytest.warns(UserWarning, match="update_batch_norm"):
        wise_ft(network, finetuned(network))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wise_ft(network, finetuned(network), 1.0)
        wise_ft(mlp(4, 3), mlp(4, 3))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_mixup_balanced_finetuning_is_label_smoothing(smoothing):
    model = mlp(4, 3, (8,))
    options = {"epochs": 2, "optimizer": SGD, "seed": 0}
    ours = heldout.fit(model, data(), balanced_finetune(smoothing, mixup_alpha=0.0), **options)
    loss = functools.partial(torch.nn.functional.cross_entropy, label_smoothing=smoothing)
    theirs = heldout.fit(model, data(), loss=loss, **options)
    for one, two in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_balanced_finetuning_lowers_confidence_and_learns():
    options = {"epochs": 30, "optimizer": SGD, "batch_size": 20, "seed": 0}
    model = mlp(4, 3, (32,))
    methods = [None, balanced_finetune(), balanced_finetune()]
    plain, balanced, again = (heldout.fit(model, data(), method, **options) for method in methods)
    x, y = data(seed=1, n=200)
    confidences = [fitted.predict(x).softmax(1).amax(1).mean() for fitted in (plain, balanced)]
    assert confidences[1] < confidences[0] - 0.02
    assert balanced.evaluate((x, y))["accuracy"] > 0.6
    assert torch.equal(balanced.predict(x), again.predict(x))


def test_one_step_with_smoothing_and_mixup_is_that_on_mixed_soft_labels():
    seen = []

    class Recorder(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.append(x.detach().clone())
            return super().forward(x)

    torch.manual_seed(0)
    model, classes, smoothing, lr = Recorder(6, 3), 3, 0.3, 0.5
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    fitted = heldout.fit(
        model,
        (torch.eye(6), y),  # what is seen of each example is how much of each it was mixed from
        balanced_finetune(smoothing, mixup_alpha=1.0),
        epochs=1,
        batch_size=6,
        schedule="constant",
        optimizer=functools.partial(torch.optim.SGD, lr=lr),
        seed=1,
    )
    mixed = seen[0].double()
    assert ((mixed > 0.05).sum(1) == 2).any()
    weight, bias = model.weight.detach().double(), model.bias.detach().double()
    gradients = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for row in mixed:
        probabilities = (weight @ row + bias).softmax(0)
        for c in range(classes):
            label = sum(float(row[j]) * ((1 - smoothing) * (int(y[j]) == c) + smoothing / classes) for j in range(6))
            gradients[0][c] += (probabilities[c] - label) * row / 6
            gradients[1][c] += (probabilities[c] - label) / 6
    torch.testing.assert_close(fitted.module.weight.double(), weight - lr * gradients[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(fitted.module.bias.double(), bias - lr * gradients[1], rtol=0, atol=1e-6)


def test_both_evaluations_of_a_sam_step_see_the_same_mixture():
    seen = []

    class Recorder(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.append(x.detach().clone())
            return super().forward(x)

    heldout.fit(Recorder(4, 3), data(), balanced_finetune(mixup_alpha=1.0) + sam(), epochs=1, batch_size=20, seed=0)
    assert len(seen) == 6
    assert all(torch.equal(seen[i], seen[i + 1]) for i in (0, 2, 4))
    assert not torch.equal(seen[0], data()[0][:20])


def test_bang_is_the_average_of_balanced_finetuning_with_the_start():
    model = mlp(4, 3, (8,))
    splits = heldout.Splits(train=data(), initial_state=model.state_dict())
    options = {"epochs": 2, "optimizer": SGD, "seed": 0}
    tuned = heldout.fit(model, splits, balanced_finetune(), **options).module
    merged = heldout.fit(model, splits, bang(alpha=0.3), **options).module
    for name, value in interpolate(model, tuned, 0.3).items():
        assert torch.equal(merged.state_dict()[name], value)


def test_bang_estimates_batch_norm_again_and_keeps_a_new_output_layer():
    images, labels = torch.rand(40, 1, 8, 8), torch.arange(40) % 3
    model = small_cnn(1, 3, (4, 4))
    start = {name: value for name, value in model.state_dict().items() if not name.startswith("head")}
    splits = heldout.Splits(train=(images, labels), initial_state=start)
    merged = heldout.fit(model, splits, bang(), epochs=1, seed=0).module
    tuned = heldout.fit(model, splits, balanced_finetune(), epochs=1, seed=0).module
    assert torch.equal(merged.head.weight, tuned.head.weight)
    first = merged.block1[0](images)
    torch.testing.assert_close(merged.block1[1].running_mean, first.mean((0, 2, 3)))


def reason(method, model=None, **given):
    splits = heldout.Splits(**({"train": data()} | given))
    return method.check(model or mlp(4, 3), splits)


def test_bang_says_what_it_lacks():
    state = mlp(4, 3).state_dict()
    assert "initial_state" in reason(bang())
    assert "none of this model's parameters" in reason(bang(), initial_state={"other": torch.ones(1)})
    assert "another shape" in reason(bang(), initial_state=mlp(5, 3).state_dict())
    x, _ = data()
    assert "classification" in reason(bang(), train=(x, x[:, 0]), initial_state=state)
    tokens = (torch.ones(4, 4, dtype=torch.int64), torch.arange(4) % 2)
    assert "Mixup cannot mix" in reason(bang(), train=tokens, initial_state=state)
    assert reason(bang(mixup_alpha=0), train=tokens, initial_state=state) is None
    assert reason(bang(), initial_state=state) is None
    with pytest.raises(ValueError, match="initial_state"):
        heldout.fit(mlp(4, 3), data(), bang())
    for call in (lambda: bang(alpha=2), lambda: bang(smoothing=1), lambda: bang(mixup_alpha=-1)):
        with pytest.raises(ValueError, match="must"):
            call()


def test_transformers_image_classifiers_are_finetuned():
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = transformer("vit")

        def forward(self, pixel_values):
            return self.vit(pixel_values)

    model = Pixels()
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 2
    splits = heldout.Splits(train=(images, labels), initial_state=model.state_dict())
    fitted = heldout.fit(model, splits, bang(), epochs=1, seed=0)
    assert fitted.predict(images).shape == (8, 2)
    assert soft_labels(labels, 2).shape == (8, 2)
