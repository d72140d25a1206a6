"""Causal language models: a FILE whose data are texts, as a problem like every other.

Beside what every FILE may define:

* ``model() -> `` a causal model of transformers, a peft model around one, or the folder that one lies in
* ``tokenizer``: a tokenizer of transformers, a folder, or a function that gives either
* ``data() -> heldout.Splits`` of texts, of ``{"prompt", "completion"}`` or of ``{"messages"}`` (the last one is the
  completion): lists, Hugging Face data sets or pandas frames; only tokens of completions count
* ``max_length`` (default: what the model can take), ``truncate = True`` (longer rows lose their end; otherwise they are
  an error), ``packing = True`` (training rows are joined to sequences of ``max_length``)
* ``judge``: ``(prompt, answer, example) -> float``, more is better; or "exact" or "number"
* ``max_new_tokens`` of an answer
* ``metric``: "perplexity" (default), "loss", "token_accuracy", or, with a judge, "judged"

The recipe is that of ``heldout.train.sft`` where the file says nothing else: AdamW at 1e-4 without weight decay,
batches of 16, gradients clipped at 1; three epochs. The loss is the mean over the tokens that count, an end token
included.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heldout.data import TARGET_KEYS
from heldout.errors import ProblemError, check_no_own_code
from heldout.lm import TransformersLM, context_of, judge_exact, judge_number
from heldout.method import Method, Splits, evaluating, forward, why_no_class_labels
from heldout.nn import inputs_for
from heldout.problem.language_methods import LANGUAGE_METHODS, adapted
from heldout.problem.metrics import Metric
from heldout.problem.problem import Problem, named_validation
from heldout.problem.texts import (
    Judge,
    Language,
    Texts,
    check_packing,
    judged_answers,
    outputs_by_length,
    scored,
    sums_loss,
    text_losses,
)
from heldout.train import Fitted, problem_of

FIELDS = ("prompt", "completion", "response", "messages", "text")  # of a row of text
JUDGED = "judged"
DEFAULTS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 16,
    "max_grad_norm": 1.0,
    "optimizer": functools.partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.0),
}
ONE_CLASS = "it needs one class for each example, and here an example is a text of many tokens"


def _loss(outputs: Tensor, targets: Tensor) -> float:
    return sums_loss(outputs.double(), targets.double()).item()


TEXTS = {
    "perplexity": Metric(lambda outputs, targets: math.exp(min(_loss(outputs, targets), 700.0)), False),
    "token_accuracy": Metric(
        lambda outputs, targets: float(outputs[:, 1].double().sum() / targets[:, 0].double().sum().clamp(min=1)), True
    ),
    JUDGED: Metric(lambda outputs, targets: float(outputs[:, 2].double().mean()), True),
}
"""Metrics of texts, over the tokens that count; of outputs ``(n, 2 or 3)`` and targets, see ``texts``."""


@dataclass(frozen=True)
class LanguageKind:
    """What outputs and targets of texts mean: sums over tokens, and their number (see ``heldout.problem.texts``).

    Example:
        >>> kind = LanguageKind()
        >>> outputs, targets = torch.tensor([[-1.0, 2.0], [-3.0, 0.0]]), torch.tensor([[2.0, 2.0], [2.0, 2.0]])
        >>> kind.score("loss", outputs, targets), kind.score("token_accuracy", outputs, targets)
        (1.0, 0.5)
    """

    name: str = "language"
    classes: None = None
    one_logit: bool = False
    as_given: bool = False
    metrics: Mapping[str, Metric] = field(default_factory=lambda: TEXTS, repr=False)

    def objective(self, own: Any) -> Any:
        """Returns the loss that ``fit`` minimises."""
        return sums_loss

    def loss(self, outputs: Tensor, targets: Tensor) -> float:
        """Returns the mean negative log likelihood of the tokens that count."""
        return _loss(outputs, targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns that of each text, float64 ``(n,)``."""
        return text_losses(outputs.double(), targets.double())

    def score(self, metric: str, outputs: Tensor, targets: Tensor) -> float:
        """Returns a built-in metric, or "loss"."""
        return self.loss(outputs, targets) if metric == "loss" else self.metrics[metric].function(outputs, targets)

    def decode(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both as they are."""
        return outputs, targets

    def refusal(self, method: Method) -> str | None:
        """Returns why a Method can act on no language model, or None."""
        if "predict" in method.stages:
            return "it answers in the model's place with one class or value for each example; here answers are texts"
        return None

    def in_words(self, reason: str | None) -> str | None:
        """Returns a Method's reason not to act, in words of texts."""
        return ONE_CLASS if reason == why_no_class_labels(torch.zeros(1)) else reason


@dataclass
class LanguageProblem(Problem):
    """The language model and the texts of one file.

    Attributes:
        language: how texts become tokens and how answers are judged.
    """

    language: Language = field(default_factory=lambda: Language(None))

    @cached_property
    def kind(self) -> Any:
        """Texts."""
        if self.asked_metric not in (None, "loss", *TEXTS):
            names = ", ".join(f'"{name}"' for name in (*TEXTS, "loss"))
            raise ProblemError(f"{self.path}: metric of a language problem must be {names}, got {self.asked_metric!r}")
        return LanguageKind()

    @cached_property
    def splits(self) -> Splits:
        """The texts, encoded, with the weights before fine-tuning where the model comes with such."""
        first = self._given_model(0)
        if getattr(getattr(first, "config", None), "is_encoder_decoder", None) is not False:
            raise ProblemError(f"{self.path}: model() must give a causal language model of transformers")
        limit = self.language.max_length or context_of(first)
        language = replace(self.language, max_length=limit)

        def encoded(name: str, rows: Any, packed: bool = False) -> Texts:
            try:
                return Texts(_rows(rows), language, packed=packed)
            except (ValueError, TypeError) as error:
                remedy = "" if "tokens, more than" not in str(error) else "; shorten it, or set truncate = True"
                raise ProblemError(f"{self.path}: {name}: {error}{remedy}") from error

        given = self.given
        train, val = encoded("train", given.train, language.packing), given.val
        if isinstance(val, Mapping):
            val = {name: encoded(f"val[{name!r}]", rows) for name, rows in val.items()}
        elif val is not None:
            val = encoded("val", val)
        start = given.initial_state or self._start(first)
        return replace(
            given,
            train=train,
            val=val,
            test={name: encoded(f"test[{name!r}]", rows) for name, rows in given.test.items()},
            initial_state=start,
        )

    def _start(self, first: nn.Module) -> Mapping[str, Tensor] | None:
        """The weights before fine-tuning, where they are the same on another seed; none where adapters are trained."""
        if adapted(first):
            return None
        state, other = first.state_dict(), self._given_model(1).state_dict()
        same = all(torch.equal(value, other[name]) for name, value in state.items())
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items()} if same else None

    def model(self, seed: int) -> nn.Module:
        """Returns the model of the file, which scores texts where it is asked to; adapters are drawn under ``seed``."""
        return scored(self._given_model(seed))

    def outputs(self, fitted: Fitted | nn.Module, dataset: Any, *, batch_size: int = 128) -> tuple[Tensor, Tensor]:
        """Returns sums and counts of all texts, and the judge's scores as a third column where they are the metric.

        Batches are made by length, whatever ``batch_size`` says.
        """
        module = fitted if isinstance(fitted, nn.Module) else fitted.module
        outputs, targets = outputs_by_length(_predictor(module), dataset)
        if self.metric == JUDGED:
            outputs = torch.cat([outputs, judged_answers(module, dataset)[:, None]], 1)
            targets = torch.cat([targets, torch.ones(len(targets), 1).double()], 1)
        return outputs, targets

    def examples(self, fitted: Fitted, dataset: Any) -> Texts:
        """Returns rows of text as ``outputs`` takes them."""
        return dataset if isinstance(dataset, Texts) else self.splits.train.with_rows(_rows(dataset))  # type: ignore[attr-defined]

    def answers(self, fitted: Fitted, inputs: Any) -> list[str] | None:
        """Returns the greedy answer to each prompt (a text, or chat messages); None where ``inputs`` are tokens."""
        prompts = [inputs] if isinstance(inputs, str) else inputs
        if not isinstance(prompts, list | tuple) or not prompts or isinstance(prompts[0], Tensor):
            return None
        texts: Texts = self.splits.train  # type: ignore[assignment]
        with evaluating(fitted.module):
            lm = TransformersLM(fitted.module, self.language.tokenizer)
            return [said.text for (said,) in lm.generate(prompts, max_tokens=texts.longest_answer())]

    def check(self) -> list[str]:
        """Returns warnings; everything that training would trip over is an error (see ``check_problem``)."""
        chosen = self.kind and self.metric  # the metric is looked at before the texts are
        splits: Any = self.splits
        sets: dict[str, Any] = {"train": splits.train}
        many = isinstance(splits.val, Mapping)
        sets |= {f"val[{n!r}]" if many else "val": d for n, d in named_validation(splits).items()}
        sets |= {f"test[{name!r}]": dataset for name, dataset in splits.test.items()}
        if self.given_recipe.get("loss") is not None:
            raise ProblemError(f"{self.path}: leave out loss: a language problem has that of its tokens")
        try:
            if chosen == JUDGED:
                self._check_judge(sets)
            module = self.model(0)
            if not any(p.requires_grad for p in module.parameters()):
                raise ValueError("the model has no parameter that requires a gradient")
            self._check_tokens(module, sets)
            problem_of(module, splits.train)
            outputs, _ = outputs_by_length(_predictor(module), torch.utils.data.Subset(splits.train, [0]))
            if not outputs.isfinite().all():
                raise ValueError("the model gives likelihoods that are not finite")
            if self.language.packing:
                check_packing(module, splits.train)
        except (ValueError, TypeError) as error:
            raise ProblemError(f"{self.path}: {error}") from error
        return self._warnings(sets)

    def _check_judge(self, sets: Mapping[str, Any]) -> None:
        if self.language.judge is None:
            raise ValueError('metric = "judged" needs judge(prompt, answer, example) -> float in the file')
        for name, texts in sets.items():
            if name != "train" and texts.pairs is None:
                raise ValueError(f'metric = "judged" needs a prompt in each row of {name}')

    def _check_tokens(self, module: Any, sets: Mapping[str, Any]) -> None:
        known = module.get_input_embeddings().num_embeddings
        for name, texts in sets.items():
            largest = max(int(row["input_ids"].max()) for row in texts.encoded)
            if largest >= known:
                raise ValueError(f"{name} has the token {largest}, and the model knows {known}: not its tokenizer")
            if not texts.tokens:
                raise ValueError(f"{name} has no token that counts")

    def _warnings(self, sets: Mapping[str, Any]) -> list[str]:
        found, seen = [], {str(_content(row)) for row in sets["train"].rows}
        for name, texts in sets.items():
            if texts.truncated:
                found.append(
                    f"{texts.truncated} of {len(texts.rows)} rows of {name} are cut to {texts.language.max_length} "
                    "tokens: what stands behind is neither learned nor counted"
                )
            if name != "train" and (shared := sum(str(_content(row)) in seen for row in texts.rows)):
                found.append(
                    f"{name} shares {shared} of its {len(texts.rows)} rows with train: its score will look too good"
                )
        return found


