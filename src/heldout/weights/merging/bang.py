"""BANG: WiSE-FT with a fine-tuned model kept from being louder than the pretrained one. Source: arXiv:2309.17230.

An average of two models with different spurious features relies on each of them less, as long as neither decides alone.
Fine-tuning makes a model over-confident; label smoothing and Mixup keep its confidence near that of the start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heldout.data import beta_weight, gather, mix, mixup, soft_labels
from heldout.errors import checked
from heldout.losses import soft_cross_entropy
from heldout.method import Batch, Method, Run, Splits
from heldout.weights.merging.lines import update_batch_norm
from heldout.weights.merging.wise_ft import check_alpha
from heldout.weights.task_vector import interpolate


@checked
def balanced_finetune(smoothing: float = 0.1, mixup_alpha: float = 0.2) -> Method:
    """Trains with label smoothing and Mixup, which keep a classifier from becoming over-confident.

    One forward pass on mixed inputs in place of the plain one. Classification with floating-point inputs; replaces
    the loss. Evaluations of one step (SAM) see the same mixture.

    Args:
        smoothing: share of each label that is spread over all classes, in [0, 1).
        mixup_alpha: parameter of Mixup's Beta distribution; 0 leaves Mixup out.

    Source: arXiv:2309.17230, section 5.

    Raises:
        ValueError: ``smoothing`` outside of [0, 1), or a ``mixup_alpha`` that is negative or not finite.

    Example:
        >>> balanced_finetune().stages
        ('loss',)
        >>> balanced_finetune().check(nn.Linear(2, 1), Splits(train=(torch.randn(4, 2), torch.randn(4))))
        'label smoothing is for classification'
    """
    soft_labels(torch.zeros(1, dtype=torch.int64), 2, smoothing=smoothing)
    beta_weight(mixup_alpha)

    def loss(run: Run, batch: Batch) -> Tensor:
        classes: int = run.num_classes  # type: ignore[assignment]
        if mixup_alpha == 0:
            return soft_cross_entropy(batch.logits, soft_labels(batch.targets, classes, smoothing=smoothing))
        if run.evaluation == 0 or "balanced" not in run.state:
            run.state["balanced"] = run.generator.get_state()
        generator = torch.Generator()
        generator.set_state(run.state["balanced"])
        mixed = mixup(batch.inputs, batch.targets, classes, alpha=mixup_alpha, smoothing=smoothing, generator=generator)
        if run.evaluation == 0:
            run.generator.set_state(generator.get_state())
        return soft_cross_entropy(batch.with_inputs(mixed.inputs).logits, mixed.targets)

    def check(module: nn.Module, splits: Splits) -> str | None:
        inputs, targets = gather(splits.train, torch.arange(1))
        if targets.is_floating_point():
            return "label smoothing is for classification"
        if mixup_alpha > 0:
            try:
                mix(inputs, torch.zeros(1, dtype=torch.int64), 1.0)
            except TypeError as error:
                return f"Mixup cannot mix these inputs: {error}"
        return None

    return Method("balanced_finetune", loss=loss, check=check)


@checked
def bang(alpha: float = 0.5, smoothing: float = 0.1, mixup_alpha: float = 0.2) -> Method:
    """Fine-tunes with label smoothing and Mixup, then averages the weights with the pretrained ones (WiSE-FT).

    It applies to fine-tuning only: the data must come with the pretrained state, ``Splits(initial_state=...)``.
    Parameters that the pretrained state lacks (a new output layer) stay as fine-tuned; statistics of BatchNorm are
    re-estimated on the training data.

    Args:
        alpha: weight of the fine-tuned model, in [0, 1].
        smoothing: as in ``balanced_finetune``.
        mixup_alpha: as in ``balanced_finetune``.

    Source: arXiv:2309.17230, section 5.

    Raises:
        ValueError: ``alpha`` outside of [0, 1], and as ``balanced_finetune``.

    Example:
        >>> import heldout
        >>> start, x, y = nn.Linear(2, 2), torch.randn(16, 2), torch.arange(16) % 2
        >>> splits = Splits(train=(x, y), initial_state=start.state_dict())
        >>> fitted = heldout.fit(start, splits, bang(alpha=0.0), epochs=1)  # of which nothing is left
        >>> torch.equal(fitted.module.weight, start.weight)
        True
    """
    check_alpha(alpha)
    balanced = balanced_finetune(smoothing, mixup_alpha)

    def weights(run: Run, module: nn.Module) -> nn.Module:
        own = module.state_dict()
        shared = {name: value for name, value in own.items() if name in run.initial_state}
        start = {name: run.initial_state[name] for name in shared}
        module.load_state_dict(own | interpolate(start, shared, alpha))
        return update_batch_norm(module, run.train_set, run.batch_size) if 0 < alpha < 1 else module

    def check(module: nn.Module, splits: Splits) -> str | None:
        if splits.initial_state is None:
            return (
                "bang needs the pretrained state in Splits(initial_state=...): without one it would average with the "
                "random initialisation"
            )
        own = module.state_dict()
        shared = own.keys() & splits.initial_state.keys()
        if not shared:
            return "the pretrained state holds none of this model's parameters"
        if other := [name for name in sorted(shared) if own[name].shape != splits.initial_state[name].shape]:
            return f"the pretrained state has {other[0]} in another shape"
        assert balanced.check is not None
        return balanced.check(module, splits)

    return Method("bang", loss=balanced.loss, weights=weights, check=check)
