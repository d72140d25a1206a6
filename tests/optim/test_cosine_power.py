import functools
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

import heldout
from heldout import Method
from heldout.nn import mlp
from heldout.optim import SAM, CosinePowerAnnealingLR, cosine_power, cosine_power_annealing, rm3, sam

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
DATA = (X, (X[:, 0] > 0).long())
MODEL = functools.partial(mlp, 3, 2, (8,), batch_norm=True, dropout=0.1)


def reference(epochs, high, low, power, warmup=0):
    """The specification's equation, epoch by epoch; with a warm-up over the epochs after it, from the peak on."""
    e = np.arange(0 if warmup else 1, epochs - warmup + 1)
    c = (1 + np.cos(np.pi * e / (epochs - warmup))) / 2
    q = c if power == 1 else power ** (c + 1)
    q = (q - q.min()) / (q.max() - q.min())
    rise = np.arange(1, warmup) / warmup if warmup else np.array([])
    return low + (high - low) * np.concatenate([rise, q])


@pytest.mark.parametrize("power", [1, 1.5, 2, 10, 1000])
@pytest.mark.parametrize(("epochs", "warmup"), [(2, 0), (7, 0), (20, 0), (9, 1), (12, 5), (6, 5)])
def test_the_curve_is_the_published_one(power, epochs, warmup):
    found = cosine_power_annealing(epochs, 0.3, 0.01, power, warmup_epochs=warmup)
    assert np.allclose(found.numpy(), reference(epochs, 0.3, 0.01, power, warmup), rtol=1e-12, atol=1e-14)


def test_power_one_is_a_cosine_and_powers_near_one_approach_it():
    c = (1 + torch.cos(torch.pi * torch.arange(1, 11, dtype=torch.float64) / 10)) / 2
    assert torch.allclose(cosine_power_annealing(10, 1.0, 0.0, 1), c / c[0])
    assert torch.allclose(cosine_power_annealing(10, 1.0, 0.0, 1 + 1e-9), c / c[0], atol=1e-8)


def test_the_curve_starts_at_the_peak_ends_at_the_least_and_never_rises():
    for power in (1, 2, 10, 1e6):
        curve = cosine_power_annealing(15, 0.5, 0.02, power)
        assert curve[0] == 0.5
        assert curve[-1].item() == pytest.approx(0.02, abs=1e-15)
        assert (curve.diff() <= 0).all()


def test_a_larger_power_is_nowhere_higher_and_falls_earlier():
    curves = [cosine_power_annealing(15, 1.0, 0.0, power) for power in (1, 2, 10, 100)]
    for lower, higher in zip(curves[1:], curves):
        assert (lower <= higher + 1e-15).all()
        assert lower[7] < higher[7] - 0.01


def test_the_warm_up_rises_linearly_to_the_peak_at_its_last_epoch():
    curve = cosine_power_annealing(10, 1.0, 0.0, 2, warmup_epochs=4)
    assert curve[:4].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert (curve[3:].diff() < 0).all()


def test_a_single_epoch_has_the_peak():
    assert cosine_power_annealing(1, 0.3).tolist() == [0.3]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"power": 0.99}, "power"),
        ({"power": float("nan")}, "power"),
        ({"power": float("inf")}, "power"),
        ({"min_lr": 2.0}, "min_lr"),
        ({"min_lr": -0.1}, "min_lr"),
        ({"warmup_epochs": 4}, "warmup_epochs"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_bad_options_are_refused_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        cosine_power_annealing(**{"epochs": 4, "max_lr": 1.0, **options})
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    with pytest.raises(ValueError, match=named):
        CosinePowerAnnealingLR(optimizer, **{"epochs": 4, **options})


def rates(schedule, optimizer, steps):
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return torch.tensor(found, dtype=torch.float64)


def two_groups():
    a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    return torch.optim.SGD([{"params": a.parameters(), "lr": 0.5}, {"params": b.parameters()}], lr=0.1)


@pytest.mark.parametrize("warmup", [0, 2])
def test_the_scheduler_gives_every_group_its_own_curve_and_stays_at_its_end(warmup):
    optimizer = two_groups()
    schedule = CosinePowerAnnealingLR(optimizer, 6, 0.01, 10, warmup_epochs=warmup)
    found = rates(schedule, optimizer, 9)
    for column, peak in enumerate((0.5, 0.1)):
        curve = cosine_power_annealing(6, peak, 0.01, 10, warmup_epochs=warmup)
        assert torch.allclose(found[:6, column], curve)
        assert torch.allclose(found[6:, column], torch.full((3,), 0.01, dtype=torch.float64))


def test_a_resumed_scheduler_goes_on_as_the_whole_one_from_a_file_of_plain_values():
    optimizer = two_groups()
    schedule = CosinePowerAnnealingLR(optimizer, 8, 0.0, 2)
    rates(schedule, optimizer, 3)
    file = io.BytesIO()
    torch.save({"schedule": schedule.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = two_groups()
    resumed = CosinePowerAnnealingLR(again, 3, 0.05, 5)  # other options: the state brings its own
    again.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["schedule"])
    assert torch.equal(rates(resumed, again, 5), rates(schedule, optimizer, 5))


def test_the_scheduler_starts_at_a_later_epoch_where_groups_know_their_peak():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.2)
    optimizer.param_groups[0]["initial_lr"] = 0.4
    schedule = CosinePowerAnnealingLR(optimizer, 6, 0.0, 2, last_epoch=2)
    assert schedule.get_last_lr()[0] == pytest.approx(cosine_power_annealing(6, 0.4, 0.0, 2)[3].item())


def test_the_scheduler_is_one_of_torch_and_joins_a_sequence():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    first = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, 2)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, CosinePowerAnnealingLR(optimizer, 3, 0.0)], [2])
    found = rates(schedule, optimizer, 5)[:, 0]
    assert torch.allclose(found[2:], cosine_power_annealing(3, 1.0, 0.0))


