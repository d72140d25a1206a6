import functools
import types
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import heldout
from heldout.data import (
    early_output_clusters,
    separating_epoch,
    upsample,
    upsample_sampler,
    useful,
    useful_split,
)
from heldout.nn import PatchCNN, mlp
from heldout.optim import sam
from heldout.tasks import two_feature_patches


def blobs(classes=3, per_class=40, slow=10, seed=0):
    """Outputs in two far blobs per class, the smaller of which is close to the decision and so has the higher loss."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    is_slow = (torch.arange(per_class) < slow).repeat(classes)
    height = torch.where(is_slow, 0.5, 6.0).unsqueeze(1)
    outputs = height * F.one_hot(labels, classes) + 0.1 * torch.randn(len(labels), classes, generator=generator)
    return outputs, F.cross_entropy(outputs, labels, reduction="none"), labels, is_slow


def test_well_separated_blobs_are_split_exactly():
    outputs, losses, labels, slow = blobs()
    assert torch.equal(early_output_clusters(outputs, losses, labels), slow)


def test_the_higher_loss_decides_not_the_position():
    outputs, _, labels, slow = blobs()
    assert torch.equal(early_output_clusters(outputs, (~slow).float(), labels), ~slow)


@given(seed=st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_the_mask_follows_examples_and_classes_when_they_are_permuted(seed):
    outputs, losses, labels, slow = blobs()
    generator = torch.Generator().manual_seed(seed)
    order, names = torch.randperm(len(labels), generator=generator), torch.randperm(3, generator=generator)
    permuted = early_output_clusters(outputs[order], losses[order], names[labels[order]], seed=seed)
    assert torch.equal(permuted, slow[order])


def test_clusters_are_those_of_scikit_learn():
    from sklearn.cluster import KMeans

    outputs = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(60, dtype=torch.long)
    losses = F.cross_entropy(outputs, labels, reduction="none")
    clusters = torch.from_numpy(KMeans(2, n_init=10, random_state=0).fit(outputs.double().numpy()).labels_)
    slow = max((0, 1), key=lambda c: losses[clusters == c].mean())
    assert torch.equal(early_output_clusters(outputs, losses, labels), clusters == slow)


@pytest.mark.parametrize("outputs", [torch.tensor([[1.0, 2.0]]), torch.ones(5, 2)])
def test_a_class_without_two_clusters_is_warned_of_and_left_alone(outputs):
    labels = torch.full((len(outputs),), 7)
    with pytest.warns(UserWarning, match="class 7"):
        mask = early_output_clusters(outputs, torch.ones(len(outputs)), labels)
    assert not mask.any()


def test_the_mean_loss_decides_not_the_number_of_examples():
    labels = torch.zeros(40, dtype=torch.long)
    outputs = torch.where(torch.arange(40) < 4, 5.0, 0.0).unsqueeze(1).expand(-1, 2)
    losses = torch.where(torch.arange(40) < 4, 2.0, 1.0)
    assert early_output_clusters(outputs, losses, labels).nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_bad_outputs_are_refused():
    outputs, losses, labels, _ = blobs()
    with pytest.raises(ValueError, match="outputs \\(n, outputs\\)"):
        early_output_clusters(outputs[:-1], losses, labels)
    with pytest.raises(ValueError, match="outputs \\(n, outputs\\)"):
        early_output_clusters(outputs, losses[:-1], labels)
    with pytest.raises(ValueError, match="finite"):
        early_output_clusters(outputs * float("nan"), losses, labels)


@given(
    corner=st.integers(1, 12),
    after=st.integers(1, 12),
    steep=st.floats(0.02, 0.05),
    flat=st.floats(0.0, 0.01),
)
@settings(max_examples=100, deadline=None)
def test_the_knee_of_a_piecewise_linear_curve_is_its_corner(corner, after, steep, flat):
    curve = [0.9 - steep * i for i in range(corner + 1)]
    curve += [curve[-1] - flat * i for i in range(1, after + 1)]
    assert separating_epoch(curve) == corner + 1


def test_the_knee_ignores_bumps_and_bad_curves_are_refused():
    assert separating_epoch([0.9, 0.3, 0.5, 0.28, 0.6, 0.24]) == 2
    assert separating_epoch([0.9, 0.6, 0.3, 0.25, 0.9]) == 3
    with pytest.raises(ValueError, match="at least 3"):
        separating_epoch([0.5, 0.4])
    with pytest.raises(ValueError, match="finite"):
        separating_epoch([0.5, float("nan"), 0.4])


@given(marks=st.lists(st.booleans(), min_size=1, max_size=30), factor=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_upsampling_repeats_exactly_the_marked_examples(marks, factor):
    mask = torch.tensor(marks)
    data = TensorDataset(torch.arange(len(marks)))
    view = upsample(data, mask, factor)
    counts = Counter(int(x) for (x,) in view)
    assert len(view) == len(marks) + (factor - 1) * sum(marks)
    assert counts == {i: factor if mark else 1 for i, mark in enumerate(marks)}
    assert Counter(upsample_sampler(mask, factor)) == counts


def test_the_sampler_shuffles_in_a_data_loader():
    mask = torch.tensor([False] * 50 + [True] * 50)
    loader = DataLoader(TensorDataset(torch.arange(100)), batch_size=150, sampler=upsample_sampler(mask, seed=3))
    (first,), (second,) = next(iter(loader)), next(iter(loader))
    assert first.tolist() != sorted(first.tolist())
    assert first.tolist() != second.tolist()
    assert Counter(first.tolist()) == Counter(second.tolist())


def test_bad_masks_and_factors_are_refused():
    data = TensorDataset(torch.arange(3))
    with pytest.raises(ValueError, match="mask must be bool"):
        upsample(data, torch.tensor([1, 0, 1]))
    with pytest.raises(ValueError, match="mask must be bool"):
        upsample(data, torch.tensor([True]))
    with pytest.raises(ValueError, match="factor"):
        upsample(data, torch.tensor([True, False, True]), 0)
    with pytest.raises(ValueError, match="factor"):
        useful(factor=0)


def test_gradient_of_the_patch_network_has_the_closed_form():
    torch.manual_seed(0)
    model = PatchCNN(7, filters=5).double()
    inputs = torch.randn(3, 4, 7, dtype=torch.float64)
    model(inputs).diff(dim=1).sum().backward()
    projections = inputs @ model.weight.detach().T
    assert torch.allclose(model.weight.grad, torch.einsum("bpj,bpd->jd", 3 * projections**2, inputs))
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(model, {"weight": w}, inputs), model.weight)
    with pytest.raises(ValueError, match="odd"):
        PatchCNN(7, power=2)


def descend(data, steps):
    """Full-batch gradient descent on the patch data, as train(dataset, epochs) for useful_split."""
    model = PatchCNN(50, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = data.tensors
    errors = []
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(inputs)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        errors.append((logits.argmax(1) != labels).double().mean().item())
    return model, errors


@pytest.mark.parametrize("seed", range(2000, 2002))
def test_examples_without_the_fast_feature_are_found(seed):
    patches = two_feature_patches(200, seed=seed)
    split = useful_split(descend, TensorDataset(patches.inputs, patches.labels), epoch=100)
    assert split.mask[~patches.has_fast].double().mean() >= 0.95
    assert split.epoch == 100
    assert split.per_class.keys() == {0, 1}
    assert sum(split.per_class.values()) / 2 == pytest.approx(split.mask.double().mean().item(), abs=0.05)


def test_without_an_epoch_the_knee_is_found_and_a_fresh_model_trained_to_it():
    patches = two_feature_patches(50, seed=2000)
    asked = []

    def train(data, epochs):
        asked.append(epochs)
        return descend(data, epochs)[0], [0.5, 0.1, 0.09, 0.08][:epochs]

    split = useful_split(train, TensorDataset(patches.inputs, patches.labels), search_epochs=4)
    assert (asked, split.epoch) == ([4, 2], 2)
    with pytest.raises(ValueError, match="at least 1"):
        useful_split(train, TensorDataset(patches.inputs, patches.labels), epoch=0)


def problem(n=120):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (n,), generator=generator)
    inputs = torch.randn(n, 4, generator=generator) + 2.0 * labels.unsqueeze(1)
    return inputs, labels


SGD = functools.partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize("epochs", [1, 2, 8])
@pytest.mark.parametrize("method", [useful(), useful(separating_epoch=1, factor=3), useful() + sam()])
def test_the_method_trains_on_a_view_with_repeated_examples(epochs, method):
    data = problem()
    seen = []
    spy = heldout.Method("spy", data=lambda run, train_set: (seen.append(train_set), train_set)[1])
    fitted = heldout.fit(mlp(4, 2, (8,), dropout=0.2), data, method + spy, epochs=epochs, optimizer=SGD)
    assert isinstance(seen[0], Subset)
    assert 120 < len(seen[0]) < 120 * 3
    assert set(seen[0].indices) == set(range(120))
    assert epochs < 8 or fitted.evaluate(data)["accuracy"] > 0.8


@pytest.mark.parametrize(("given", "asked"), [(None, [5]), (2, [2]), (40, [20])])
def test_the_method_repeats_what_the_early_model_finds_hard(given, asked):
    inputs, labels = problem()
    slow = torch.arange(120) % 5 == 0
    trained = []

    class Early(nn.Module):
        def forward(self, x):
            return torch.where(slow, 0.1, 8.0).unsqueeze(1) * F.one_hot(labels, 2)

    run = types.SimpleNamespace(epochs=20, seed=0, device=torch.device("cpu"))
    run.train_plain = lambda dataset, epochs: (trained.append(epochs), (Early(), [0.5, 0.4, 0.3, 0.2, 0.1][:epochs]))[1]
    view = useful(given).data(run, TensorDataset(inputs, labels))
    assert view.indices[120:] == slow.nonzero().flatten().tolist()
    assert trained[: len(asked)] == asked


def test_the_main_training_restarts_from_the_initial_weights():
    data = problem()
    model = mlp(4, 2, (8,))
    mask = torch.zeros(120, dtype=torch.bool)
    start = {}
    record = heldout.Method("record", model=lambda run, module: (start.update(module.state_dict()), module)[1])
    heldout.fit(model, data, useful() + record, epochs=1, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    assert all(torch.equal(start[name], value) for name, value in model.state_dict().items())
    assert len(upsample(heldout.Splits(train=data).train, mask)) == 120


def test_the_method_says_where_it_cannot_act():
    inputs, labels = problem()
    assert useful().check(mlp(4, 2), heldout.Splits(train=(inputs, labels))) is None
    assert "class" in useful().check(mlp(4, 1), heldout.Splits(train=(inputs, inputs[:, :1])))
    with pytest.raises(ValueError, match="cannot act here"):
        heldout.fit(mlp(4, 1), (inputs, inputs[:, 0]), useful(), epochs=1)
    sampler = heldout.Method("sampler", data=lambda run, train_set: torch.utils.data.RandomSampler(train_set))
    with pytest.raises(TypeError, match="got a sampler"):
        heldout.fit(mlp(4, 2), (inputs, labels), sampler + useful(), epochs=1)


def test_outputs_in_eval_mode_do_not_depend_on_dropout():
    inputs, labels = problem()
    data = TensorDataset(inputs, labels)
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = [useful_split(lambda *_: (model, [0.1]), data, epoch=1).mask for _ in range(2)]
    assert torch.equal(*masks)