def is_language(names: Mapping[str, Any], train: Any) -> bool:
    """Returns whether a file is a language problem: it says so, or its examples are texts without a label.

    Args:
        names: what the file defines.
        train: its training set.

    Example:
        >>> is_language({}, ["a text", "another"]), is_language({}, [{"text": "a text", "label": 1}])
        (True, False)
    """
    if names.get("kind") is not None:
        return names["kind"] == "language"
    try:
        first = _rows(train)[0]
    except (KeyError, IndexError, TypeError, NotImplementedError):  # a stream has no rows by number
        return False
    if isinstance(first, Mapping):
        return any(_textual(first.get(key)) for key in FIELDS) and not any(key in first for key in TARGET_KEYS)
    pair = isinstance(first, list | tuple) and len(first) == 2 and all(isinstance(part, str) for part in first)
    return isinstance(first, str) or pair


def load_language(
    file: Path, names: Mapping[str, Any], splits: Splits, recipe: dict[str, Any], **training: Any
) -> LanguageProblem:
    """Returns the language problem that the names of a file define.

    Args:
        file: where they stand.
        names: what it defines.
        splits: its data.
        recipe: what it says on training.
        training: further fields of ``Problem``: where to train, and how in place of ``fit``.

    Raises:
        ProblemError: there is no tokenizer, or a name has a value that it cannot have.
    """
    if names.get("tokenizer") is None:
        raise ProblemError(
            f"{file} must define tokenizer, as its data are texts: a tokenizer of transformers, or its folder"
        )
    tokenizer = _tokenizer(file, names["tokenizer"])
    for name in ("max_length", "max_new_tokens"):
        value = names.get(name)
        if value is not None and not (isinstance(value, int) and value >= 2):
            raise ProblemError(f"{file}: {name} must be an integer of at least 2, got {value!r}")
    if callable(names.get("metric")):
        raise ProblemError(
            f"{file}: metric of a language problem is a name: define judge(prompt, answer, example) -> float and set "
            'metric = "judged"'
        )
    return LanguageProblem(
        path=file,
        make_model=functools.partial(_model, file, names["model"]),
        given=splits,
        given_recipe=DEFAULTS | recipe,
        asked_kind="language",
        asked_metric=names.get("metric"),
        own_methods={**LANGUAGE_METHODS, **names.get("methods", {})},
        language=Language(
            tokenizer=tokenizer,
            max_length=names.get("max_length"),
            truncate=bool(names.get("truncate", False)),
            packing=bool(names.get("packing", False)),
            judge=_judge(file, names.get("judge")),
            max_new_tokens=names.get("max_new_tokens"),
        ),
        **training,
    )


