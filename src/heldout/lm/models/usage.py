"""What the calls of a language model came to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from heldout.errors import check_at_least, check_fields, checked
from heldout.language_model import Completion


@dataclass(frozen=True)
class Usage:
    """Calls, tokens and money; usages add up.

    Attributes:
        calls: completions that were asked for.
        prompt_tokens: tokens read; the completions of one prompt share one reading.
        tokens: tokens written.
        cost: money, in the currency of the model's prices.

    Example:
        >>> Usage(calls=1, tokens=3) + Usage(calls=2, prompt_tokens=5)
        Usage(calls=3, prompt_tokens=5, tokens=3, cost=0.0)
    """

    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    cost: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(0, calls=self.calls, prompt_tokens=self.prompt_tokens, tokens=self.tokens)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.tokens + other.tokens,
            self.cost + other.cost,
        )


@checked
def usage_of(completions: Iterable[Completion]) -> Usage:
    """Returns what completions came to, one call each.

    Example:
        >>> usage_of([Completion("a", tokens=1, prompt_tokens=4), Completion("b", tokens=1)])
        Usage(calls=2, prompt_tokens=4, tokens=2, cost=0.0)
    """
    found = list(completions)
    return Usage(
        len(found), sum(c.prompt_tokens for c in found), sum(c.tokens for c in found), sum(c.cost for c in found)
    )
