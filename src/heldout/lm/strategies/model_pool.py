"""A pool of priced language models that are asked by name, at the same time where several are.

Source: Router-R1, arXiv:2506.09033 (sections 3.1 and 3.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

from heldout.errors import check_at_least, check_fields, check_nonempty, check_nonnegative, checked
from heldout.language_model import LM

HELPER_PROMPT = """Answer the question in a few words. If you are not sure, give what you know that helps with it; \
if you know nothing about it, say that you cannot answer.

Question: {query}
"""


@dataclass(frozen=True)
class Reply:
    """What a model of a pool replied.

    Attributes:
        text: "error" where the model could not be asked.
        tokens: that it wrote.
        cost: money; the pool sets it to ``tokens * price / 1e6``.
        name: of the model; the pool sets it.
        error: what was raised, where it was.

    Raises:
        ValueError: a negative number of tokens or cost.

    Example:
        >>> ModelPool([PoolModel("small", lambda query: 1 / 0)]).route("small", "What is new?")
        Reply(text='error', tokens=0, cost=0.0, name='small', error='ZeroDivisionError: division by zero')
    """

    text: str
    tokens: int = 0
    cost: float = 0.0
    name: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(0, tokens=self.tokens)
        check_nonnegative(cost=self.cost)


@dataclass(frozen=True)
class PoolModel:
    """A model that can be asked.

    Attributes:
        name: without colon, angle brackets or line breaks.
        call: ``query -> Reply``.
        price: money for a million tokens that it writes.
        descriptor: what the router is told about it, such as strengths, price and latency.

    Example:
        >>> PoolModel("small", lambda query: Reply("Paris", tokens=1), price=0.2, descriptor="quick, cheap").price
        0.2
    """

    name: str
    call: Callable[[str], Reply]
    price: float = 0.0
    descriptor: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    @checked
    def of(
        cls,
        name: str,
        lm: LM,
        *,
        price: float | None = None,
        descriptor: str = "",
        prompt: str = HELPER_PROMPT,
        max_tokens: int = 512,
        temperature: float = 0.0,
    ) -> PoolModel:
        """Returns a pool model that asks a language model.

        Args:
            name, descriptor: as above.
            lm: asked with one prompt at a time; must bear several threads, as ``EndpointLM`` does.
            price: default the price of written tokens that an ``EndpointLM`` was given, else 0.
            prompt: with the field ``{query}``.
            max_tokens, temperature: of the reply.

        Raises:
            ValueError: if the prompt has no ``{query}``.

        Example:
            >>> from heldout.lm import ScriptedLM
            >>> model = PoolModel.of("helper", ScriptedLM(["it is Paris"]), price=0.5)
            >>> ModelPool([model]).route("helper", "Capital of France?").text
            'it is Paris'
        """
        check_at_least(1, max_tokens=max_tokens)
        check_nonnegative(temperature=temperature)
        if "{query}" not in prompt:
            raise ValueError("the helper's prompt needs the field {query}")
        if price is None:
            price = getattr(lm, "prices", (0.0, 0.0))[1]

        def call(query: str) -> Reply:
            asked = prompt.replace("{query}", query)
            said = lm.generate([asked], temperature=temperature, max_tokens=max_tokens)[0][0]
            return Reply(said.text, said.tokens)

        return cls(name, call, price, descriptor)


class ModelPool:
    """Models that a router chooses from.

    Args:
        entries: the models; names are compared without regard to case.
        max_concurrency: threads of ``route_many``.

    Attributes:
        requests: calls so far.
        errors: calls so far whose model raised; they became the reply "error".
        cost: money so far.

    Raises:
        ValueError: no entry, a name that is empty, twice there, or holds a colon, or a negative price.

    Example:
        >>> pool = ModelPool([PoolModel("small", lambda query: Reply("Paris", 1), price=2.0, descriptor="quick")])
        >>> pool.route("small", "Capital of France?")
        Reply(text='Paris', tokens=1, cost=2e-06, name='small', error='')
        >>> pool.describe()
        'small: quick'
    """

    @checked
    def __init__(self, entries: Sequence[PoolModel], *, max_concurrency: int = 16) -> None:
        check_nonempty(entries=entries)
        if not entries:
            raise ValueError("a pool needs at least one model, got none")
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, got {max_concurrency}")
        self._entries: dict[str, PoolModel] = {}
        for entry in entries:
            if not entry.name.strip() or entry.name != entry.name.strip() or re.search(r"[:<>\n]", entry.name):
                raise ValueError(f"a model's name must be a text without ':', '<', '>' and line breaks: {entry.name!r}")
            if entry.name.casefold() in self._entries:
                raise ValueError(f"names in a pool must differ, got {entry.name!r} twice")
            if not entry.price >= 0:
                raise ValueError(f"the price of {entry.name!r} must not be negative, got {entry.price}")
            self._entries[entry.name.casefold()] = entry
        self.max_concurrency = max_concurrency
        self.requests, self.errors, self.cost = 0, 0, 0.0
        self._counting = Lock()

    @property
    def names(self) -> list[str]:
        """Names of the models, in the order given."""
        return [entry.name for entry in self._entries.values()]

    @checked
    def describe(self, line: str = "{name}: {descriptor}") -> str:
        """Returns a line for each model; ``line`` may also hold ``{price}``."""
        return "\n".join(
            line.replace("{name}", entry.name)
            .replace("{price}", f"{entry.price:g}")
            .replace("{descriptor}", entry.descriptor)
            for entry in self._entries.values()
        )

    @checked
    def find(self, name: str) -> str | None:
        """Returns the name as the pool has it, or None where there is no such model."""
        entry = self._entries.get(name.strip().casefold())
        return entry.name if entry else None

    @checked
    def route(self, name: str, query: str) -> Reply:
        """Returns the reply of the named model.

        Raises:
            ValueError: for a name that is not in the pool.
        """
        return self.route_many([(name, query)])[0]

    @checked
    def route_many(self, requests: Sequence[tuple[str, str]]) -> list[Reply]:
        """Returns the replies to ``(name, query)`` pairs, which are asked at once, in their order.

        Raises:
            ValueError: for a name that is not in the pool; then nothing is asked.
        """
        for name, _ in requests:
            if self.find(name) is None:
                raise ValueError(f"the pool has no model {name!r}; it has {', '.join(self.names)}")
        entries = [self._entries[name.strip().casefold()] for name, _ in requests]
        queries = [query for _, query in requests]
        if len(requests) < 2:
            replies = list(map(_asked, entries, queries))
        else:
            with ThreadPoolExecutor(min(self.max_concurrency, len(requests))) as threads:
                replies = list(threads.map(_asked, entries, queries))
        with self._counting:
            self.requests += len(replies)
            self.errors += sum(bool(reply.error) for reply in replies)
            self.cost += sum(reply.cost for reply in replies)
        return replies


def _asked(entry: PoolModel, query: str) -> Reply:
    try:
        reply = entry.call(query)
    except Exception as error:
        return Reply("error", name=entry.name, error=f"{type(error).__name__}: {error}")
    return replace(reply, name=entry.name, cost=reply.tokens * entry.price / 1e6)
