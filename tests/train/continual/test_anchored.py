"""EWC, synaptic intelligence and RWalk against their equations written out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.measure import fisher_diagonal
from heldout.optim import SAM
from heldout.train import EWC, Combined, ContinualStrategy, RWalk, SynapticIntelligence, fit_stream

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TASKS = [(X[:20], (X[:20, 0] > 0).long()), (X[20:40], (X[20:40, 1] > 0).long()), (X[40:], (X[40:, 2] > 0).long())]
KINDS = [EWC, SynapticIntelligence, RWalk]


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 2)).double()


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.3)


def run(strategy, model=None, tasks=TASKS, steps=15, optimizer=sgd):
    return fit_stream(
        model or net(), tasks, strategy, tests=tasks, steps=steps, batch_size=8, optimizer=optimizer, seed=4
    ).module


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_is_plain_fine_tuning_bit_for_bit(kind):
    plain, held = run(ContinualStrategy()), run(kind(0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), held.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_task_is_learnt_freely(kind):
    plain, held = run(ContinualStrategy(), tasks=TASKS[:1]), run(kind(50.0), tasks=TASKS[:1])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), held.parameters(), strict=True))


@pytest.mark.parametrize(("kind", "strength"), [(EWC, 300.0), (SynapticIntelligence, 3.0), (RWalk, 3.0)])
def test_a_strong_penalty_keeps_what_mattered_where_it_was(kind, strength):
    def moved(strategy):
        first = run(copy.deepcopy(strategy), tasks=TASKS[:1], steps=60)
        both = run(strategy, tasks=TASKS[:2], steps=150, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.02))
        loss = F.cross_entropy(both.eval()(TASKS[0][0]), TASKS[0][1])
        return (loss - F.cross_entropy(first.eval()(TASKS[0][0]), TASKS[0][1])).item()

    assert moved(kind(strength)) < 0.6 * moved(ContinualStrategy())


def test_ewc_adds_half_its_strength_times_fisher_and_squared_distance():
    model, strategy = net(), EWC(6.0, batch_size=7)
    wanted = 0.0
    ends = []
    for data in TASKS[:2]:
        strategy.begin_task(model, data)
        ends.append(({n: p.detach().clone() for n, p in model.named_parameters()}, fisher_diagonal(model, data)))
        strategy.end_task(model, data)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn_like(p)
    own = dict(model.named_parameters())
    wanted = sum(3.0 * (f[n] * (own[n] - e[n]).square()).sum() for e, f in ends for n in own)
    model.zero_grad()
    gradients = torch.autograd.grad(wanted, list(own.values()))
    strategy.before_step(model)
    for p, g in zip(own.values(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_online_ewc_decays_what_was_and_moves_the_anchor():
    model, strategy = net(), EWC(1.0, decay=0.25)
    fishers = []
    for data in TASKS[:2]:
        fishers.append(fisher_diagonal(model, data))
        strategy.end_task(model, data)
        with torch.no_grad():
            model[0].weight += 0.1
    found = strategy.penalty.importance["0.weight"]
    torch.testing.assert_close(found, 0.25 * fishers[0]["0.weight"] + fishers[1]["0.weight"])
    torch.testing.assert_close(strategy.penalty.anchor["0.weight"], model[0].weight.detach() - 0.1)


def test_fisher_of_some_examples_is_that_of_a_subset():
    model, strategy = net(), EWC(1.0, examples=5)
    strategy.end_task(model, TASKS[0])
    assert not torch.equal(strategy.penalty.importance["0.weight"], fisher_diagonal(model, TASKS[0])["0.weight"])


def test_the_path_integral_of_si_is_the_loss_that_was_lowered():
    """Along plain gradient descent with small steps the omegas add up to the decrease of the loss."""
    model, strategy = net().eval(), SynapticIntelligence(0.0)
    x, y = TASKS[0]
    strategy.begin_task(model, TASKS[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = F.cross_entropy(model(x), y).item()
    with strategy.attach(optimizer, model):
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    path = sum(value.sum().item() for value in strategy._path.values())
    assert path == pytest.approx(before - F.cross_entropy(model(x), y).item(), rel=0.05)


def by_hand(model, data, rate, steps, penalty_of=None):
    """Values and gradients of the loss alone along gradient descent on the loss and a penalty."""
    own, records = dict(model.named_parameters()), []
    for _ in range(steps):
        gradients = torch.autograd.grad(F.cross_entropy(model(data[0]), data[1]), list(own.values()))
        before = {n: p.detach().clone() for n, p in own.items()}
        with torch.no_grad():
            for (name, p), g in zip(own.items(), gradients, strict=True):
                p -= rate * (g + (penalty_of(name, p) if penalty_of else 0))
        records.append([
            dict(zip(own, gradients, strict=True)), before, {n: p.detach().clone() for n, p in own.items()}
        ])  # fmt: skip
    return records


def pull_to(anchor_weights, ends, strength):
    return lambda name, p: 2 * strength * anchor_weights[name] * (p - ends[name])


def by_strategy(model, data, rate, steps, strategy):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    strategy.begin_task(model, data)
    with strategy.attach(optimizer, model):
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()
    strategy.end_task(model, data)


@pytest.mark.parametrize("kind", [SynapticIntelligence, RWalk])
def test_under_sam_the_path_is_that_of_the_weights_and_not_of_where_the_loss_is_evaluated_again(kind):
    model, strategy = net().eval(), kind(0.0)
    x, y = TASKS[0]
    strategy.begin_task(model, TASKS[0])
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.01), rho=0.1)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    before = F.cross_entropy(model(x), y).item()
    with strategy.attach(optimizer, model):
        for _ in range(60):
            optimizer.step(closure)
    lowered = strategy._path if kind is SynapticIntelligence else None
    if lowered is not None:
        path = sum(value.sum().item() for value in lowered.values())
        assert path == pytest.approx(before - F.cross_entropy(model(x), y).item(), rel=0.05)
    else:
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        for (name, _), g in zip(model.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(strategy._fisher[name], g.square(), rtol=0.1, atol=1e-5)


def test_an_optimizer_that_evaluates_the_loss_as_it_likes_is_refused():
    model = net()
    with (
        pytest.raises(TypeError, match="ewc cannot wrap LBFGS"),
        EWC(1.0).attach(torch.optim.LBFGS(model.parameters()), model),
    ):
        pass


def test_si_is_its_equations_over_two_tasks():
    strategy, xi, c = SynapticIntelligence(0.7, xi=0.2), 0.2, 0.7
    ours, model = net().eval(), net().eval()
    importance, anchor = None, None
    for data in TASKS[:2]:
        pull = None
        if importance is not None:
            pull = pull_to(importance, anchor, c)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        records = by_hand(model, data, 0.2, 12, pull)
        gained = {}
        for name in start:
            omega = sum(-g[name] * (after[name] - before[name]) for g, before, after in records)
            gained[name] = (omega / ((records[-1][2][name] - start[name]) ** 2 + xi)).clamp(min=0)
        importance = gained if importance is None else {n: importance[n] + gained[n] for n in gained}
        anchor = records[-1][2]
        by_strategy(ours, data, 0.2, 12, strategy)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.detach(), anchor[name])
        torch.testing.assert_close(strategy.penalty.importance[name], importance[name])


def test_rwalk_is_its_equations_over_two_tasks():
    strategy, rate, every, eps, strength = RWalk(0.5, rate=0.6, every=5, epsilon=1e-2), 0.6, 5, 1e-2, 0.5
    ours, model = net().eval(), net().eval()
    fisher, score, importance, anchor = {}, None, None, None
    for data in TASKS[:2]:
        pull = None
        if importance is not None:
            pull = pull_to(importance, anchor, strength)
        records = by_hand(model, data, 0.2, 12, pull)
        last = records[0][1]
        gain = {n: torch.zeros_like(v) for n, v in last.items()}
        lowered = {n: torch.zeros_like(v) for n, v in last.items()}
        for step, (g, before, after) in enumerate(records, start=1):
            for n in last:
                fisher[n] = rate * g[n] ** 2 + (1 - rate) * fisher[n] if n in fisher else g[n] ** 2
                lowered[n] = lowered[n] - g[n] * (after[n] - before[n])
            if step % every == 0 or step == len(records):
                for n in last:
                    gain[n] = gain[n] + (lowered[n] / (0.5 * fisher[n] * (after[n] - last[n]) ** 2 + eps)).clamp(min=0)
                last, lowered = after, {n: torch.zeros_like(v) for n, v in last.items()}
        score = gain if score is None else {n: 0.5 * (score[n] + gain[n]) for n in gain}

        def scaled(values):
            every_value = torch.cat([v.flatten() for v in values.values()])
            return {n: (v - every_value.min()) / (every_value.max() - every_value.min()) for n, v in values.items()}

        f, s = scaled(fisher), scaled(score)
        importance, anchor = {n: f[n] + s[n] for n in f}, records[-1][2]
        by_strategy(ours, data, 0.2, 12, strategy)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.detach(), anchor[name])
        torch.testing.assert_close(strategy.penalty.importance[name], importance[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_strategy_goes_on_after_a_restart_as_if_there_was_none(kind, tmp_path):
    model, strategy, again = net().eval(), kind(0.5), kind(0.5)
    by_strategy(model, TASKS[0], 0.1, 10, strategy)
    torch.save(strategy.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    twin = copy.deepcopy(model)
    by_strategy(model, TASKS[1], 0.1, 10, strategy)
    by_strategy(twin, TASKS[1], 0.1, 10, again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert again.tasks_done == 2


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameters_are_left_alone(kind):
    model = net()
    model[0].weight.requires_grad_(False)
    strategy = kind(1.0)
    run_model = run(strategy, model=model)
    assert run_model[0].weight.equal(model[0].weight)
    assert "0.weight" not in strategy.penalty.importance


@pytest.mark.parametrize("make", [lambda: EWC(50.0), lambda: EWC(50.0, decay=0.5), lambda: SynapticIntelligence(1.0)])
def test_what_is_frozen_between_tasks_is_held_again_when_it_is_free(make):
    model, strategy = net().eval(), make()
    by_strategy(model, TASKS[0], 0.1, 5, strategy)
    held = strategy.penalty.importance["0.weight"].clone()
    model[0].weight.requires_grad_(False)
    by_strategy(model, TASKS[1], 0.1, 5, strategy)
    assert strategy.penalty.importance["0.weight"].equal(held)
    model[0].weight.requires_grad_(True)
    with torch.no_grad():
        model[0].weight += 1
    model.zero_grad()
    strategy.before_step(model)
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("first", [True, False])
def test_si_reads_the_gradient_of_the_loss_alone_beside_another_penalty(first):
    ewc, si = EWC(100.0), SynapticIntelligence(0.0)
    model = net().eval()
    ewc.end_task(model, TASKS[0])
    with torch.no_grad():
        model[0].weight += 0.3
    strategy = Combined(ewc, si) if first else Combined(si, ewc)
    strategy.begin_task(model, TASKS[1])
    gradient = torch.autograd.grad(F.cross_entropy(model(TASKS[1][0]), TASKS[1][1]), model[0].weight)[0]
    before = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with strategy.attach(optimizer, model):
        F.cross_entropy(model(TASKS[1][0]), TASKS[1][1]).backward()
        optimizer.step()
    torch.testing.assert_close(si._path["0.weight"], -gradient * (model[0].weight.detach() - before))


def test_gradients_that_are_still_scaled_are_refused():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.grad_scale = torch.tensor(65536.0)  # as a GradScaler tells an optimizer that unscales by itself
    with EWC(1.0).attach(optimizer, model), pytest.raises(ValueError, match="unscale_"):
        optimizer.step()


def test_a_task_that_was_not_begun_cannot_end():
    for strategy in (SynapticIntelligence(1.0), RWalk(1.0)):
        with pytest.raises(ValueError, match="end_task needs"):
            strategy.end_task(net(), TASKS[0])


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: EWC(-1.0), "strength"),
        (lambda: EWC(float("nan")), "strength"),
        (lambda: EWC(decay=1.5), "decay"),
        (lambda: EWC(kind="true"), "kind"),
        (lambda: EWC(examples=0), "examples"),
        (lambda: SynapticIntelligence(-1.0), "strength"),
        (lambda: SynapticIntelligence(xi=0.0), "xi"),
        (lambda: RWalk(rate=0.0), "rate"),
        (lambda: RWalk(rate=1.5), "rate"),
        (lambda: RWalk(every=0), "every"),
        (lambda: RWalk(epsilon=0.0), "epsilon"),
    ],
)
def test_bad_options_are_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def steps_on(strategy, model, losses, optimizer):
    strategy.begin_task(model, None)
    with strategy.attach(optimizer, model):
        for loss in losses:
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()


def test_parameters_that_have_raised_the_loss_count_as_nothing():
    model, strategy = nn.Linear(1, 1, bias=False), SynapticIntelligence(1.0)
    ascent = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    steps_on(strategy, model, [lambda m: m.weight.square().sum()] * 3, ascent)
    assert strategy._path["weight"].item() < 0
    strategy.end_task(model, None)
    assert strategy.penalty.importance["weight"].item() == 0


def test_scores_of_three_tasks_are_averaged_one_after_the_other():
    model, strategy = nn.Linear(2, 1, bias=False), RWalk(0.0, every=1, epsilon=1e-3)
    gains = []
    for scale in ((1.0, 0.1), (0.3, 2.0), (0.5, 0.7)):
        weights = torch.tensor([scale])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        steps_on(strategy, model, [lambda m, w=weights: (w * (m.weight - 1).square()).sum()] * 4, optimizer)
        gains.append(strategy._gain["weight"].clone())
        strategy.end_task(model, None)
    torch.testing.assert_close(strategy._score["weight"], ((gains[0] + gains[1]) / 2 + gains[2]) / 2)


@pytest.mark.parametrize("make", [SynapticIntelligence, RWalk])
def test_parameters_that_are_freed_or_frozen_on_the_way_keep_what_is_known_of_them(make):
    model, strategy = net(), make(1.0)
    first, last = model[0].weight, model[-1].weight
    x, y = TASKS[0]
    last.requires_grad_(False)
    strategy.begin_task(model, TASKS[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with strategy.attach(optimizer, model):
        for step in range(20):
            if step == 10:  # one is freed, one is frozen, within the task
                last.requires_grad_(True)
                first.requires_grad_(False)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    strategy.end_task(model, TASKS[0])
    names = dict(model.named_parameters())
    assert set(strategy.penalty.importance) == set(names)
    known = strategy.penalty.importance["0.weight"].clone()
    assert known.max() > 0
    strategy.begin_task(model, TASKS[1])  # the first stays frozen in a whole task
    with strategy.attach(optimizer, model):
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    strategy.end_task(model, TASKS[1])
    assert strategy.penalty.importance["0.weight"].max() > 0
