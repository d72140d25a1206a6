from functools import partial

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import SubsetRandomSampler, TensorDataset

import heldout
from heldout import Added, Method, Splits, fit

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def blobs(n=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 4, generator=generator) + 2 * F.one_hot(y, 4), y


def model():
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def same(a, b):
    return all(x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def plain_loop(module, data, epochs, batch_size, seed):
    """The same recipe as fit, written out without it."""
    x, y = data
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        optimizer = SGD(module.parameters())
        steps = epochs * -(-len(x) // batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order = torch.Generator().manual_seed(seed)
        module.train()
        for _ in range(epochs):
            for batch in torch.randperm(len(x), generator=order).split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(module(x[batch]), y[batch]).backward()
                optimizer.step()
                schedule.step()
    return module.eval()


def test_fit_equals_a_loop_written_by_hand():
    torch.manual_seed(3)
    start = model()
    fitted = fit(start, blobs(), epochs=3, batch_size=32, optimizer=SGD, seed=5)
    import copy

    assert same(fitted.module, plain_loop(copy.deepcopy(start), blobs(), 3, 32, 5))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    runs = [fit(model, blobs(), epochs=2, optimizer=SGD, seed=seed) for seed in (0, 0, 1)]
    assert same(runs[0].module, runs[1].module)
    assert not same(runs[0].module, runs[2].module)


def test_fit_leaves_the_given_model_and_the_global_generator_alone():
    module = model()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    fit(module, blobs(), epochs=1)
    assert torch.rand(1).equal(expected)
    assert all(v.equal(before[k]) for k, v in module.state_dict().items())


def test_stages_run_in_the_order_of_a_models_life():
    seen = []

    def note(stage):
        return lambda run, value: seen.append(stage) or value

    method = Method(
        "spy",
        **{stage: note(stage) for stage in ("data", "model", "optimizer", "weights")},
        predict=lambda run, module: seen.append("predict") or module,
    )
    fit(model, blobs(), method, epochs=1)
    assert seen == ["data", "model", "optimizer", "weights", "predict"]


def test_a_run_counts_epochs_from_one_and_steps_from_zero():
    seen = []

    def loss(run, batch):
        seen.append((run.epoch, run.step, run.evaluation))
        return F.cross_entropy(batch.logits, batch.targets)

    fit(model, blobs(64), Method("count", loss=loss), epochs=2, batch_size=32)
    assert seen == [(1, 0, 0), (1, 1, 0), (2, 2, 0), (2, 3, 0)]


def test_an_optimizer_that_evaluates_twice_sees_evaluations_zero_and_one():
    seen = []

    class Twice(torch.optim.SGD):
        def step(self, closure):
            closure()
            return super().step(closure)

    def loss(run, batch):
        seen.append(run.evaluation)
        return F.cross_entropy(batch.logits, batch.targets)

    fit(model, blobs(32), Method("x", loss=loss), epochs=1, batch_size=32, optimizer=partial(Twice, lr=0.1))
    assert seen == [0, 1]


def test_the_index_of_a_batch_points_into_the_original_training_set():
    x, y = blobs(60)
    chosen = torch.tensor([7, 7, 21, 40])

    def loss(run, batch):
        assert set(batch.index.tolist()) <= set(chosen.tolist())
        assert batch.inputs.equal(x[batch.index])
        return F.cross_entropy(batch.logits, batch.targets)

    method = Method("few", data=lambda run, data: torch.utils.data.Subset(data, chosen.tolist()), loss=loss)
    fitted = fit(model, (x, y), method, epochs=2, batch_size=4)
    assert fitted.run.step == 2


def test_a_data_stage_may_give_a_sampler():
    x, y = blobs(60)
    sampler = Method("sampler", data=lambda run, data: SubsetRandomSampler(range(10), generator=run.generator))
    seen = []
    spy = Method("spy", loss=Added(lambda run, batch: seen.extend(batch.index.tolist()) or batch.logits.sum() * 0))
    fit(model, (x, y), sampler + spy, epochs=2, batch_size=5)
    assert sorted(seen) == sorted([*range(10), *range(10)])


def test_a_penalty_is_added_to_the_users_loss():
    losses = []
    penalty = Method("penalty", loss=Added(lambda run, batch: torch.tensor(10.0) + 0 * batch.logits.sum()))
    fitted = fit(model, blobs(), penalty, epochs=1, loss=lambda o, t: losses.append(1) or F.cross_entropy(o, t))
    assert losses
    assert fitted.history[0]["loss"] > 10


def test_a_regression_target_of_another_shape_is_matched_and_never_broadcast():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    y = (x @ torch.tensor([1.0, -2.0, 0.5])).double()
    fitted = fit(nn.Linear(3, 1), (x, y), epochs=60, batch_size=16, optimizer=partial(torch.optim.SGD, lr=0.1))
    assert fitted.evaluate((x, y))["mse"] < 1e-3
    assert fitted.run.task == "regression"


def test_float64_inputs_and_bfloat16_models_work():
    x, y = blobs()
    assert fit(model, (x.double(), y), epochs=1).history
    assert fit(model().bfloat16(), (x, y), epochs=1, optimizer=SGD).module[0].weight.dtype == torch.bfloat16
    assert fit(model, (x, y), epochs=1, autocast=torch.bfloat16).history


def test_several_parameter_groups_keep_their_own_learning_rates():
    def optimizer(module):
        return torch.optim.SGD(
            [{"params": module[0].parameters(), "lr": 0.0}, {"params": module[4].parameters(), "lr": 0.1}], lr=0.1
        )

    start = model()
    fitted = fit(start, blobs(), epochs=1, optimizer=optimizer)
    assert fitted.module[0].weight.equal(start[0].weight)
    assert not fitted.module[4].weight.equal(start[4].weight)


def test_a_schedule_is_stepped_once_per_step():
    seen = []

    def schedule(optimizer, total_steps):
        seen.append(total_steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: seen.append(step) or 1.0)

    fit(model, blobs(64), epochs=2, batch_size=32, schedule=schedule)
    assert seen[0] == 4
    assert seen[-1] == 4


def test_gradients_are_clipped_to_the_given_norm():
    norms = []

    class Spy(torch.optim.SGD):
        def step(self, closure):
            loss = closure()
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(torch.cat([g.flatten() for g in grads]).norm().item())
            return loss

    fit(model, blobs(), epochs=1, optimizer=partial(Spy, lr=0.1), max_grad_norm=0.01)
    assert max(norms) <= 0.0101


def test_augmentation_sees_training_batches_only():
    calls = []
    x, y = blobs(64)
    fitted = fit(model, (x, y), epochs=2, batch_size=32, augment=lambda x, generator: calls.append(1) or x + 1)
    assert len(calls) == 4
    fitted.evaluate((x, y))
    assert len(calls) == 4


def test_a_last_batch_of_one_example_is_left_out():
    x, y = blobs(33)
    assert fit(model, (x, y), epochs=1, batch_size=32).run.step == 1


def test_train_plain_follows_the_recipe_and_leaves_the_run_alone():
    x, y = blobs()
    kept = {}

    def data(run, train_set):
        kept["module"], kept["errors"] = run.train_plain(train_set, 2)
        return train_set

    treated = fit(model, (x, y), Method("probe", data=data), epochs=4, optimizer=SGD, seed=1)
    untreated = fit(model, (x, y), epochs=4, optimizer=SGD, seed=1)
    assert same(treated.module, untreated.module)
    assert len(kept["errors"]) == 2
    assert kept["errors"] == [entry["train_error"] for entry in untreated.history[:2]]


def test_a_predictor_is_reset_before_each_data_set():
    class Counter:
        def __init__(self, module):
            self.module, self.resets = module, 0

        def reset(self):
            self.resets += 1

        def __call__(self, x):
            return self.module(x)

    fitted = fit(model, blobs(), Method("c", predict=lambda run, module: Counter(module)), epochs=1)
    fitted.evaluate(blobs())
    fitted.evaluate(blobs())
    assert fitted.predictor.resets == 2


def test_weights_stage_sees_the_state_before_training():
    start = model()

    def back(run, module):
        module.load_state_dict(run.initial_state)
        return module

    fitted = fit(start, blobs(), Method("back", weights=back), epochs=1)
    assert same(fitted.module, start)


class DataclassModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x, mask):
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.body(x * mask[:, None]))