class Noted(torch.optim.SGD):
    """Keeps the learning rate that each step was taken with."""

    def step(self, closure=None):
        self.param_groups[0].setdefault("seen", []).append(self.param_groups[0]["lr"])
        return super().step(closure)  # a step within a step: its hooks run twice


def seen(method, *, epochs=4, schedule="cosine", optimizer=Noted, lr=0.2, **options):
    kept = []

    def make(module):
        kept.append(optimizer(module.parameters(), lr=lr))
        return kept[0]

    fitted = heldout.fit(
        MODEL, DATA, method, optimizer=make, schedule=schedule, epochs=epochs, batch_size=16, **options
    )
    return torch.tensor(kept[0].param_groups[0]["seen"], dtype=torch.float64), fitted


def continuous(power, steps, peak=0.2, low=0.0):
    c = (1 + torch.cos(torch.pi * torch.arange(steps, dtype=torch.float64) / steps)) / 2
    return low + (peak - low) * (c if power == 1 else (power**c - 1) / (power - 1))


@pytest.mark.parametrize("power", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_method_sets_the_rate_of_every_step_whatever_the_recipe_schedules(power, schedule):
    found, _ = seen(cosine_power(power, min_lr=0.01), schedule=schedule)
    assert torch.allclose(found, continuous(power, 16, low=0.01), atol=1e-12)  # 50 examples: 4 steps of 16, 16, 16, 2


def test_the_first_epoch_does_not_count_a_last_batch_of_one_which_fit_leaves_out(monkeypatch):
    monkeypatch.setitem(globals(), "DATA", tuple(part[:49] for part in DATA))
    found, _ = seen(cosine_power(2, min_lr=0.0), epochs=2)
    assert torch.allclose(found, continuous(2, 6), atol=1e-12)


def test_with_power_one_the_method_trains_as_cosine_annealing_does():
    plain = heldout.fit(MODEL, DATA, optimizer=functools.partial(torch.optim.SGD, lr=0.2), epochs=3, batch_size=16)
    _, own = seen(cosine_power(1, min_lr=0.0), epochs=3, schedule="constant")
    for a, b in zip(plain.module.state_dict().values(), own.module.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_warm_up_of_the_method_rises_to_the_peak_of_the_recipe():
    found, _ = seen(cosine_power(2, min_lr=0.0, warmup_epochs=1))
    assert torch.allclose(found[:5], torch.tensor([0, 0.05, 0.1, 0.15, 0.2], dtype=torch.float64))
    assert torch.allclose(found[4:], continuous(2, 12))
    with pytest.raises(ValueError, match="warmup_epochs must be fewer than the 4"):
        seen(cosine_power(2, warmup_epochs=4))


@pytest.mark.parametrize("order", ["before", "after"])
def test_with_sam_the_base_optimizer_steps_by_the_curve_and_the_radius_stays(order):
    method = cosine_power(2, min_lr=0.0)
    both = method + sam(0.05) if order == "before" else sam(0.05) + method
    found, fitted = seen(both)
    assert torch.allclose(found, continuous(2, 16), atol=1e-12)
    assert all(math.isfinite(entry["loss"]) for entry in fitted.history)


def test_a_method_that_changes_the_peak_is_followed():
    found, _ = seen(cosine_power(2, min_lr=0.0) + rm3(), optimizer=functools.partial(Noted, momentum=0.5))
    assert torch.allclose(found, continuous(2, 16, peak=0.4))


def test_the_peak_of_a_warm_up_schedule_is_what_it_warms_up_to():
    def warm(optimizer, steps):
        return torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=steps)

    def cycle(optimizer, steps):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps + 1, cycle_momentum=False)

    assert torch.allclose(seen(cosine_power(10, min_lr=0.0), schedule=warm)[0], continuous(10, 16))
    assert torch.allclose(seen(cosine_power(10, min_lr=0.0), schedule=cycle)[0], continuous(10, 16))