def _model(file: Path, make: Any) -> nn.Module:
    try:
        made = make()
        if isinstance(made, str | Path):
            from transformers import AutoModelForCausalLM

            check_no_own_code(made)
            made = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    except Exception as error:
        raise ProblemError(f"{file}: model() fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ProblemError(f"{file}: model() must return a language model or its folder, got {type(made).__name__}")
    return made


def _tokenizer(file: Path, given: Any) -> Any:
    try:
        if not hasattr(given, "eos_token_id") and callable(given):
            given = given()  # type: ignore[operator]
        if isinstance(given, str | Path):
            from transformers import AutoTokenizer

            given = AutoTokenizer.from_pretrained(given)
    except Exception as error:
        raise ProblemError(f"{file}: tokenizer fails: {type(error).__name__}: {error}") from error
    if getattr(given, "eos_token_id", None) is None:
        raise ProblemError(f"{file}: tokenizer must be one of transformers with an end token (eos_token)")
    if given.pad_token_id is None:
        given.pad_token = given.eos_token
    return given


def _judge(file: Path, given: Any) -> Judge | None:
    if given is None or callable(given):
        return given
    named: dict[Any, Any] = {"exact": judge_exact, "number": judge_number}
    if given not in named:
        raise ProblemError(f"{file}: judge must be a function, {' or '.join(map(repr, named))}, got {given!r}")
    compare = named[given]()

    def judge(prompt: str, answer: str, example: Any) -> float:
        said = example.get("completion", example.get("response")) if isinstance(example, Mapping) else example[-1]
        if isinstance(example, Mapping) and example.get("messages") is not None:
            said = example["messages"][-1]["content"]
        return float(compare(prompt, answer, said))

    return judge


def _predictor(module: nn.Module) -> Any:
    def predict(inputs: Any) -> Tensor:
        with evaluating(module), torch.no_grad():
            return forward(module, inputs_for(module, inputs))

    return predict


def _rows(data: Any) -> Any:
    return data.to_dict("records") if hasattr(data, "columns") and hasattr(data, "to_dict") else data


def _textual(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Sequence) and bool(value) and isinstance(value[0], Mapping))


def _content(row: Any) -> Any:
    return {key: row[key] for key in FIELDS if row.get(key) is not None} if isinstance(row, Mapping) else row
