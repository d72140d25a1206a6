import copy
import functools
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.nn import HyperCuboid, MixedOp, SearchNetwork
from heldout.optim import CosinePowerAnnealingLR
from heldout.train import DifferentiableSearch

SGD = functools.partial(torch.optim.SGD, lr=0.1)


class TwoNumbers(nn.Module):
    """One weight and one architecture parameter; the loss is any smooth function of both and of the batch."""

    def __init__(self, weight=0.7, alpha=-0.4):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.alphas = nn.Parameter(torch.tensor(alpha, dtype=torch.float64))

    def forward(self, inputs):
        return torch.sin(inputs * self.w * torch.exp(self.alphas)) + self.alphas * self.w**2


TRAIN = (torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([0.1, 0.4, -0.3]).double())
VAL = (torch.tensor([1.5, 0.3]).double(), torch.tensor([0.6, -0.8]).double())


def exact(weight, alpha, xi):
    """The gradient through the unrolled step by autograd, written for two numbers."""
    w = torch.tensor(weight, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)

    def loss(w, batch):
        return ((torch.sin(batch[0] * w * torch.exp(a)) + a * w**2 - batch[1]) ** 2).mean()

    (step,) = torch.autograd.grad(loss(w, TRAIN), w, create_graph=True)
    return torch.autograd.grad(loss(w - xi * step, VAL), a)[0]


def search_of(model, **options):
    return DifferentiableSearch(model, [TRAIN], [VAL], **{"loss": F.mse_loss, "optimizer": SGD, **options})


@pytest.mark.parametrize(("weight", "alpha", "xi"), [(0.7, -0.4, 0.1), (-1.3, 0.5, 0.02), (0.2, 0.9, 0.05)])
@pytest.mark.parametrize(("length", "close"), [(None, 1e-2), (1e-4, 1e-6)])
def test_the_unrolled_gradient_is_that_of_exact_autograd(weight, alpha, xi, length, close, monkeypatch):
    if length:  # the difference is exact in the limit
        monkeypatch.setattr("heldout.train.architecture_search._LENGTH", length)
    optimizer = functools.partial(torch.optim.SGD, lr=xi, momentum=0.9)
    found, loss = search_of(TwoNumbers(weight, alpha), unrolled=True, optimizer=optimizer).arch_gradient(TRAIN, VAL)
    expected = exact(weight, alpha, xi)
    assert found[0].item() == pytest.approx(expected.item(), rel=close)
    first, _ = search_of(TwoNumbers(weight, alpha)).arch_gradient(TRAIN, VAL)
    assert abs(first[0] - expected) > 10 * abs(found[0] - expected)
    assert not loss.requires_grad


def test_the_first_order_gradient_is_that_of_the_validation_loss():
    model = TwoNumbers()
    found, loss = search_of(model).arch_gradient(TRAIN, VAL)
    direct = F.mse_loss(model(VAL[0]), VAL[1])
    assert torch.equal(found[0], torch.autograd.grad(direct, model.alphas)[0])
    assert torch.equal(loss, direct.detach())


def test_each_parameter_group_moves_ahead_by_its_own_rate():
    class Two(TwoNumbers):
        def __init__(self):
            super().__init__()
            self.v = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, inputs):
            return super().forward(inputs) * self.v

    def groups(parameters):
        return torch.optim.SGD([{"params": [parameters[0]], "lr": 0.2}, {"params": [parameters[1]], "lr": 0.05}], lr=1)

    model = Two()
    found, _ = search_of(model, unrolled=True, optimizer=groups).arch_gradient(TRAIN, VAL)
    w, v, a = (p.detach().clone().requires_grad_() for p in (model.w, model.v, model.alphas))

    def loss(w, v, batch):
        return F.mse_loss((torch.sin(batch[0] * w * torch.exp(a)) + a * w**2) * v, batch[1])

    dw, dv = torch.autograd.grad(loss(w, v, TRAIN), (w, v), create_graph=True)
    expected = torch.autograd.grad(loss(w - 0.2 * dw, v - 0.05 * dv, VAL), a)[0]
    assert found[0].item() == pytest.approx(expected.item(), rel=2e-3)


def test_a_rate_of_zero_leaves_the_first_order():
    zero = functools.partial(torch.optim.SGD, lr=0.0)
    first, _ = search_of(TwoNumbers()).arch_gradient(TRAIN, VAL)
    assert torch.equal(search_of(TwoNumbers(), unrolled=True, optimizer=zero).arch_gradient(TRAIN, VAL)[0][0], first[0])


