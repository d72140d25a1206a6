"""A strategy inside transformers' Trainer."""

import pytest
import torch

from heldout.optim import sam
from heldout.train import EWC, ContinualStrategy, LwF, Replay, fit_stream

pytest.importorskip("transformers")
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from heldout.train import ContinualTrainer, MethodTrainer, TaskStream, in_order, trainer_step

CONFIG = GPT2Config(
    vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=8, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
)


def cycles(start):
    ids = (torch.arange(6) + torch.arange(4)[:, None]) % 4 + start
    return [{"input_ids": row, "labels": row} for row in ids.repeat(4, 1)]


TASKS = [cycles(0), cycles(4), cycles(8)]


def evaluate(model, task):
    ids = torch.stack([row["input_ids"] for row in TASKS[task]])
    return float((model(ids).logits[:, :-1].argmax(-1) == ids[:, 1:]).double().mean())


def arguments(tmp_path, **options):
    options = {"max_steps": 120, "per_device_train_batch_size": 8, "learning_rate": 0.01, "seed": 0} | options
    return TrainingArguments(
        str(tmp_path),
        report_to=[],
        disable_tqdm=True,
        lr_scheduler_type="constant",
        logging_strategy="no",
        save_strategy="no",
        use_cpu=True,
        **options,
    )


def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(CONFIG)


def matrix(tmp_path, strategy, **options):
    train = trainer_step(arguments(tmp_path, **options))
    return fit_stream(model(), TASKS, strategy, evaluate=evaluate, train=train).matrix


def test_the_trainer_forgets_and_strategies_keep(tmp_path):
    plain = matrix(tmp_path, ContinualStrategy())
    assert plain.learning() > 0.95
    assert plain.forgetting() > 0.3
    assert matrix(tmp_path, Replay(12)).forgetting() < 0.1
    assert matrix(tmp_path, LwF(3.0)).forgetting() < plain.forgetting()


def test_strength_zero_is_the_plain_trainer(tmp_path):
    from transformers import Trainer

    plain, ours = model(), model()
    Trainer(plain, arguments(tmp_path, max_steps=5), train_dataset=TASKS[0]).train()
    ContinualTrainer(ours, arguments(tmp_path, max_steps=5), EWC(0.0), train_dataset=TASKS[0]).train()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("make", [lambda: Replay(4), lambda: LwF(5.0), lambda: EWC(1.0)])
def test_gradients_do_not_grow_with_accumulation(tmp_path, make):
    norms = []
    for accumulation in (1, 2, 4):
        own, strategy = model(), make()
        strategy.end_task(own, TASKS[0][:4])
        strategy.begin_task(own, TASKS[1])
        with torch.no_grad():
            own.transformer.wte.weight *= 1.1
        own.eval()
        seen = []
        strategy.after_step = lambda module, seen=seen: seen.append(
            sum(p.grad.square().sum() for p in module.parameters() if p.grad is not None).sqrt().item()
        )
        args = arguments(
            tmp_path, max_steps=1, per_device_train_batch_size=16 // accumulation, optim="sgd", max_grad_norm=0.0,
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        ContinualTrainer(own, args, strategy, train_dataset=TASKS[1]).train()
        norms.append(seen[0])
    assert max(norms) / min(norms) < 1.2


def test_methods_of_a_stream_are_refused_where_steps_are_no_batches(tmp_path):
    data = [*TASKS[0], *TASKS[1]]
    splits = TaskStream(train=data, tasks=torch.tensor([0] * 16 + [1] * 16))
    for options in ({"max_steps": 10}, {"max_steps": -1, "gradient_accumulation_steps": 2}):
        with pytest.raises(ValueError, match="whole epochs"):
            MethodTrainer(model(), arguments(tmp_path, **options), in_order(), splits=splits)


def test_accumulation_gives_the_gradient_of_the_whole_batch_and_one_pull(tmp_path):
    results = []
    for options in (
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    ):
        own, strategy = model(), EWC(500.0)
        strategy.end_task(own, TASKS[0])
        with torch.no_grad():
            own.transformer.wte.weight += 0.1
        args = arguments(tmp_path, max_steps=3, optim="sgd", learning_rate=0.01, **options)
        ContinualTrainer(own, args, strategy, train_dataset=TASKS[1]).train()
        results.append(own.transformer.wte.weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 100.0])
def test_an_optimizer_that_was_given_is_guided_too_and_only_once(tmp_path, strength):
    """The penalty pulls at its parameters as it does at those of the Trainer's own optimizer."""
    ends = []
    for given in (False, True):
        net, strategy = model(), EWC(strength)
        own = torch.optim.SGD(net.parameters(), lr=0.05)
        for task in TASKS[:2]:
            strategy.begin_task(net, task)
            optimizers = (own if given else torch.optim.SGD(net.parameters(), lr=0.05), None)
            trainer = ContinualTrainer(net, arguments(tmp_path, max_steps=20), strategy, train_dataset=task,
                                       optimizers=optimizers)  # fmt: skip
            trainer.train()
            strategy.end_task(net, task)
        ends.append(net.transformer.wte.weight.detach().clone())
    torch.testing.assert_close(ends[0], ends[1])
    plain = model()
    for task in TASKS[:2]:
        ContinualTrainer(plain, arguments(tmp_path, max_steps=20), ContinualStrategy(), train_dataset=task,
                         optimizers=(torch.optim.SGD(plain.parameters(), lr=0.05), None)).train()  # fmt: skip
    assert torch.allclose(plain.transformer.wte.weight, ends[0]) == (strength == 0)


def test_a_task_is_not_taken_up_in_its_middle(tmp_path):
    trainer = ContinualTrainer(model(), arguments(tmp_path), ContinualStrategy(), train_dataset=TASKS[0])
    with pytest.raises(ValueError, match="resume_from_checkpoint"):
        trainer.train(resume_from_checkpoint=True)


def test_a_method_acts_on_an_optimizer_that_was_given(tmp_path):
    ends = []
    for method in (sam(rho=0.5), sam(rho=0.0)):
        net = model()
        own = torch.optim.SGD(net.parameters(), lr=0.05)
        MethodTrainer(net, arguments(tmp_path, max_steps=5), method=method, train_dataset=TASKS[0],
                      optimizers=(own, None)).train()  # fmt: skip
        ends.append(net.transformer.wte.weight.detach().clone())
    assert not torch.allclose(*ends)