class DictItems(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data[0])

    def __getitem__(self, i):
        return {"x": self.data[0][i], "mask": torch.ones(()), "labels": self.data[1][i]}


def test_a_model_that_takes_a_dict_and_returns_a_dataclass_is_trained():
    data = DictItems(blobs())
    fitted = fit(DataclassModel, data, epochs=15, batch_size=16, optimizer=SGD)
    assert fitted.evaluate(data)["accuracy"] > 0.8


def test_a_real_transformers_classifier_is_trained():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    tokens = torch.randint(2, 20, (64, 6), generator=torch.Generator().manual_seed(0))
    labels = (tokens[:, 0] > 10).long()
    data = [{"input_ids": t, "attention_mask": torch.ones_like(t), "labels": y} for t, y in zip(tokens, labels)]
    fitted = fit(
        lambda: transformers.BertForSequenceClassification(config),
        data,
        epochs=30,
        optimizer=partial(torch.optim.AdamW, lr=5e-3),
    )
    assert fitted.evaluate(data)["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))}, ValueError, "training set is empty"),
        ({"data": (torch.zeros(5, 4), torch.full((5,), 3))}, ValueError, r"labels must lie in 0..2 .* got 3..3"),
        ({"data": (torch.zeros(5, 4), torch.zeros(5, 2))}, ValueError, "3 values for an example, the targets have 2"),
        ({"data": (torch.zeros(5, 4), torch.full((5, 3), torch.nan))}, ValueError, "training example 0 is not finite"),
        ({"model": nn.Linear(4, 1)}, ValueError, "at least 2 classes"),
        ({"epochs": 0}, ValueError, "at least 1"),
        ({"schedule": "step"}, ValueError, "schedule must be"),
        ({"optimizer": lambda module: 3}, TypeError, "must give a torch Optimizer, got int"),
        ({"method": Method("m", check=lambda *a: "no BatchNorm")}, ValueError, "m cannot act here: no BatchNorm"),
    ],
)
def test_what_cannot_be_trained_is_said(change, error, message):
    arguments = {"model": model(), "data": blobs(), **change}
    with pytest.raises(error, match=message):
        fit(arguments.pop("model"), arguments.pop("data"), **{"epochs": 1, **arguments})


