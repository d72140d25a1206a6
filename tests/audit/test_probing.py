"""What layers know, of models whose knowledge was put into one of them."""

import pytest
import torch
from torch import nn

from heldout import Splits
from heldout.audit.probing import probes
from heldout.audit.work import Audit, NotApplicableError
from heldout.problem import Problem, load_problem

transformers = pytest.importorskip("transformers")


def classifier(*, spoilt):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=12, n_embd=16, n_layer=3, n_head=2, n_positions=16, num_labels=2, pad_token_id=0
    )
    model = transformers.GPT2ForSequenceClassification(config).eval()
    if spoilt:  # what the last block writes drowns everything before it
        nn.init.normal_(model.transformer.h[2].mlp.c_proj.weight, std=30.0)
        nn.init.normal_(model.transformer.h[2].mlp.c_fc.weight, std=30.0)
    return model


def examples(count, seed):
    """Rows of 6 tokens; the label is whether token 1 is among them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 12, (count, 6), generator=generator)
    labels = torch.randint(0, 2, (count,), generator=generator)
    ids[labels.bool(), 2] = 1
    mask = torch.ones_like(ids)
    return [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(ids, mask, labels, strict=True)]


def work_on(tmp_path, model, kind="classification", **splits):
    splits = Splits(**{"train": examples(200, 0), "test": {"iid": examples(200, 1)}, **splits})
    problem = Problem(tmp_path / "mine.py", lambda: model, splits, {}, asked_kind=kind)
    return Audit(problem, model, 0, float("inf"), {"asked": "mine.py", "findings": [], "shifts": {}})


def test_a_layer_that_knows_the_label_better_than_the_untrained_head_is_named(tmp_path):
    work = work_on(tmp_path, classifier(spoilt=True))
    before = {name: value.clone() for name, value in work.module.state_dict().items()}
    probes(work)
    told = work.document["probes"]
    assert len(told["layers"]) == 4
    assert max(told["layers"][:3]) > 0.9  # the mean of embeddings tells whether a token is there
    (finding,) = work.document["findings"]
    assert finding["severity"] == "serious"
    assert "train a new head on layer" in finding["remedy"]
    assert told["sets"]["iid"]["probe"] - told["sets"]["iid"]["model"] == pytest.approx(finding["value"])
    assert all(torch.equal(value, before[name]) for name, value in work.module.state_dict().items())


def test_padding_does_not_change_what_layers_know(tmp_path):
    padded = [
        {
            "input_ids": torch.cat([row["input_ids"], torch.zeros(3, dtype=torch.long)]),
            "attention_mask": torch.cat([row["attention_mask"], torch.zeros(3, dtype=torch.long)]),
            "labels": row["labels"],
        }
        for row in examples(200, 1)
    ]
    found = []
    for test in (examples(200, 1), padded):
        work = work_on(tmp_path, classifier(spoilt=False), test={"iid": test})
        probes(work)
        found.append(work.document["probes"]["sets"]["iid"]["probe"])
    assert found[0] == found[1]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 2)])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


def test_another_model_is_not_applicable(tmp_path):
    rows = (torch.randn(50, 3), torch.arange(50) % 2)
    with pytest.raises(NotApplicableError, match="transformers"):
        probes(work_on(tmp_path, Plain(), train=rows, test={"iid": rows}))


FILE = """
from heldout import Splits
from heldout.lm import tiny_llama, word_tokenizer

tokenizer = word_tokenizer(["a b c d e f g h i j k l m n o p q r s t u v w x y z is"])


def model():
    return tiny_llama(tokenizer, seed=0)


def data():
    test = {"next": [("d is", "e"), ("e is", "f")]}
    return Splits(train=[("a is", "b"), ("b is", "c")] * 4, val=[("c is", "d")], test=test)
"""


def test_of_a_language_model_the_layer_is_told_at_which_the_answer_stands(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    problem = load_problem(path)
    module = problem.model(0)
    work = Audit(problem, module, 0, float("inf"), {"asked": "mine.py", "findings": []})
    probes(work)
    told = work.document["probes"]
    assert len(told["layers"]) == module.config.num_hidden_layers + 1
    ranks = []
    for row in problem.splits.test["next"].encoded:  # by hand: the rank of the first completion token
        where = int((row["labels"] >= 0).nonzero()[0])
        logits = module(row["input_ids"][None, :where]).logits[0, -1]
        ranks.append(int((logits > logits[row["labels"][where]]).sum()))
    assert told["layers"][-1] == pytest.approx(sum(1 / (rank + 1) for rank in ranks) / 2)
    assert told["layers"][told["decided"]] >= 0.9 * told["layers"][-1]
    assert all(value < 0.9 * told["layers"][-1] for value in told["layers"][: told["decided"]])
    assert [each["severity"] for each in work.document["findings"]] == ["for information"] * len(
        work.document["findings"]
    )
