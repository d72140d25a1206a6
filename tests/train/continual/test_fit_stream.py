"""The loop over a stream: cost, restarts, own steps, and that forgetting is seen and reduced."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.train import EWC, Combined, ContinualStrategy, Cumulative, FastSlow, Replay, fit_stream


def stream(tasks=3, examples=120, seed=0):
    """Two new classes a task, around centres of their own."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(2 * tasks, 6, generator=generator)
    sets = []
    for task in range(tasks):
        y = torch.randint(2 * task, 2 * task + 2, (examples,), generator=generator)
        sets.append((centres[y] + torch.randn(examples, 6, generator=generator), y))
    return sets


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 6))


def fitted(strategy, **options):
    sets = stream()
    options = {"steps": 60, "batch_size": 16, "tests": stream(seed=0)} | options
    return fit_stream(net(), sets, strategy, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1), **options)


def test_fine_tuning_forgets_and_a_memory_keeps():
    plain, kept, union = (fitted(s).matrix for s in (ContinualStrategy(), Replay(60), Cumulative()))
    assert plain.learning() > 0.95
    assert plain.forgetting() > 0.3
    assert kept.forgetting() < 0.1
    assert union.average() > 0.95
    assert plain.initial.shape == (3,)


def test_the_model_that_was_given_is_left_as_it_is_and_the_result_is_another_one():
    model = net()
    before = [p.clone() for p in model.parameters()]
    result = fit_stream(model, stream(), tests=stream(), steps=5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not torch.equal(before[0], result.module[0].weight)
    assert not result.module.training


def test_the_same_seed_gives_the_same_stream():
    assert np.array_equal(fitted(Replay(20), seed=3).matrix.scores, fitted(Replay(20), seed=3).matrix.scores)


class Counting(ContinualStrategy):
    def __init__(self, share=1.0):
        super().__init__()
        self.share, self.sizes, self.data = share, [], []

    def new_share(self):
        return self.share

    def mix(self, inputs, targets):
        self.sizes.append(len(targets))
        self.data.append(targets)
        return inputs, targets


def test_steps_and_epochs_mean_what_they_say():
    by_steps, by_epochs = Counting(), Counting()
    assert fitted(by_steps, steps=7).steps == [7, 7, 7]
    assert set(by_steps.sizes) == {16}
    assert fitted(by_epochs, steps=None, epochs=2).steps == [15, 15, 15]  # 240 examples by 16
    first = torch.cat(by_epochs.data[:15]).sort().values
    assert first.equal(stream()[0][1].repeat(2).sort().values)  # every example twice


def test_a_memory_takes_its_share_of_a_batch_of_one_size():
    sizes = []

    class Watched(Replay):
        def mix(self, inputs, targets):
            mixed = super().mix(inputs, targets)
            sizes.append((len(targets), len(mixed[1])))
            return mixed

    fitted(Watched(30), steps=3)
    assert sizes == [(16, 16)] * 3 + [(8, 16)] * 6


def test_a_killed_stream_goes_on_after_the_last_whole_task(tmp_path):
    file = tmp_path / "stream.pt"

    class Killed(Replay):
        def begin_task(self, model, data):
            if self.tasks_done == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(Killed(30, seed=1), checkpoint=file)
    seen = []
    again = fitted(Replay(30, seed=1), checkpoint=file, on_task=lambda task, scores: seen.append(task))
    whole = fitted(Replay(30, seed=1))
    assert seen == [2]
    assert np.array_equal(again.matrix.scores, whole.matrix.scores)
    assert again.module[0].weight.equal(whole.module[0].weight)
    with pytest.raises(ValueError, match="of another stream: strategy"):
        fitted(EWC(1.0), checkpoint=file)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"seed": 9}, "options"), ({"steps": 5}, "options"), ({"batch_size": 8}, "options"), ({}, "strategy")],
)
def test_a_checkpoint_of_another_stream_is_refused(tmp_path, options, word):
    fitted(EWC(1.0), checkpoint=tmp_path / "stream.pt", steps=2)
    with pytest.raises(ValueError, match=f"of another stream: {word}"):
        fitted(EWC(1.0 if options else 1000.0), checkpoint=tmp_path / "stream.pt", **({"steps": 2} | options))


def test_another_start_is_another_stream(tmp_path):
    fitted(EWC(1.0), checkpoint=tmp_path / "stream.pt", steps=2)
    with pytest.raises(ValueError, match="of another stream: start"):
        fit_stream(
            nn.Linear(6, 6),
            stream(),
            EWC(1.0),
            tests=stream(),
            steps=2,
            batch_size=16,
            checkpoint=tmp_path / "stream.pt",
        )


def test_epochs_make_as_many_steps_under_each_strategy():
    for strategy in (Replay(30), Cumulative(), EWC(1.0)):
        assert fitted(strategy, steps=None, epochs=2).steps == [15, 15, 15]


