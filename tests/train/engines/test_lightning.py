"""LightningMethod among Lightning's own things: callbacks, checkpoints, DataModules, and modules of one's own."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import heldout
from heldout import Added, Method, Splits
from heldout.nn import small_cnn

lightning = pytest.importorskip("lightning")
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402

from heldout.train import LightningMethod  # noqa: E402

SGD = partial(torch.optim.SGD, lr=0.3)
RECIPE = {"batch_size": 48, "optimizer": SGD, "schedule": "constant"}


def blobs(n=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 4, generator=generator) + 2 * F.one_hot(y, 4), y


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))


def trainer(epochs=3, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"enable_checkpointing": bool(options.get("callbacks")), **options}
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", **quiet, **options)


def same(a, b):
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], rtol=1e-4, atol=1e-6)


def splits(**options):
    return Splits(train=blobs(), val=blobs(30, 1), test={"iid": blobs(30, 2), "far": blobs(21, 3)}, **options)


def test_validation_and_tests_are_logged_as_they_are_evaluated():
    task = LightningMethod(network(), splits(), heldout.methods.sam(), epochs=2, **RECIPE)
    engine = trainer(2)
    engine.fit(task)
    (found,) = engine.validate(task, verbose=False)
    expected = task.fitted().evaluate(blobs(30, 1))
    assert found == {f"val_{name}": pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    found = {name.partition("/")[0]: value for each in engine.test(task, verbose=False) for name, value in each.items()}
    assert found["test_iid_accuracy"] == pytest.approx(task.fitted().evaluate(blobs(30, 2))["accuracy"])
    assert found["test_far_loss"] == pytest.approx(task.fitted().evaluate(blobs(21, 3))["loss"], rel=1e-4)
    assert found["test_loss"] == pytest.approx((found["test_iid_loss"] + found["test_far_loss"]) / 2)


def test_early_stopping_monitors_the_validation_loss(tmp_path):
    still = partial(torch.optim.SGD, lr=0.0)
    task = LightningMethod(network(), splits(), epochs=9, **{**RECIPE, "optimizer": still})
    engine = trainer(
        9, callbacks=[EarlyStopping(monitor="val_loss", patience=1, min_delta=10.0)], default_root_dir=tmp_path
    )
    engine.fit(task)
    assert engine.current_epoch == 2


def test_a_module_of_many_heads_is_validated_by_its_predictor():
    data = splits(domains=torch.arange(48) % 2)
    task = LightningMethod(network(), data, heldout.methods.drm(), epochs=1, **RECIPE)
    engine = trainer(1)
    engine.fit(task)
    (found,) = engine.validate(task, verbose=False)
    assert found["val_accuracy"] == pytest.approx(task.fitted().evaluate(blobs(30, 1))["accuracy"])


def images(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 1, 8, 8, generator=generator) + y.view(-1, 1, 1, 1), y


@pytest.mark.parametrize("name", ["sam", "itta", "drm(estimate='discriminator')", "adanpc(k=3)", "pego(rank=2)"])
def test_a_checkpoint_is_loaded_whole(name, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
        model = layers if name.startswith("pego") else small_cnn(1, 3)
    data = Splits(train=images(), domains=torch.arange(24) % 2, initial_state=model.state_dict())
    made = {"model": model, "data": data, "method": heldout.methods.parse(name), "epochs": 2, "batch_size": 12}
    task = LightningMethod(**made)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last")
    trainer(2, callbacks=[saver]).fit(task)
    before = task.fitted().predict(images(9, 1)[0])
    again = LightningMethod.load_from_checkpoint(tmp_path / "last.ckpt", **made)
    assert torch.equal(again.fitted().predict(images(9, 1)[0]), before)


def test_what_a_checkpoint_cannot_hold_is_told(tmp_path):
    def loss(run, batch):
        run.state["sum"] = run.state.get("sum", 0) + 1
        return 0 * batch.logits.sum()

    method = Method("counted", loss=Added(loss), weights=lambda run, module: module)
    made = {"model": network(), "data": blobs(), "method": method, "epochs": 1, **RECIPE}
    trainer(1, callbacks=[ModelCheckpoint(dirpath=tmp_path, filename="last")]).fit(LightningMethod(**made))
    again = LightningMethod.load_from_checkpoint(tmp_path / "last.ckpt", **made)
    with pytest.raises(ValueError, match=r"counted needs .*\(sum\).*fitted\(\)\.save\(folder\)"):
        again.fitted()


class Blobs(lightning.LightningDataModule):
    def setup(self, stage):
        self.sets = [TensorDataset(*blobs(n, seed)) for n, seed in ((48, 0), (30, 1), (30, 2))]

    def train_dataloader(self):
        return DataLoader(self.sets[0], batch_size=48, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.sets[1], batch_size=16)

    def test_dataloader(self):
        return [DataLoader(self.sets[2], batch_size=16)]


def test_a_data_module_is_trained_on_as_its_data_sets_are():
    task = LightningMethod(network(), Blobs(), heldout.methods.ps_kd(), epochs=3, optimizer=SGD, schedule="constant")
    engine = trainer()
    engine.fit(task)
    plain = heldout.fit(network(), blobs(), heldout.methods.ps_kd(), epochs=3, **RECIPE)
    same(task.fitted().module, plain.module)
    (found,) = engine.test(task, verbose=False)
    assert found["test_accuracy"] == pytest.approx(plain.evaluate(blobs(30, 2))["accuracy"])


def test_batches_without_positions_are_refused():
    task = LightningMethod(network(), blobs(), epochs=1, **RECIPE)
    with pytest.raises(ValueError, match="give the DataModule or the training set to LightningMethod"):
        trainer(1).fit(task, datamodule=Blobs())
    loader = DataLoader(TensorDataset(*blobs()), collate_fn=lambda rows: rows)
    with pytest.raises(ValueError, match="collate by default"):
        LightningMethod(Mine(loader), epochs=1)
    with pytest.raises(TypeError, match="data must be Splits"):
        LightningMethod(network())


class Mine(lightning.LightningModule):
    """A module of one's own, with another loss than cross-entropy and an optimizer that no default is."""

    def __init__(self, loader=None):
        super().__init__()
        self.net, self.loader, self.validated = network(), loader, []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.multi_margin_loss(self(x), y)
        self.log("own_loss", loss)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        self.log("own_metric", 4.0)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.5)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}

    def train_dataloader(self):
        return self.loader or DataLoader(TensorDataset(*blobs()), batch_size=48)


