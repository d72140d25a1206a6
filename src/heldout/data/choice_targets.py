"""Choice examples whose targets are random or wrong: what a model is tuned on that shall forget a skill.

Source: arXiv:2409.02228 (Zhang, Choshen, Andreas).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Literal

from heldout.errors import check_at_least, check_nonempty, check_one_of, checked
from heldout.language_model import ChoiceExample


@checked
def randomize_targets(
    examples: Sequence[ChoiceExample], mode: Literal["random", "flip"] = "random", seed: int = 0
) -> list[ChoiceExample]:
    """Returns copies of the examples with other targets, drawn once: a model that sees them often learns them by heart.

    Args:
        examples: at least one; they stay as they are.
        mode: "random": each option is the target equally often, the right one included; "flip": a wrong one, each
            equally often (of two options the other, so that flipping twice gives the examples back).
        seed: of the drawing.

    Raises:
        ValueError: no examples, an unknown mode, or a negative seed.

    Source: arXiv:2409.02228, section 3; deviation: that labels are fixed over epochs is inferred.

    Example:
        >>> cold = ChoiceExample("is ice cold ?", [" no", " yes"], 1)
        >>> randomize_targets([cold], "flip")[0].answer
        0
    """
    check_nonempty(examples=examples)
    check_one_of(("random", "flip"), mode=mode)
    check_at_least(0, seed=seed)
    rng = random.Random(seed)
    found = []
    for example in examples:
        count = len(example.options)
        drawn = rng.randrange(count) if mode == "random" else (example.answer + 1 + rng.randrange(count - 1)) % count
        found.append(dataclasses.replace(example, answer=drawn))
    return found