def by_hand(model, unrolled, steps, clip=5.0):
    """The published algorithm with deep copies, for ``steps`` steps on the same batches."""
    arch = torch.optim.Adam([model.alphas], lr=0.05, betas=(0.5, 0.999), weight_decay=1e-3)
    weights = torch.optim.SGD([model.w], lr=0.1)
    for _ in range(steps):
        ahead = copy.deepcopy(model)
        if unrolled:
            (g,) = torch.autograd.grad(F.mse_loss(ahead(TRAIN[0]), TRAIN[1]), ahead.w)
            with torch.no_grad():
                ahead.w -= 0.1 * g
        direct, vector = torch.autograd.grad(F.mse_loss(ahead(VAL[0]), VAL[1]), (ahead.alphas, ahead.w))
        if unrolled:
            eps, ends = 0.01 / vector.abs(), []
            for sign in (1, -1):
                end = copy.deepcopy(model)
                with torch.no_grad():
                    end.w += sign * eps * vector
                ends.append(torch.autograd.grad(F.mse_loss(end(TRAIN[0]), TRAIN[1]), end.alphas)[0])
            direct = direct - 0.1 * (ends[0] - ends[1]) / (2 * eps)
        model.alphas.grad = direct
        arch.step()
        weights.zero_grad()
        F.mse_loss(model(TRAIN[0]), TRAIN[1]).backward()
        model.w.grad.clamp_(-clip, clip)  # one number: its norm is its size
        weights.step()
    return model


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("clip", [5.0, 0.05])
def test_steps_are_those_of_the_published_algorithm(unrolled, clip):
    expected, model = by_hand(TwoNumbers(), unrolled, 4, clip), TwoNumbers()
    search = search_of(model, arch_lr=0.05, unrolled=unrolled, max_grad_norm=clip)
    for _ in range(4):
        search.step(TRAIN, VAL)
    assert model.alphas.item() == pytest.approx(expected.alphas.item(), abs=1e-6)
    assert model.w.item() == pytest.approx(expected.w.item(), abs=1e-6)


X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
BATCHES = [(X[:8], Y[:8]), (X[8:16], Y[8:16])]
VALIDATION = [(X[16:], Y[16:])]


def network(seed=0):
    torch.manual_seed(seed)
    mixed = MixedOp([nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3)), nn.Linear(4, 6)])
    return nn.Sequential(mixed, nn.ReLU(), nn.Linear(6, 2))


@pytest.mark.parametrize("unrolled", [False, True])
def test_an_architecture_step_changes_no_weight_no_statistics_and_no_mode(unrolled):
    model = network().train()
    search = DifferentiableSearch(model, BATCHES, VALIDATION, unrolled=unrolled)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    search.arch_gradient(BATCHES[0], VALIDATION[0])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_weight_steps_move_running_statistics_once():
    model = network()
    DifferentiableSearch(model, BATCHES, VALIDATION, unrolled=True).epoch()
    assert model[0].ops[0][1].num_batches_tracked == 2


