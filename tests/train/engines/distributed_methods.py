"""Run by torchrun in one or two processes: trains under each Method on the same whole batches; keeps the weights."""

import os
import sys
import warnings
from functools import partial

import lightning
import torch
from torch import nn

from heldout import Added, Method, Splits
from heldout.methods import parse
from heldout.train import LightningMethod

warnings.simplefilter("ignore")
FOLDER, PROCESSES = sys.argv[-1], int(os.environ.get("WORLD_SIZE", "1"))
OWN = {"penalty": Method("penalty", loss=Added(lambda run, batch: 0.1 * batch.logits.square().mean()))}
METHODS = [
    "baseline", "sam(rho=0.5)", "sam(rho=0.5)+penalty", "rm3", "divdis", "dbat", "pego(rank=2,reduction='mean')",
    "ps_kd", "drm(estimate='discriminator')", "balanced_sampling", "bang", "class_balanced", "cosine_power",
    "domain_mixing", "ema", "fixmatch(threshold=0.1)", "grokking_tickets", "group_dro", "l2_sp", "l2r_gnn",
    "label_smoothing", "learned_weights", "lines", "logit_adjustment", "mean_teacher", "mixup", "novelty_curriculum",
    "pseudo_labels(threshold=0.1)", "pseudo_supervisor", "rtn", "swa", "useful(separating_epoch=1)",
    "weight_decay(value=0.5)", "wise_ft",
]  # fmt: skip


def data():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 4, generator=generator), (torch.arange(16) % 5).clamp(max=2)
    return {"train": (x, y), "val": (x.flip(1), y), "unlabeled": torch.randn(20, 4, generator=generator)}


def trained(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    splits = Splits(**data(), domains=(torch.arange(16) % 4 == 0).long(), initial_state=model.state_dict())
    method = None if name == "baseline" else parse(name, OWN)
    if method and method.check and (reason := method.check(model, splits)):
        raise RuntimeError(f"{name}: {reason}")
    task = LightningMethod(
        model, splits, method, epochs=2, batch_size=16 // PROCESSES, schedule="constant",
        optimizer=partial(torch.optim.SGD, lr=0.5),
    )  # fmt: skip
    task.val_dataloader = None
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=PROCESSES, strategy="ddp_find_unused_parameters_true"
        if PROCESSES > 1 else "auto", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=FOLDER,
    )  # fmt: skip
    try:
        trainer.fit(task)
    except ValueError as error:
        return str(error)
    return {key: value.clone() for key, value in task.fitted().module.state_dict().items()}


if __name__ == "__main__":
    found = {name: trained(name) for name in METHODS}
    torch.save(found, f"{FOLDER}/{os.environ['RANK']}-of-{PROCESSES}.pt")
