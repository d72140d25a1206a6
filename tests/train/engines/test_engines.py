"""The same Methods inside Lightning and inside transformers' Trainer, with the real libraries."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout import Added, Method, fit
from heldout.nn import GhostBatchNorm1d, ghost_batch_norm
from heldout.optim import sam
from heldout.train import ps_kd

SGD = partial(torch.optim.SGD, lr=0.3)


def blobs(n=48):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    return torch.randn(n, 4, generator=generator) + 2 * F.one_hot(y, 4), y


def mlp(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))


def examples():
    return [{"x": x, "labels": y} for x, y in zip(*blobs())]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x, labels=None):
        logits = self.body(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def in_lightning(method, epochs=3, batch_size=48, **trainer):
    lightning = pytest.importorskip("lightning")
    from heldout.train import LightningMethod

    task = LightningMethod(
        mlp(), blobs(), method, epochs=epochs, batch_size=batch_size, optimizer=SGD, schedule="constant"
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet, **trainer).fit(task)
    return task.fitted()


def in_trainer(method, tmp_path, epochs=3, batch_size=48, accumulation=1):
    transformers = pytest.importorskip("transformers")
    from heldout.train import MethodTrainer

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=epochs, per_device_train_batch_size=batch_size, learning_rate=0.3,
        optim="sgd", lr_scheduler_type="constant", use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        max_grad_norm=0, gradient_accumulation_steps=accumulation, logging_strategy="no",
    )  # fmt: skip
    trainer = MethodTrainer(Classifier(), arguments, method, train_dataset=examples())
    trainer.train()
    return trainer


def in_fit(method, epochs=3):
    return fit(mlp(), blobs(), method, epochs=epochs, batch_size=48, optimizer=SGD, schedule="constant").module


def close(a, b):
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-4, atol=1e-6)


def penalty():
    return Method("decay", loss=Added(lambda run, batch: 0.1 * batch.logits.square().mean()))


FULL_BATCH_METHODS = [None, sam(rho=0.5), ps_kd(), penalty(), sam(rho=0.5) + ps_kd(), ghost_batch_norm(48)]


@pytest.mark.parametrize("method", FULL_BATCH_METHODS, ids=lambda m: m.name if m else "baseline")
def test_lightning_trains_as_fit_does(method):
    close(in_lightning(method).module, in_fit(method))


@pytest.mark.parametrize("method", FULL_BATCH_METHODS, ids=lambda m: m.name if m else "baseline")
def test_the_trainer_trains_as_fit_does(method, tmp_path):
    close(in_trainer(method, tmp_path).model.body, in_fit(method))


def test_sam_in_the_trainer_evaluates_every_micro_batch_again(tmp_path):
    """BatchNorm ties the examples of a micro-batch, so the comparison is made without it."""

    class Plain(Classifier):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 3))
            with torch.no_grad():
                self.body[0].weight.fill_(0.1)

    pytest.importorskip("transformers")
    states = []
    for batch_size, accumulation in ((48, 1), (12, 4)):
        globals()["Classifier"], kept = Plain, Classifier
        try:
            torch.manual_seed(0)
            states.append(in_trainer(sam(rho=0.5), tmp_path, batch_size=batch_size, accumulation=accumulation).model)
        finally:
            globals()["Classifier"] = kept
    close(*states)


NO_RADIUS = sam(rho=0.0)
LENGTHS = [3, 9, 4, 12, 7, 5, 10, 6]  # of texts: micro-batches of two have unequal numbers of labels


def language_model(method, tmp_path, batch_size, accumulation):
    transformers = pytest.importorskip("transformers")
    from heldout.lm import tiny_llama, word_tokenizer
    from heldout.train import MethodTrainer

    tokenizer = word_tokenizer(["a b c d e f g h"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny_llama(tokenizer, dim=16, layers=1)
        rows = []
        for length in LENGTHS:
            ids = torch.randint(4, 12, (12,))
            labels = torch.where(torch.arange(12) < length, ids, -100)
            rows.append({"input_ids": ids, "labels": labels})
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=batch_size, learning_rate=0.5,
        optim="sgd", lr_scheduler_type="constant", use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        max_grad_norm=0, gradient_accumulation_steps=accumulation, logging_strategy="no",
    )  # fmt: skip
    trainer = MethodTrainer(model, arguments, method, train_dataset=rows)
    trainer.train()
    return trainer.model


def token_loss(run, batch):
    shifted = batch.targets[:, 1:].flatten()
    return F.cross_entropy(batch.logits[:, :-1].flatten(0, 1), shifted, ignore_index=-100)


def difference(a, b):
    return max((x - y).detach().abs().max().item() for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("accumulation", [4, 8])
def test_sam_without_a_radius_is_the_plain_trainer_for_unequal_numbers_of_labels(accumulation, tmp_path):
    plain = language_model(None, tmp_path, 8 // accumulation, accumulation)
    assert difference(language_model(sam(rho=0.0), tmp_path, 8 // accumulation, accumulation), plain) < 1e-5
    assert difference(language_model(sam(rho=0.3), tmp_path, 8 // accumulation, accumulation), plain) > 1e-4


@pytest.mark.parametrize("method", [
    None, sam(rho=0.3), Method("own", loss=token_loss),
    Method("added", loss=Added(lambda run, batch: 0.5 * token_loss(run, batch))),
    sam(rho=0.3) + Method("own", loss=token_loss),
], ids=lambda method: method.name if method else "baseline")  # fmt: skip
def test_accumulated_steps_of_the_trainer_are_whole_steps(method, tmp_path):
    whole = language_model(method, tmp_path, 8, 1)
    assert difference(language_model(method, tmp_path, 2, 4), whole) < 1e-5


@pytest.mark.parametrize("method", [
    None, NO_RADIUS, sam(rho=0.5), sam(rho=0.5) + penalty(),
    Method("own", loss=lambda run, batch: F.cross_entropy(batch.logits, batch.targets, label_smoothing=0.1)),
], ids=lambda method: method.name if method else "baseline")  # fmt: skip
def test_accumulated_steps_of_lightning_are_whole_steps(method, monkeypatch):
    def linear():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    monkeypatch.setitem(globals(), "mlp", linear)  # without BatchNorm, which ties the examples of a micro-batch
    whole = in_lightning(method).module
    for batch_size, count in ((24, 2), (12, 4)):
        parts = in_lightning(method, batch_size=batch_size, accumulate_grad_batches=count).module
        assert difference(parts, whole) < 1e-5
    plain = difference(whole, in_lightning(None).module) < 1e-5
    assert plain == (method is None or method is NO_RADIUS)


def test_model_weights_and_predict_stages_run_in_both_engines(tmp_path):
    seen = []
    method = ghost_batch_norm(8) + Method(
        "late",
        weights=lambda run, module: seen.append("weights") or module,
        predict=lambda run, module: seen.append("predict") or module,
    )
    fitted = in_lightning(method, epochs=1)
    assert isinstance(fitted.module[1], GhostBatchNorm1d)
    trainer = in_trainer(method, tmp_path, epochs=1)
    assert isinstance(trainer.model.body[1], GhostBatchNorm1d)
    trainer.fitted().predict({"x": blobs()[0]})
    assert seen == ["weights", "predict"] * 2


def test_a_data_stage_can_train_briefly_in_both_engines(tmp_path):
    errors = []

    def half(run, train_set):
        errors.append(run.train_plain(train_set, 2)[1])
        return torch.utils.data.Subset(train_set, range(24))

    seen = []
    spy = Method("spy", loss=Added(lambda run, batch: seen.extend(batch.index.tolist()) or 0 * batch.logits.sum()))
    in_lightning(Method("half", data=half) + spy, epochs=1, batch_size=8)
    in_trainer(Method("half", data=half) + spy, tmp_path, epochs=2, batch_size=8)
    assert [len(e) for e in errors] == [2, 2] or [len(e) for e in errors] == [1, 2]
    assert set(seen) == set(range(24))


def test_a_method_that_cannot_act_is_refused_by_both_engines(tmp_path):
    never = Method("never", check=lambda module, splits: "no reason")
    with pytest.raises(ValueError, match="never cannot act here"):
        in_lightning(never)
    with pytest.raises(ValueError, match="never cannot act here"):
        in_trainer(never, tmp_path)


@pytest.mark.parametrize("engine", ["lightning", "transformers"])
def test_two_processes_train_as_one(engine, tmp_path):
    pytest.importorskip(engine)
    script = Path(__file__).with_name("distributed.py")
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        done = subprocess.run(
            [*command, str(script), engine, str(tmp_path)], capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
    alone, first, second = (
        torch.load(tmp_path / f"{engine}-{name}.pt", weights_only=True) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    for name, value in alone.items():
        assert first[name].equal(second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    if engine == "transformers":  # weights of groups that each process would learn for itself
        for rank in (0, 1):
            assert "group_dro keeps a state of its own" in (tmp_path / f"refused-{rank}.txt").read_text()
