import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from heldout.measure import residual_stream
from heldout.tasks import composition_facts
from heldout.train import answer_accuracy, train_tokens

WORLD = composition_facts(12, 3, 3, phi=1.0, ood_fraction=0.3, test_fraction=0.2)


def model(seed=0, dropout=0.1):
    torch.manual_seed(seed)
    names = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    config = GPT2Config(
        vocab_size=len(WORLD.vocab), n_embd=16, n_layer=2, n_head=2, n_positions=4, bos_token_id=None,
        eos_token_id=None, **dict.fromkeys(names, dropout),
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def trained(module, **options):
    asked = {"steps": 40, "every": 10, "batch_size": 16, "lr": 0.01, "evaluate": WORLD.splits} | options
    return list(train_tokens(module, WORLD.train, **asked))


def same(records, others):
    assert len(records) == len(others)
    for one, other in zip(records, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == other[name], (name, one, other)


def test_facts_are_learned_and_recorded():
    module = model(dropout=0.0)
    records = trained(module, steps=300, every=100)
    assert [record["step"] for record in records] == [100, 200, 300]
    assert set(records[0]) == {"step", "loss", *WORLD.splits}
    assert records[-1]["atomic_id"] == answer_accuracy(module, WORLD.splits["atomic_id"]) > 0.7


def test_the_first_step_is_one_of_adamw_on_the_tokens_that_count():
    module, plain = model(dropout=0.0).eval(), model(dropout=0.0)
    (record,) = trained(module, steps=1, batch_size=len(WORLD.train.ids), weight_decay=0.5, evaluate=None)
    logits = plain(WORLD.train.ids).logits[:, :-1]
    counts = WORLD.train.counts[:, 1:]
    loss = F.cross_entropy(logits[counts], WORLD.train.ids[:, 1:][counts])
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=0.5)
    loss.backward()
    optimizer.step()
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_every_epoch_shows_every_row_once_in_another_order():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(len(WORLD.vocab), len(WORLD.vocab))

        def forward(self, ids):
            seen.extend(map(tuple, ids.tolist()))
            return self.table(ids)

    count = len(WORLD.train.ids)
    trained(Spy(), steps=6, batch_size=count // 3, evaluate=None)
    once = sorted(map(tuple, WORLD.train.ids[:, :-1].tolist()))
    first = seen[:count]
    assert sorted(first) == once
    assert first != seen[count : 2 * count] or count % 3


def test_the_rate_grows_over_the_warmup():
    module = model(dropout=0.0)
    before = module.transformer.wte.weight.detach().clone()
    trained(module, steps=1, warmup=1000, evaluate=None)
    assert (module.transformer.wte.weight - before).abs().max() < 2e-5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_run_that_goes_on_gives_the_numbers_of_one_that_was_not_stopped(tmp_path, dropout):
    whole = trained(one := model(dropout=dropout), measure=lambda module: {"norm": module.lm_head.weight.norm().item()})
    options = {
        "checkpoint": tmp_path / "run.pt",
        "measure": lambda module: {"norm": module.lm_head.weight.norm().item()},
    }
    for record in train_tokens(model(dropout=dropout), WORLD.train, steps=40, every=10, batch_size=16, lr=0.01,
                               evaluate=WORLD.splits, **options):  # fmt: skip
        if record["step"] == 20:
            break
    torch.manual_seed(99)
    again = trained(other := model(seed=5, dropout=dropout), **options)
    same(again, whole)
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    same(trained(model(seed=6, dropout=dropout), **options), whole)  # nothing is left to do


def test_more_steps_may_be_asked_of_a_run_that_ended_between_two_records(tmp_path):
    whole = trained(model(dropout=0.3))
    trained(model(dropout=0.3), steps=25, checkpoint=tmp_path / "run.pt")
    again = trained(model(dropout=0.3), checkpoint=tmp_path / "run.pt")
    assert [record["step"] for record in again] == [10, 20, 25, 30, 40]
    same([record for record in again if record["step"] != 25], whole)
    with pytest.raises(ValueError, match="steps must be at least 40"):
        trained(model(dropout=0.3), steps=30, checkpoint=tmp_path / "run.pt")


def test_a_killed_process_goes_on_where_it_stood(tmp_path):
    code = (
        "import sys, time\n"
        "from tests.train.test_token_training import WORLD, model\n"
        "from heldout.train import train_tokens\n"
        "for record in train_tokens(model(), WORLD.train, steps=40, every=10, batch_size=16, lr=0.01,\n"
        "                           evaluate=WORLD.splits, checkpoint=sys.argv[1]):\n"
        "    print(record['step'], flush=True)\n"
        "    time.sleep(60 if record['step'] == 20 else 0)\n"
    )
    file = tmp_path / "run.pt"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert [process.stdout.readline().strip() for _ in range(2)] == ["10", "20"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    same(trained(model(seed=3), checkpoint=file), trained(model()))


def test_measures_see_the_model_in_eval_mode_and_it_goes_on_in_training_mode():
    modes = []

    def look(module):
        modes.append(module.training)
        return {"states": len(residual_stream(module, WORLD.train.ids[:2]).states)}

    module = model()
    assert trained(module, measure=look)[-1]["states"] == 3.0
    assert modes == [False] * 4
    assert module.training


def test_the_global_random_state_stays_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    module = model()
    torch.manual_seed(3)
    trained(module, steps=3)
    assert torch.equal(torch.rand(2), expected)


def test_the_accuracy_is_that_of_the_first_token_that_counts():
    table = nn.Embedding.from_pretrained(torch.eye(5).roll(1, 1))  # says the next number
    rows = (torch.tensor([[0, 1, 3], [2, 4, 0], [1, 4, 0]]), torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 0]]).bool())
    assert answer_accuracy(table, rows) == pytest.approx(2 / 3)
    assert answer_accuracy(table, rows, batch_size=2) == pytest.approx(2 / 3)


def test_bad_input_is_refused_by_name(tmp_path):
    ids, counts = WORLD.train
    for argument, options in {
        "steps": {"steps": 0},
        "lr": {"lr": -1.0},
        "every": {"every": 0},
        "warmup": {"warmup": -1},
        "evaluate": {"evaluate": {"a": (ids, counts[:, :2])}},
        "'loss'": {"evaluate": {"loss": WORLD.train}},
    }.items():
        with pytest.raises(ValueError, match=argument):
            trained(model(), **options)
    with pytest.raises(ValueError, match="rows must have a token that counts"):
        list(train_tokens(model(), (ids, torch.zeros_like(counts)), steps=1))
    with pytest.raises(ValueError, match="the loss is"):
        trained(model(), lr=1e30)
    file = tmp_path / "run.pt"
    trained(model(), checkpoint=file)
    with pytest.raises(ValueError, match="other options"):
        trained(model(), checkpoint=file, lr=0.02)
    torch.save({"a": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="not one of train_tokens"):
        trained(model(), checkpoint=file)