def penalty():
    return Method("decay", loss=Added(lambda run, batch: 0.1 * batch.logits.square().mean()))


def by_hand(method, epochs=3):
    """The same training by ``fit``: margin loss, momentum, a rate that halves every epoch (of one step)."""
    halving = lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)  # noqa: E731
    momentum = partial(torch.optim.SGD, lr=0.2, momentum=0.5)
    return heldout.fit(
        network(), blobs(), method, epochs=epochs, batch_size=48, optimizer=momentum, schedule=halving,
        loss=F.multi_margin_loss,
    )  # fmt: skip


@pytest.mark.parametrize(
    "method", [None, penalty(), heldout.methods.sam(rho=0.5), heldout.methods.ghost_batch_norm(48)]
)
def test_a_module_of_ones_own_keeps_its_step_its_optimizer_and_its_validation(method):
    task = LightningMethod(Mine(), splits(), method, epochs=3, batch_size=48)
    engine = trainer()
    engine.fit(task)
    assert {"own_loss", "own_metric"} <= set(engine.callback_metrics)
    same(task.fitted().module.net, by_hand(method).module)


def test_a_module_of_ones_own_brings_its_data():
    task = LightningMethod(Mine(), None, penalty(), epochs=3)
    trainer().fit(task)
    same(task.fitted().module.net, by_hand(penalty()).module)


class ByHand(Mine):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Two(Mine):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[:1].parameters(), lr=0.1), torch.optim.SGD(self.net[1:].parameters(), lr=0.1)]


def test_what_cannot_act_on_a_module_of_ones_own_says_why():
    with pytest.raises(ValueError, match="ps-kd replaces the loss, and the LightningModule computes its own"):
        LightningMethod(Mine(), blobs(), heldout.methods.ps_kd(), epochs=1)
    with pytest.raises(ValueError, match="drm replaces the loss"):
        LightningMethod(Mine(), splits(domains=torch.arange(48) % 2), heldout.methods.drm(), epochs=1)
    wrap = Method("wrap", model=lambda run, module: nn.Sequential(module))
    with pytest.raises(ValueError, match="wrap replaces the module"):
        LightningMethod(Mine(), blobs(), wrap, epochs=1)
    with pytest.raises(ValueError, match="optimizer is what the LightningModule itself says"):
        LightningMethod(Mine(), blobs(), optimizer=SGD, epochs=1)
    with pytest.raises(ValueError, match="optimizes by hand"):
        LightningMethod(ByHand(), blobs(), epochs=1)
    task = LightningMethod(Two(), blobs(), heldout.methods.sam(), epochs=1, batch_size=48)
    with pytest.raises(ValueError, match=r"sam wraps one optimizer: .* got list"):
        trainer(1).fit(task)


def test_a_subset_in_a_loader_keeps_its_positions():
    seen = []
    spy = Method("spy", loss=Added(lambda run, batch: seen.extend(batch.index.tolist()) or 0 * batch.logits.sum()))
    task = LightningMethod(
        Mine(DataLoader(Subset(TensorDataset(*blobs()), range(9)), batch_size=3)), None, spy, epochs=1
    )
    trainer(1).fit(task)
    assert sorted(seen) == list(range(9))


@pytest.mark.slow
def test_two_processes_train_as_one_under_every_method_that_they_can(tmp_path):
    """Half batches in two processes (DDP over gloo) against whole ones in one; what cannot be so is refused."""
    script = Path(__file__).with_name("distributed_methods.py")
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        done = subprocess.run([*command, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    alone, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    refused = {name for name, state in first.items() if isinstance(state, str)}
    assert refused == {name for name, state in second.items() if isinstance(state, str)}
    # A discriminator, weights of groups and weights of examples that each process would learn for itself.
    assert refused == {"drm(estimate='discriminator')", "group_dro", "l2r_gnn"}
    assert all("differs between the processes" in first[name] for name in refused)
    # They draw for a batch, or compare its examples: those of a process are another draw, or fewer.
    by_batch = {"bang", "mixup", "learned_weights", "novelty_curriculum"}
    # They train something aside at construction, in each process whole, by steps of that process's batch.
    aside = {"dbat", "grokking_tickets", "useful(separating_epoch=1)", "pseudo_supervisor"}
    for name in first.keys() - refused:
        for key, value in alone[name].items():
            assert first[name][key].equal(second[name][key]), name
            if name not in by_batch | aside:
                torch.testing.assert_close(first[name][key], value, rtol=1e-4, atol=1e-6)
