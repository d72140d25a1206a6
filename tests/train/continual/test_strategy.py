"""The hooks of a strategy in a loop of one's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.optim import SAM
from heldout.train import EWC, Combined, ContinualStrategy, Cumulative, Replay


class Recorder(ContinualStrategy):
    def __init__(self):
        super().__init__()
        self.calls = []

    def before_step(self, model):
        self.calls.append(("before", model.weight.grad.clone()))
        model.weight.grad.mul_(2)

    def after_step(self, model):
        self.calls.append(("after", model.weight.detach().clone()))


def test_an_attached_optimizer_steps_on_the_changed_gradient():
    model, recorder = nn.Linear(2, 1, bias=False), Recorder()
    start = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recorder.attach(optimizer, model):
        model(torch.tensor([[1.0, 3.0]])).sum().backward()
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), start - 0.2 * torch.tensor([[1.0, 3.0]]))
    assert [name for name, _ in recorder.calls] == ["before", "after"]
    assert recorder.calls[1][1].equal(model.weight)
    model.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()  # no longer attached
    assert len(recorder.calls) == 2


@pytest.mark.parametrize("sam", [False, True])
def test_a_closure_has_its_gradients_changed_after_each_evaluation(sam):
    model, recorder = nn.Linear(2, 1, bias=False), Recorder()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SAM(base, rho=0.5) if sam else base
    start, x = model.weight.detach().clone(), torch.tensor([[1.0, 3.0]])

    def closure():
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        return loss

    with recorder.attach(optimizer, model):
        loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(float((start * x).sum()))
    assert [name for name, _ in recorder.calls] == ["before"] * (2 if sam else 1) + ["after"]
    torch.testing.assert_close(model.weight.detach(), start - 0.2 * x)


def test_cumulative_data_are_the_union_so_far():
    strategy = Cumulative()
    sets = [(torch.full((size, 1), float(size)), torch.full((size,), size)) for size in (2, 3, 4)]
    unions = [strategy.task_data(data) for data in sets]
    assert [len(union) for union in unions] == [2, 5, 9]
    assert sorted(int(unions[2][i][1]) for i in range(9)) == [2] * 2 + [3] * 3 + [4] * 4


def test_combined_strategies_do_what_each_does():
    model = nn.Linear(2, 2)
    data = torch.randn(8, 2), torch.tensor([0, 1] * 4)
    both, ewc, replay = Combined(Replay(4, seed=3), EWC(5.0)), EWC(5.0), Replay(4, seed=3)
    for strategy in (both, ewc, replay):
        strategy.begin_task(model, data)
        strategy.end_task(model, data)
    with torch.no_grad():
        model.weight += 1
    grads = []
    for strategy in (both, ewc):
        model.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        strategy.before_step(model)
        grads.append(model.weight.grad.clone())
    assert grads[0].equal(grads[1])
    assert both.new_share() == replay.new_share() == 0.5
    assert both.mix(*data)[0].equal(replay.mix(*data)[0])
    again = Combined(Replay(4, seed=3), EWC(5.0))
    again.load_state_dict(both.state_dict())
    assert again.tasks_done == again.strategies[0].tasks_done == 1
    with pytest.raises(ValueError, match="of 2 strategies"):
        Combined(EWC(1.0)).load_state_dict(both.state_dict())
    with pytest.raises(ValueError, match="strategies"):
        Combined()


def test_a_second_optimizer_at_once_is_refused_and_one_after_the_other_is_not():
    model, strategy = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), EWC(1.0)
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1) for part in model)
    with (
        strategy.attach(first, model),
        pytest.raises(ValueError, match="attached to an optimizer already"),
        strategy.attach(second, model),
    ):
        pass
    with strategy.attach(second, model):
        pass


def test_sam_in_two_calls_steps_past_a_strategy_and_is_told():
    model = nn.Linear(2, 1)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1)

    def by_hand():
        model(torch.ones(1, 2)).sum().backward()
        optimizer.first_step(zero_grad=True)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.second_step(zero_grad=True)

    with pytest.raises(ValueError, match=r"call optimizer.step\(closure\)"), EWC(1.0).attach(optimizer, model):
        by_hand()
    with EWC(1.0).attach(optimizer, model):
        pass  # no step at all is none that was missed


def test_a_strategy_that_is_taken_in_later_acts_like_the_others():
    both = Combined(Recorder())
    both.add(Replay(10))
    assert both.name == "finetune+replay"
    assert both.new_share() == Replay(10).new_share()
