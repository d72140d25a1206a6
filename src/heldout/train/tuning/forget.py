"""Forgetting a skill by training on random or wrong answers, and the same training on right ones.

Whether the skill is gone is another question, which ``heldout.measure.forget_matrix`` asks of new inputs and of other
tasks. No guarantee of erasure: what was learned may be read from the hidden states as before.

Source: arXiv:2409.02228 (Zhang, Choshen, Andreas).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from heldout.data import randomize_targets
from heldout.errors import (
    check_at_least,
    check_fraction,
    check_nonempty,
    check_nonnegative,
    check_one_of,
    check_positive,
    checked,
)
from heldout.lm import ChoiceExample, encode_examples, right_choices, score_choices
from heldout.measure import choice_confidence, forgetting_order
from heldout.method import device_of
from heldout.train.supervised import seeded
from heldout.train.tuning.tuned import Tuned, prepared_tokenizer

Measure = Callable[[Any], Mapping[str, float]]


@checked
def forget(
    model: Any,
    tokenizer: Any,
    examples: Sequence[ChoiceExample],
    mode: Literal["random", "flip"] = "random",
    *,
    stop_at_chance: bool = True,
    tolerance: float = 0.02,
    steps: int = 200,
    every: int = 10,
    batch_size: int = 32,
    lr: float = 1e-4,
    weight_decay: float = 0.0,
    normalize: Literal["none", "tokens"] = "none",
    seed: int = 0,
    measure: Measure | None = None,
) -> Tuned:
    """Returns the model, tuned in place on random or wrong answers, with its accuracy against the true ones.

    AdamW, which starts anew, at a constant rate; targets are drawn once, see ``randomize_targets``. The loss is that of
    the target option and the end token behind it. Deviation: a loop of its own and not transformers' Trainer, which
    would have to be stopped from outside.

    Args:
        model: a causal or sequence-to-sequence model of transformers, or of peft, whose trainable weights are tuned.
        tokenizer: its tokenizer, with an end token.
        examples: with true answers and equally many options.
        mode: "random" or "flip".
        stop_at_chance: end at the first look at which the accuracy on ``examples`` against the true answers is no
            further from ``1 / options`` than ``tolerance`` (flip: at most one less that before, and ``tolerance``).
            Below chance training goes on, for there wrong answers are given. If all steps are made, the weights of the
            look nearest to the goal (the last of several) are given back. False: make all steps, keep the last weights.
        tolerance: difference of the accuracy that counts as none.
        steps: at most.
        every: steps between two looks at the accuracy.
        batch_size, lr, weight_decay: of AdamW.
        normalize: of the scores that the accuracy is of, see ``right_choices``.
        seed: of the targets, of the order and of dropout.
        measure: from the model to further entries of a record, such as the confidence in single examples.

    Returns:
        its ``history`` has ``step``, ``loss`` (mean since the last record), ``accuracy`` against the true answers, and
        what ``measure`` gave; the first record is of the start, without loss, and the last one of the weights given
        back: what came after them is left out.

    Raises:
        ValueError: no examples, options that are not equally many, settings out of range, nothing to train, or a loss
            that is not finite.

    Source: arXiv:2409.02228, section 3; that training ends at chance is inferred.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["is ice cold ? yes no"])
        >>> model = tiny_llama(tokenizer, dim=16, layers=1)
        >>> asked = [ChoiceExample("is ice cold ?", [" no", " yes"], answer) for answer in (0, 1)]
        >>> forget(model, tokenizer, asked, steps=20).history[-1]["accuracy"]
        0.5
    """
    check_one_of(("random", "flip"), mode=mode)
    check_fraction(tolerance=tolerance)
    check_nonempty(examples=examples)
    targets = randomize_targets(examples, mode, seed)

    def away(accuracy: float, before: float) -> float:
        if mode == "flip":
            return max(0.0, accuracy - (1 - before) - tolerance)
        return max(0.0, abs(accuracy - 1 / len(examples[0].options)) - tolerance)

    options: dict[str, Any] = {"steps": steps, "every": every, "batch_size": batch_size, "lr": lr}
    options |= {"weight_decay": weight_decay, "normalize": normalize, "seed": seed, "measure": measure}
    return _tuned(model, tokenizer, examples, targets, away if stop_at_chance else None, **options)


@checked
def tune_choices(
    model: Any,
    tokenizer: Any,
    examples: Sequence[ChoiceExample],
    *,
    steps: int = 200,
    every: int | None = None,
    batch_size: int = 32,
    lr: float = 1e-4,
    weight_decay: float = 0.0,
    normalize: Literal["none", "tokens"] = "none",
    seed: int = 0,
    measure: Measure | None = None,
) -> Tuned:
    """Returns the model, tuned in place on the examples' answers as they are: ``forget`` without forgetting.

    It is how a skill is learned first, and what forgetting is to be compared with.

    Args:
        model, tokenizer, examples, batch_size, lr, weight_decay, normalize, seed, measure: as for ``forget``.
        steps: all of them are made.
        every: steps between two records; default: the start and the end are recorded.

    Raises:
        ValueError: as ``forget``.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["is ice cold ? yes no"])
        >>> model = tiny_llama(tokenizer, dim=16, layers=1)
        >>> cold = [ChoiceExample("is ice cold ?", [" no", " yes"], 1)]
        >>> tune_choices(model, tokenizer, cold, steps=40, lr=0.01).history[-1]["accuracy"]
        1.0
    """
    options: dict[str, Any] = {"steps": steps, "every": steps if every is None else every, "batch_size": batch_size}
    options |= {"lr": lr, "weight_decay": weight_decay, "normalize": normalize, "seed": seed, "measure": measure}
    return _tuned(model, tokenizer, examples, examples, None, **options)


@checked
def relearning_order(
    model_factory: Callable[[], Any],
    tokenizer: Any,
    train: Sequence[ChoiceExample],
    test: Sequence[ChoiceExample],
    *,
    relearning_lr: float | None = None,
    lr: float = 1e-4,
    **options: Any,
) -> float | None:
    """Returns how the order of forgetting of held-out examples goes with that of learning them again.

    A model forgets by random answers, then it is tuned on the true ones; at each look the confidence in each held-out
    example is taken. See ``heldout.measure.forgetting_order``, also for what None means.

    Args:
        model_factory: makes a model that has the skill; called once.
        tokenizer: of the model.
        train: examples to forget and to learn again.
        test: held-out examples.
        relearning_lr: rate of the second pass; default: 0.3 times ``lr``, as 3e-5 is of 1e-4.
        lr: rate of the first.
        options: of ``forget`` and ``tune_choices``: steps, every, batch_size, weight_decay, seed.

    Raises:
        ValueError: as ``forget``.

    Source: arXiv:2409.02228, section 5.

    Example:
        >>> from heldout.lm import tiny_llama, word_tokenizer
        >>> tokenizer = word_tokenizer(["is ice cold ? yes no"])
        >>> asked = [ChoiceExample("is ice cold ?", [" no", " yes"], 1)]
        >>> relearning_order(lambda: tiny_llama(tokenizer, dim=16, layers=1), tokenizer, asked, asked, steps=2) is None
        True
    """
    check_nonempty(train=train, test=test)
    answers = torch.tensor([example.answer for example in test])
    looks: tuple[list[Tensor], list[Tensor]] = ([], [])

    def look(track: list[Tensor]) -> Measure:
        def taken(model: Any) -> dict[str, float]:
            track.append(choice_confidence(score_choices(model, tokenizer, test), answers))
            return {}

        return taken

    model = forget(model_factory(), tokenizer, train, lr=lr, measure=look(looks[0]), **options).model
    again = {"every": 10, "lr": 0.3 * lr if relearning_lr is None else relearning_lr} | options
    tune_choices(model, tokenizer, train, measure=look(looks[1]), **again)
    return forgetting_order(torch.stack(looks[0]), torch.stack(looks[1]))


def _tuned(
    model: Any,
    tokenizer: Any,
    examples: Sequence[ChoiceExample],
    targets: Sequence[ChoiceExample],
    away: Callable[[float, float], float] | None,
    *,
    steps: int,
    every: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    normalize: Literal["none", "tokens"],
    seed: int,
    measure: Measure | None,
) -> Tuned:
    check_at_least(1, steps=steps, every=every, batch_size=batch_size)
    check_at_least(0, seed=seed)
    check_positive(lr=lr)
    check_nonnegative(weight_decay=weight_decay)
    tokenizer = prepared_tokenizer(tokenizer)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    check_nonempty(**{"model.parameters()": weights})
    pairs = [(example.prompt, example.options[example.answer]) for example in targets]

    def looked(step: int, **found: float) -> dict[str, float]:
        accuracy = right_choices(model, tokenizer, examples, normalize).double().mean().item()
        model.eval()
        return {"step": float(step), **found, "accuracy": accuracy, **({} if measure is None else measure(model))}

    history = [looked(0)]
    nearest, kept = math.inf, (0, list[Tensor]())
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
    generator, order, losses = torch.Generator().manual_seed(seed), list[int](), list[float]()
    with seeded(seed):
        for step in range(1, steps + 1):
            while len(order) < batch_size:
                order += torch.randperm(len(pairs), generator=generator).tolist()
            chosen, order = order[:batch_size], order[batch_size:]
            batch = encode_examples(model, tokenizer, [pairs[number] for number in chosen])
            model.train()
            loss = model(**{name: part.to(device_of(model)) for name, part in batch.items()}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the loss is {losses[-1]} at step {step}: lower lr ({lr})")
            if step % every == 0 or step == steps:
                history.append(looked(step, loss=sum(losses) / len(losses)))
                losses = []
                if away is None:
                    continue
                distance = away(history[-1]["accuracy"], history[0]["accuracy"])
                if distance <= nearest:
                    nearest, kept = distance, (len(history), [weight.detach().clone() for weight in weights])
                if distance <= 1e-9:
                    break
    if away is not None:
        with torch.no_grad():
            for weight, best in zip(weights, kept[1], strict=True):
                weight.copy_(best)
    model.eval()
    return Tuned(model, history[: kept[0]] if away is not None else history)
