"""Core: More words for the same slots: each primitive with many copies, in sources and targets.

Source: arXiv:2311.04420 (Zhou, Jiang and Bansal), section 4.1: more primitives.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

from heldout.data.pairs.tokens import SequencePair, as_pairs
from heldout.errors import check_at_least, check_nonempty, checked


@checked
def primitive_copies(slots: Mapping[str, str], factor: int) -> dict[str, str]:
    """Returns source word -> target word of all primitives and their copies, each primitive before its own.

    Args:
        slots: source word -> target word of the primitives.
        factor: words for each primitive, itself included, at least 1.

    Raises:
        ValueError: no slots, a factor below 1, two copies with one name, or two words with one target word: which of
            them it stands for would not be known.

    Example:
        >>> primitive_copies({"walk": "WALK"}, 3)
        {'walk': 'WALK', 'walk_1': 'WALK_1', 'walk_2': 'WALK_2'}
    """
    check_nonempty(slots=slots)
    check_at_least(1, factor=factor)
    made = {}
    for word, action in slots.items():
        made[word] = action
        made.update({f"{word}_{number}": f"{action}_{number}" for number in range(1, factor)})
    if len(made) < len(slots) * factor or len(set(made.values())) < len(made):
        raise ValueError("slots must not name each other's copies, nor two words one target word")
    return made


@checked
def expand_primitives(
    pairs: Sequence, slots: Mapping[str, str], factor: int, *, per_pair: int | None = None, seed: int = 0
) -> list[SequencePair]:
    """Returns pairs in which each primitive is replaced by its copies ``word_1`` ... in turn, itself included.

    Within a pair all places of a word get the same copy, since nothing is known of which action belongs to which; two
    words get copies independently: a pair with k primitives becomes ``factor ** k`` pairs, or ``per_pair`` of them.

    Args:
        pairs: ``(source, target)`` of texts or token sequences. Those without a primitive stay as they are.
        slots: source word -> target word of the primitives, such as ``{"walk": "I_WALK"}``. A held-out word is none.
        factor: words for each primitive, itself included, at least 1; 20 in the paper's middle setting.
        per_pair: at most so many different versions of each pair, drawn at random.
        seed: of the draw.

    Raises:
        ValueError: a primitive that does not occur, copies that occur already, or slots as ``primitive_copies``
            refuses them.

    Source: arXiv:2311.04420, section 4.1.

    Deviation: how many examples the copies bring is not told by the paper's text: ``per_pair`` says it here.

    Example:
        >>> expand_primitives([("walk left", "LEFT WALK")], {"walk": "WALK"}, 2)
        [(('walk', 'left'), ('LEFT', 'WALK')), (('walk_1', 'left'), ('LEFT', 'WALK_1'))]
    """
    check_at_least(1, per_pair=per_pair)
    check_at_least(0, seed=seed)
    copied = list(primitive_copies(slots, factor).items())
    versions = {word: copied[i * factor : (i + 1) * factor] for i, word in enumerate(slots)}
    known = as_pairs(pairs, "pairs")
    tokens = {token for pair in known for side in pair for token in side}
    if missing := [word for word in slots if word not in tokens]:
        raise ValueError(f"slots must occur in the pairs, got {missing[0]!r}")
    if there := [each for pair in copied for each in pair if each in tokens and each not in {*slots, *slots.values()}]:
        raise ValueError(f"pairs must not hold copies already, got {there[0]!r}")
    rng = random.Random(seed)
    found = []
    for source, target in known:
        used = [word for word in slots if word in source]
        count = factor ** len(used)
        if per_pair is None or per_pair >= count:
            chosen = list(itertools.product(*(versions[word] for word in used)))
        else:
            choices = [versions[word] for word in used]
            chosen = [_numbered(number, choices) for number in rng.sample(range(count), per_pair)]
        for copies in chosen:
            words = {word: copy[0] for word, copy in zip(used, copies, strict=True)}
            actions = {slots[word]: copy[1] for word, copy in zip(used, copies, strict=True)}
            sides = tuple(words.get(token, token) for token in source), tuple(actions.get(t, t) for t in target)
            found.append(sides)
    return found


def _numbered(number: int, choices: Sequence[Sequence[tuple[str, str]]]) -> tuple[tuple[str, str], ...]:
    chosen = []
    for options in choices:
        number, digit = divmod(number, len(options))
        chosen.append(options[digit])
    return tuple(chosen)