def test_cumulative_data_are_whole_after_a_restart(tmp_path):
    file = tmp_path / "stream.pt"
    fitted(Cumulative(), checkpoint=file)
    state = torch.load(file, weights_only=True)
    for entry in ("scores", "seconds", "steps"):
        state["progress"][entry].pop()
    state["strategy"]["tasks_done"] = 2
    torch.save(state, file)
    strategy = Cumulative()
    fitted(strategy, checkpoint=file)
    assert len(strategy._sets) == 3


def test_a_step_of_ones_own_is_wrapped():
    def train(model, data, strategy):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with strategy.attach(optimizer, model):
            for start in range(0, 120, 20):
                x, y = data[start : start + 20]
                x, y = strategy.mix(x, y)
                outputs = model(x)
                optimizer.zero_grad()
                (F.cross_entropy(outputs, y) + strategy.extra_loss(model, x, outputs)).backward()
                optimizer.step()

    plain, held = fitted(ContinualStrategy(), train=train), fitted(Replay(60), train=train)
    assert held.matrix.forgetting() < plain.matrix.forgetting() - 0.2
    assert plain.steps == [0, 0, 0]


def test_real_targets_are_scored_by_minus_the_squared_error():
    x = torch.randn(40, 2)
    tasks = [(x, x[:, 0]), (x, x[:, 1])]
    matrix = fit_stream(
        nn.Linear(2, 1), tasks, tests=tasks, steps=100, optimizer=lambda m: torch.optim.Adam(m.parameters(), 0.1)
    ).matrix
    assert -0.05 < matrix.scores[0, 0] <= 0
    assert matrix.scores[1, 0] < -0.5


def test_a_language_model_of_transformers_is_taken_as_it_is():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=8)

    def cycles(start):
        ids = (torch.arange(6) + torch.arange(start, start + 4)[:, None]) % 4 + start
        return [{"input_ids": row, "labels": row} for row in ids]

    tasks = [cycles(0), cycles(4)]

    def evaluate(model, task):
        ids = torch.stack([row["input_ids"] for row in tasks[task]])
        return float((model(ids).logits[:, :-1].argmax(-1) == ids[:, 1:]).double().mean())

    adam = lambda m: torch.optim.Adam(m.parameters(), 0.02)  # noqa: E731
    for strategy in (EWC(10.0), Replay(4)):
        matrix = fit_stream(
            GPT2LMHeadModel(config), tasks, strategy, evaluate=evaluate, steps=30, batch_size=4, optimizer=adam
        ).matrix
        assert matrix.scores[0, 0] > 0.9


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tests": None}, "tests of the tasks, or evaluate"),
        ({"evaluate": lambda m, t: 0.0}, "one of the two"),
        ({"tests": stream()[:2]}, "tests"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        fitted(ContinualStrategy(), **options)


def test_no_task_an_empty_task_a_used_strategy_and_a_loss_that_is_not_finite_are_refused():
    with pytest.raises(ValueError, match="tasks"):
        fit_stream(net(), [], tests=[])
    with pytest.raises(ValueError, match=r"tasks\[1\]"):
        fit_stream(net(), [stream()[0], (torch.zeros(0, 6), torch.zeros(0).long())], tests=stream()[:2])
    strategy = ContinualStrategy()
    fitted(strategy, steps=1)
    with pytest.raises(ValueError, match="3 tasks already"):
        fitted(strategy)
    with pytest.raises(FloatingPointError, match="task 0"):
        fitted(ContinualStrategy(), loss=lambda o, t: o.sum() * float("nan"))


def test_training_is_in_train_mode_and_scoring_in_eval_mode():
    pair = [(torch.randn(20, 3) + shift, torch.arange(20) % 2) for shift in (0.0, 2.0)]
    modes = []

    class Net(nn.Linear):
        def forward(self, inputs):
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(inputs)

    fit_stream(Net(3, 2), pair, tests=pair, steps=3)
    assert set(modes) == {(True, True), (False, False)}
    assert modes.count((True, True)) == 6


def test_at_the_end_of_a_task_a_strategy_is_given_the_tasks_own_data():
    pair = [(torch.randn(20, 3) + shift, torch.arange(20) % 2) for shift in (0.0, 2.0)]
    replay = Replay(100)
    fit_stream(nn.Linear(3, 2), pair, Combined(Cumulative(), replay), tests=pair, steps=2)
    assert torch.bincount(replay.memory.tasks).tolist() == [20, 20]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FastSlow(strength=1.0), FastSlow(strength=100.0)),
        (FastSlow(importance="fisher"), FastSlow(importance="si")),
        (Replay(20, seed=0), Replay(20, seed=1)),
        (Combined(EWC(1.0), Replay(20)), Combined(EWC(2.0), Replay(20))),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(one, other, tmp_path):
    file = tmp_path / "stream"
    fitted(one, checkpoint=file, steps=2)
    with pytest.raises(ValueError, match="of another stream"):
        fitted(other, checkpoint=file, steps=2)