def test_weights_and_alphas_are_moved_by_their_own_optimizers_and_data():
    model = network()
    search = DifferentiableSearch(model, BATCHES, VALIDATION, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    before = copy.deepcopy(model.state_dict())
    search.epoch()
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert moved == {"0.alphas"}
    assert [len(group["params"]) for group in search.optimizer.param_groups] == [8]
    assert search.arch_optimizer.defaults["betas"] == (0.5, 0.999)
    assert search.arch_optimizer.defaults["weight_decay"] == 1e-3
    assert search_of(TwoNumbers(), arch_weight_decay=0.5).arch_optimizer.defaults["weight_decay"] == 0.5


def test_both_ends_of_the_difference_drop_out_the_same_units():
    """With other masks the difference is noise over the length of the step, not a derivative."""
    model = network().double().train()
    found = []
    for seed in range(6):
        search = DifferentiableSearch(model, BATCHES, VALIDATION, unrolled=True, optimizer=SGD)
        torch.manual_seed(seed)
        unrolled = search.arch_gradient(BATCHES[0], VALIDATION[0])[0][0]
        after = torch.rand(1)
        search.unrolled = False
        torch.manual_seed(seed)
        model(BATCHES[0][0].double())  # the pass that the unrolled one makes before
        found.append((unrolled - search.arch_gradient(BATCHES[0], VALIDATION[0])[0][0]).norm().item())
        assert torch.equal(torch.rand(1), after)  # and the random numbers go on as if it had not been taken
    assert max(found) < 0.1


def test_the_search_goes_on_identically_from_a_saved_state():
    def make():
        search = DifferentiableSearch(network(), BATCHES, VALIDATION, arch_lr=0.1)
        return search, CosinePowerAnnealingLR(search.optimizer, 6, 1e-4)

    def run(search, schedule, epochs):
        for _ in range(epochs):
            torch.manual_seed(search.epochs)  # dropout
            search.epoch()
            schedule.step()
        return {name: value.clone() for name, value in search.model.state_dict().items()}

    whole = run(*make(), 5)
    search, schedule = make()
    run(search, schedule, 2)
    file = io.BytesIO()
    torch.save({"search": search.state_dict(), "schedule": schedule.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, resumed = make()
    again.load_state_dict(saved["search"])
    resumed.load_state_dict(saved["schedule"])
    found = run(again, resumed, 3)
    assert again.epochs == 5
    assert all(torch.equal(whole[name], value) for name, value in found.items())


def test_fewer_validation_batches_start_anew_and_losses_are_means_before_the_steps():
    calls = []

    class Loader:
        def __iter__(self):
            calls.append(1)
            return iter(VALIDATION)

    frozen = functools.partial(torch.optim.SGD, lr=0.0)
    model = network().eval()
    model[0].ops[0][2].p = 0.0
    search = DifferentiableSearch(model, BATCHES, Loader(), arch_lr=1e-12, optimizer=frozen)
    found = search.epoch()
    assert len(calls) == 2
    expected = sum(F.cross_entropy(model.train()(x), y).item() for x, y in BATCHES) / 2
    assert found["train_loss"] == pytest.approx(expected, abs=1e-5)
    assert found["val_loss"] == pytest.approx(
        F.cross_entropy(model(VALIDATION[0][0]), VALIDATION[0][1]).item(), abs=1e-5
    )
    assert found["entropy"] == pytest.approx(1.0)


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("weighting", ["scalar", "max_w"])
def test_the_search_finds_the_operation_that_generalizes(unrolled, weighting):
    """Classes are a linear function of the inputs; the other candidate sees nothing of them."""

    class Blind(nn.Module):
        def forward(self, inputs):
            return torch.zeros(len(inputs), 2)

    inputs = torch.randn(120, 4, generator=torch.Generator().manual_seed(1))
    labels = (inputs[:, 0] > 0).long()
    parts = [(inputs[part], labels[part]) for part in torch.arange(120).split(30)]
    torch.manual_seed(0)
    model = MixedOp([Blind(), nn.Linear(4, 2)], weighting)
    fast = functools.partial(torch.optim.SGD, lr=1.0)
    search = DifferentiableSearch(model, parts[:2], parts[2:], arch_lr=0.1, unrolled=unrolled, optimizer=fast)
    for _ in range(12):
        search.epoch()
    assert model.weights().argmax() == 1
    if weighting == "scalar":  # with Max-W the coefficient is 1 once it leads
        assert model.weights()[1] > 0.6


def test_cell_networks_and_grids_are_searched():
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
    cells = SearchNetwork(3, ["none", "skip_connect", "sep_conv_3x3"], in_channels=1, channels=2, layers=3, nodes=1)
    batch = [(images, labels)]
    search = DifferentiableSearch(cells, batch, batch, arch_lr=0.1, unrolled=True)
    before = torch.stack(list(cells.normal_alphas)).clone()
    search.epoch()
    assert not torch.equal(torch.stack(list(cells.normal_alphas)), before)

    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            axes = {"layer": [0, 1], "width": [2, 4]}
            self.grid = HyperCuboid(axes, lambda layer, source, target: nn.Linear(source, target))

        def forward(self, inputs):
            a, b = self.grid([inputs[:, :2], inputs])
            return a + b[:, :2]

    grid = Grid()
    DifferentiableSearch(grid, BATCHES, VALIDATION, arch_lr=0.1).epoch()
    assert grid.grid.alphas.abs().min() > 0


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="model has no architecture parameters"):
        DifferentiableSearch(nn.Linear(4, 2), BATCHES, VALIDATION)
    with pytest.raises(ValueError, match="model has no weights"):
        DifferentiableSearch(MixedOp([nn.Tanh(), nn.ReLU()]), BATCHES, VALIDATION)
    with pytest.raises(ValueError, match="arch_lr must be positive"):
        DifferentiableSearch(network(), BATCHES, VALIDATION, arch_lr=0.0)
    with pytest.raises(TypeError, match="optimizer must give a torch Optimizer"):
        DifferentiableSearch(network(), BATCHES, VALIDATION, optimizer=lambda parameters: None)
    with pytest.raises(ValueError, match="train_loader has no batch"):
        DifferentiableSearch(network(), [], VALIDATION).epoch()
    with pytest.raises(ValueError, match="val_loader has no batch"):
        DifferentiableSearch(network(), BATCHES, []).epoch()
    with pytest.raises(TypeError, match="train_batch must be a pair"):
        DifferentiableSearch(network(), BATCHES, VALIDATION).step(X, VALIDATION[0])
    with pytest.raises(ValueError, match="loss must be finite"):
        DifferentiableSearch(network(), [(X * float("nan"), Y)], VALIDATION).epoch()
    with pytest.raises(ValueError, match="state_dict must be that of"):
        DifferentiableSearch(network(), BATCHES, VALIDATION).load_state_dict({})
