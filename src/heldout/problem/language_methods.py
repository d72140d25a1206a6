"""Methods in the form that they have for causal language models: losses of tokens, and adapters scaled by depth.

They stand under the names of the catalog, in whose place they go where a problem is made of texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heldout import losses, train
from heldout.data import self_targets
from heldout.lm import TransformersLM
from heldout.losses import soft_cross_entropy
from heldout.method import Batch, Method, Run, Splits
from heldout.nn import inject_lora_group, position_offsets, query_and_value
from heldout.problem.texts import Texts, plain, tokens_of
from heldout.train import ProgressiveSelfDistillation
from heldout.weights import fake_quantize, lines_lora, lines_method, wise_ft_method

MOST_KEPT = 2**28  # bytes of predictions that ps_kd keeps whole
RIGHT = 0.5  # an answer whose score is above is right


def label_smoothing(smoothing: float = 0.1) -> Method:
    """Returns the Method that trains on tokens of which ``smoothing`` is spread over the vocabulary.

    Raises:
        ValueError: ``smoothing`` outside of [0, 1).

    Source: arXiv:1512.00567, section 7.

    Example:
        >>> label_smoothing(0.2).stages
        ('loss',)
    """
    smooth = losses.label_smoothing(smoothing)

    def loss(run: Run, batch: Batch) -> Tensor:
        logits, labels, _ = tokens_of(run, batch)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    return replace(smooth, loss=loss, check=_why_weighted)


def ps_kd(
    alpha_T: float = 0.8,
    storage: Literal["auto", "memory", "topk"] = "auto",
    growth: Literal["linear", "constant"] = "linear",
) -> Method:
    """Returns the Method that softens each token with the model's own prediction of the previous epoch.

    Args:
        alpha_T: weight of the prediction in the last epoch.
        storage: "memory" keeps two predictions of each token whole, "topk" their ten largest; "auto" keeps them whole
            where that takes 256 MB at most.
        growth: of the weight.

    Source: arXiv:2006.12000; tokens are its examples.

    Example:
        >>> ps_kd(alpha_T=0.7).name
        'ps_kd'
    """
    ProgressiveSelfDistillation(1, 11, 1, alpha_T, "topk" if storage == "auto" else storage, growth=growth)

    def loss(run: Run, batch: Batch) -> Tensor:
        logits, labels, index = tokens_of(run, batch)
        if "ps_kd" not in run.state:
            tokens, classes = _texts(run.train_set).tokens, logits.shape[1]
            whole = storage == "memory" or (storage == "auto" and 8 * tokens * classes <= MOST_KEPT) or classes < 11
            run.state["ps_kd"] = ProgressiveSelfDistillation(
                tokens, classes, run.epochs, alpha_T, "memory" if whole else "topk", growth=growth, device=run.device
            )
        distillation: ProgressiveSelfDistillation = run.state["ps_kd"]
        targets = distillation.targets(index, labels, run.epoch)
        if run.evaluation == 0:
            distillation.update(index, logits)
        return soft_cross_entropy(logits, targets)

    return Method("ps_kd", loss=loss, check=_why_weighted)


def s3ft() -> Method:
    """Returns the Method that trains on the model's own answers where they are right, on restated or given ones else.

    Right is what the file's ``judge`` gives more than a half. The model answers once, before training: the cost is
    that of decoding the training set once or twice.

    Source: arXiv:2502.08130; see ``heldout.data.self_targets``.

    Example:
        >>> s3ft().stages
        ('data',)
    """

    def data(run: Run, train_set: Any) -> Texts:
        texts = _texts(train_set)
        language, pairs = texts.language, texts.pairs
        assert pairs is not None
        assert language.judge is not None
        judged = language.judge
        rows = {(plain(prompt), gold): row for (prompt, gold), row in zip(pairs, texts.rows, strict=True)}
        found = self_targets(
            TransformersLM(run.module, language.tokenizer),
            pairs,
            lambda prompt, answer, gold: bool(judged(prompt, answer, rows[prompt, gold]) > RIGHT),
            max_new_tokens=texts.longest_answer(),
        )
        run.state["s3ft"] = found.counts()
        return texts.with_rows(found)

    def check(module: nn.Module, splits: Splits) -> str | None:
        texts = _texts(splits.train)
        if texts.language.judge is None:
            return "it trains on the model's own answers where they are right: define judge(prompt, answer, example)"
        if texts.pairs is None or not all(gold for _, gold in texts.pairs):
            return "it needs a prompt and a completion in each row of train"
        return "it has no weights of tokens" if texts.weighted else None

    return Method("s3ft", data=data, check=check)


def lines(alpha: float = 0.3) -> Method:
    """Returns the Method that scales the change of the weights by depth, after training; of adapters their ``lora_B``.

    Args:
        alpha: factor of the first block; the last block stays as fine-tuned.

    Source: arXiv:2410.17146, eq. 2.

    Example:
        >>> lines(0.5).stages
        ('weights',)
    """
    return _by_start(lines_method(alpha), lambda module: lines_lora(module, alpha))


def wise_ft(alpha: float = 0.5) -> Method:
    """Returns the Method that averages fine-tuned weights with those of the start; of adapters it scales the change.

    Args:
        alpha: weight of the fine-tuned model, in [0, 1].

    Raises:
        ValueError: ``alpha`` outside of [0, 1].

    Source: arXiv:2109.01903, eq. 1.

    Example:
        >>> wise_ft(0.7).stages
        ('weights',)
    """
    return _by_start(wise_ft_method(alpha), lambda module: lines_lora(module, alpha, 0.0))


def bang(alpha: float = 0.5, smoothing: float = 0.1) -> Method:
    """Returns the Method that fine-tunes with label smoothing and then averages with the weights of the start.

    Args:
        alpha: weight of the fine-tuned model, in [0, 1].
        smoothing: in [0, 1).

    Source: arXiv:2309.17230, section 5. Deviation: without Mixup, as tokens cannot be mixed.

    Example:
        >>> bang().stages
        ('loss', 'weights')
    """
    return (label_smoothing(smoothing) + wise_ft(alpha)).renamed("bang")


def pego(lam: float = 1e-3, rank: int = 4, size: int = 4, *, preserve: float = 1.0, diversify: float = 1.0) -> Method:
    """Returns the Method that trains groups of orthogonal low-rank adapters on query and value, merged at the end.

    Everything else is frozen, the output layer too; the model must start from its pretrained weights and have no
    adapters of its own. Adapters want a larger learning rate than whole weights, about ten times.

    Args:
        lam: weight of the penalty; 0 with ``size=1`` is plain LoRA.
        rank: of each adapter.
        size: adapters in each group.
        preserve: weight of the orthogonality to the pretrained weights.
        diversify: weight of the orthogonality of the adapters.

    Raises:
        ValueError: a negative ``lam``, ``rank`` or ``size`` below 1.

    Source: arXiv:2407.15085. Deviation: the paper's models classify images.

    Example:
        >>> pego(rank=2).stages
        ('model', 'loss', 'weights')
    """
    whole = losses.pego(lam, rank, size, preserve=preserve, diversify=diversify)

    def model(run: Run, module: nn.Module) -> nn.Module:
        trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        run.state["pego"] = inject_lora_group(module, rank=rank, size=size, generator=run.generator), trainable
        return module

    def check(module: nn.Module, splits: Splits) -> str | None:
        if adapted(module):
            return "the model has adapters already, and this method brings its own: give the model without them"
        if splits.initial_state is None:
            return _NO_START
        found = _query_and_value_weights(module)
        if not found:
            return "it adapts query and value projections, and the model has none that is called so"
        for name, weight in found.items():
            start = splits.initial_state.get(name)
            if start is not None and not torch.equal(start.to(weight), weight):
                return f"the model does not start from the given state: {name} differs, load the state in model()"
        narrow = min(min(weight.shape) for weight in found.values())
        return None if rank <= narrow else f"its rank must be at most {narrow}, the smaller side of a projection"

    return replace(whole, model=model, check=check)


def gem_edge(
    distillation: float = 0.7, quantisation: float = 0.3, *, bits: int = 8, temperature: float = 1.0
) -> Method:
    """Returns the Method that trains on the tokens and on what the start of fine-tuning would have written.

    It costs a forward pass without gradient for each batch, and the memory of a second model.

    Args:
        distillation: weight of the start's answers, 0 or more.
        quantisation: weight of the pull towards rounded logits, 0 or more.
        bits: of the rounding, 2 to 8.
        temperature: of the distillation, above 0.

    Source: arXiv:2503.22698; see ``heldout.train.gem_edge``.

    Example:
        >>> gem_edge(distillation=0.5).stages
        ('model', 'loss')
    """
    whole = train.gem_edge(distillation, quantisation, bits=bits, temperature=temperature)

    def loss(run: Run, batch: Batch) -> Tensor:
        logits, labels, _ = tokens_of(run, batch)
        with torch.no_grad():
            taught = tokens_of(run, Batch(run.state["gem_edge"], batch.inputs, batch.targets, batch.index))[0]
        rounded = fake_quantize(logits.detach().reshape(1, -1), bits, -1).view_as(logits)
        weights = {"distillation": distillation, "quantisation": quantisation, "temperature": temperature}
        return losses.distill_quant(logits, labels, taught, rounded, **weights)

    def check(module: nn.Module, splits: Splits) -> str | None:
        return _NO_START if splits.initial_state is None and not adapted(module) else _why_weighted(module, splits)

    return replace(whole, loss=loss, check=check)


LANGUAGE_METHODS: dict[str, Callable[..., Method]] = {
    "s3ft": s3ft,
    "lines": lines,
    "wise_ft": wise_ft,
    "bang": bang,
    "label_smoothing": label_smoothing,
    "ps_kd": ps_kd,
    "pego": pego,
    "position_offsets": position_offsets,
}
"""What has a form of its own for language models, by the name that it is asked for under."""

_NO_START = (
    "it needs the weights before fine-tuning: model() must give pretrained ones, the same on every seed, or define "
    "pretrained_state()"
)


def adapted(module: nn.Module) -> bool:
    """Returns whether a model has LoRA adapters, as peft gives it."""
    return any("lora_B" in name or "lora_embedding_B" in name for name, _ in module.named_parameters())


def _query_and_value_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of query and value projections, by name in the state dict."""
    return {
        f"{name}.{own}": weight
        for name, part in module.named_modules()
        if query_and_value(name, part)
        for own in ("weight", "in_proj_weight")
        if isinstance(weight := getattr(part, own, None), Tensor)
    }


def _by_start(whole: Method, adapter: Callable[[nn.Module], dict[str, Tensor]]) -> Method:
    """A Method of the change since the start, acting by ``adapter`` on models whose change is an adapter's."""

    def weights(run: Run, module: nn.Module) -> nn.Module:
        if adapted(module):
            return _with_adapter(module, adapter(module))
        assert whole.weights is not None
        return whole.weights(run, module)

    def check(module: nn.Module, splits: Splits) -> str | None:
        if adapted(module):
            return _why_not(lambda: adapter(module))
        assert whole.check is not None
        return whole.check(module, splits) if splits.initial_state is not None else _NO_START

    return replace(whole, weights=weights, check=check)


def _with_adapter(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict({**module.state_dict(), **state})
    return module


def _why_not(scale: Callable[[], Any]) -> str | None:
    try:
        scale()
    except ValueError as error:
        return f"the change of this model cannot be scaled: {error}"
    return None


def _texts(dataset: Any) -> Texts:
    while not isinstance(dataset, Texts):
        dataset = dataset.dataset
    return dataset


def _why_weighted(module: nn.Module, splits: Splits) -> str | None:
    return "it has no weights of tokens, as the rows have" if _texts(splits.train).weighted else None
