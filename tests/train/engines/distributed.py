"""Run by torchrun in two processes: trains with an adapter on full batches and saves what each process got."""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from heldout import Splits
from heldout.methods import group_dro
from heldout.optim import sam

ENGINE, FOLDER = sys.argv[1], sys.argv[2]


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 4, generator=generator), torch.arange(16) % 3


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x, labels=None):
        logits = self.body(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train(processes: int, method=None) -> nn.Module:
    torch.manual_seed(0)
    model = Classifier()
    x, y = data()
    if ENGINE == "lightning":
        import lightning

        from heldout.train import LightningMethod

        task = LightningMethod(
            model, (x, y), sam(rho=0.5), epochs=3, batch_size=16 // processes, schedule="constant",
            optimizer=partial(torch.optim.SGD, lr=0.5),
        )  # fmt: skip
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto",
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=FOLDER,
        )  # fmt: skip
        trainer.fit(task)
        return task.fitted().module
    from transformers import TrainingArguments

    from heldout.train import MethodTrainer

    arguments = TrainingArguments(
        output_dir=FOLDER, num_train_epochs=3, per_device_train_batch_size=16 // processes, learning_rate=0.5,
        optim="sgd", lr_scheduler_type="constant", use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        max_grad_norm=0, logging_strategy="no",
    )  # fmt: skip
    examples = [{"x": a, "labels": b} for a, b in zip(x, y)]
    splits = Splits(train=examples, groups=(torch.arange(16) % 4 == 0).long())
    trainer = MethodTrainer(model, arguments, method or sam(rho=0.5), splits=splits)
    trainer.train()
    return trainer.model


if __name__ == "__main__":
    import os

    trained = train(int(os.environ["WORLD_SIZE"]))
    if ENGINE == "transformers" and os.environ["WORLD_SIZE"] == "2":
        try:
            train(2, group_dro())
        except ValueError as error:
            Path(FOLDER, f"refused-{os.environ['RANK']}.txt").write_text(str(error))
    torch.save(trained.state_dict(), f"{FOLDER}/{ENGINE}-{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}.pt")