def test_early_stopping_follows_the_curve_of_all_epochs():
    whole, _ = seen(cosine_power(2), epochs=6)
    kept = []

    def make(module):
        kept.append(Noted(module.parameters(), lr=0.2))
        return kept[0]

    losses = iter([1.0, 0.5, 0.7, 0.8])
    fitted = heldout.train.fit_stopping_early(
        MODEL, heldout.Splits(train=DATA, val=DATA), cosine_power(2), patience=2,
        validation_loss=lambda module: next(losses), optimizer=make, epochs=6, batch_size=16,
    )  # fmt: skip
    found = torch.tensor(kept[0].param_groups[0]["seen"], dtype=torch.float64)
    assert len(fitted.history) == 4
    assert torch.equal(found, whole[:16])


def test_the_steps_of_a_sampler_are_learnt_from_the_epoch_before():
    class Half(torch.utils.data.Sampler):
        def __iter__(self):
            return iter(range(32))

        def __len__(self):
            return 32

    found, _ = seen(cosine_power(1, min_lr=0.0) + Method("half", data=lambda run, data: Half()), epochs=3)
    assert torch.allclose(found[2:], continuous(1, 6)[2:])  # in the first epoch 4 steps are expected, 2 are taken
    assert torch.allclose(found[:2], continuous(1, 12)[:2])


def test_a_loop_of_ones_own_follows_the_curve_and_its_scheduler_keeps_its_own_account():
    noted = []

    def train(model, splits, stages, seed):
        optimizer, steps = stages.optimizer(torch.optim.SGD(model.parameters(), lr=0.2)), []
        optimizer.register_step_pre_hook(lambda *_: steps.append(optimizer.param_groups[0]["lr"]))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, stages.epochs)
        for _ in range(stages.epochs):
            for batch in stages.batches():
                stages.step(optimizer, *batch)
            schedule.step()
        noted.append((steps, optimizer.param_groups[0]["lr"]))
        return model

    heldout.train.fit_with(train, MODEL, DATA, cosine_power(2, min_lr=0.0), epochs=4, batch_size=16)
    steps, last = noted[0]
    assert torch.allclose(torch.tensor(steps, dtype=torch.float64), continuous(2, 16))
    assert last == pytest.approx(0, abs=1e-12)


def test_a_step_that_raises_leaves_the_recipes_rate_for_the_next():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.2)
    run = type("Run", (), {"train_set": range(16), "batch_size": 16, "epochs": 2, "epoch": 1, "step": 0})()
    cosine_power(2, min_lr=0.0).optimizer(run, optimizer)

    def broken():
        raise RuntimeError("no memory")

    for epoch in (1, 2):
        run.epoch = epoch
        with pytest.raises(RuntimeError, match="no memory"):
            optimizer.step(broken)
    optimizer.step(lambda: torch.zeros(()))
    assert optimizer.param_groups[0]["lr"] == 0.2


def test_a_rate_that_is_a_tensor_stays_one():
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=torch.tensor(0.1))
    run = type("Run", (), {"train_set": range(16), "batch_size": 16, "epochs": 2, "epoch": 2, "step": 1})()
    cosine_power(1, min_lr=0.0).optimizer(run, optimizer)
    p = optimizer.param_groups[0]["params"][0]
    p.grad = torch.ones(1)
    optimizer.step()
    assert p.item() == pytest.approx(1 - 0.05, abs=1e-6)
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)


def test_a_model_without_trainable_parameters_cannot_be_trained():
    frozen = nn.Linear(3, 2).requires_grad_(False)
    assert "no parameter" in cosine_power().check(frozen, heldout.Splits(train=DATA))
    assert cosine_power().check(nn.Linear(3, 2), heldout.Splits(train=DATA)) is None


def test_the_method_wraps_a_bare_sam_without_replacing_it_and_is_followed_by_its_two_calls():
    p = nn.Parameter(torch.ones(1))
    base = SAM(torch.optim.SGD([p], lr=0.2))
    run = type("Run", (), {"train_set": range(16), "batch_size": 16, "epochs": 2, "epoch": 2, "step": 1})()
    assert cosine_power(1, min_lr=0.0).optimizer(run, base) is base
    for step in (base.first_step, base.second_step):
        p.grad = torch.ones(1)
        step()
    assert p.item() == pytest.approx(1 - 0.1)  # half of the run is over
    assert base.param_groups[0]["lr"] == 0.2