def test_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        fit(model().requires_grad_(False), blobs(), epochs=1)


def test_a_diverging_loss_stops_training():
    with pytest.raises(FloatingPointError, match="training loss is nan in epoch 1"):
        fit(model, (torch.full((8, 4), torch.nan), torch.arange(8) % 3), epochs=1)


def test_fit_is_at_the_top_of_the_package():
    assert heldout.fit is fit
    splits = Splits(train=TensorDataset(*blobs()), test={"iid": blobs(30, seed=1)})
    assert fit(model, splits, epochs=5, optimizer=SGD).evaluate(splits.test["iid"])["accuracy"] > 0.8


LABELS = (torch.arange(40) % 2).long()
INPUTS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
SOFT = torch.nn.functional.one_hot(LABELS, 2) * 0.9 + 0.05


def softly():
    return fit(lambda: nn.Linear(4, 2), (INPUTS, SOFT), loss=nn.CrossEntropyLoss(), epochs=1)


def plainly(labels=LABELS, **options):
    return fit(lambda: nn.Linear(4, 2), (INPUTS, labels), **{"epochs": 1, **options})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: softly().evaluate((INPUTS, SOFT)), ValueError, "no score for soft labels"),
        (lambda: softly().evaluate((INPUTS, LABELS)), ValueError, "no score for soft labels"),
        (lambda: plainly().evaluate((INPUTS, SOFT)), ValueError, r"targets must be class indices \(batch,\)"),
        (lambda: plainly().evaluate((INPUTS, LABELS + 1)), ValueError, r"targets must lie in 0..1, got 1..2"),
        (lambda: plainly().predict(INPUTS.numpy()), TypeError, r"inputs must be tensors, got ndarray: torch.as_tensor"),
        (lambda: plainly().predict(INPUTS.tolist()), TypeError, "inputs must be tensors, got list"),
        (lambda: plainly(LABELS * 0), ValueError, "targets hold only one class, 0"),
        (lambda: plainly(LABELS.int()), TypeError, r"targets must be int64 class labels, got int32: targets.long\(\)"),
        (lambda: plainly(LABELS.bool()), TypeError, "got bool"),
        (
            lambda: fit(nn.Linear(4, 2), (INPUTS.numpy(), LABELS.numpy())),
            TypeError,
            "train must be tensors, got ndarray",
        ),
        (lambda: plainly(seed=-1), ValueError, "seed must be between 0"),
        (lambda: plainly(seed=2**70), ValueError, "seed must be between 0"),
        (lambda: plainly(seed=2.5), TypeError, "seed must be an integer"),
        (lambda: plainly(seed=None), TypeError, "seed must be an integer"),
        (lambda: plainly(epochs="3"), TypeError, "epochs must be an integer"),
        (lambda: plainly(epochs=float("nan")), TypeError, "epochs must be an integer"),
    ],
)
def test_what_fit_cannot_use_is_told_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_frame_is_refused_with_what_makes_examples_of_it():
    frame = pd.DataFrame({"x": [0.0, 1.0], "y": [0, 1]})
    with pytest.raises(TypeError, match=r"train must be examples, got a DataFrame: heldout.problem.as_examples"):
        fit(nn.Linear(1, 2), frame)
