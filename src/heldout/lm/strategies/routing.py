"""A pool of priced language models, and an agent that asks them, reads what they reply, and answers.

The agent writes in tags: it thinks (``<think>``), asks a model by its name (``<search>name: query</search>``), reads
the reply in an ``<information>`` block that it did not write, and ends with an ``<answer>``.

Source: Router-R1, arXiv:2506.09033 (sections 3.1 and 3.2); rules of the format as in its published code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from heldout.language_model import LM

ROUTING_STOPS = ("</search>", "</answer>")
"""Where a turn of the router ends."""

ROUTING_PROMPT = """Answer the question. First reason between <think> and </think>. If you need help, ask one of the \
models below: write <search> name: query </search>, with the model's name and one clear question for it; its reply \
comes between <information> and </information>. Think again after each reply. You may ask several times, also \
different models. When you know the answer, write it alone between <answer> and </answer>.

Models:
{models}

Question: {question}
"""

HELPER_PROMPT = """Answer the question in a few words. If you are not sure, give what you know that helps with it; \
if you know nothing about it, say that you cannot answer.

Question: {query}
"""

_TAG = re.compile(r"<(/?)(think|search|information|answer)>")
_PLACEHOLDERS = {"", "query", "your query", "your-query"}


@dataclass(frozen=True)
class Reply:
    """What a model of a pool replied.

    Attributes:
        text: "error" where the model could not be asked.
        tokens: that it wrote.
        cost: money; the pool sets it to tokens times price.
        name: of the model; the pool sets it.
        error: what was raised, where it was.
    """

    text: str
    tokens: int = 0
    cost: float = 0.0
    name: str = ""
    error: str = ""


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

    @classmethod
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

    def __init__(self, entries: Sequence[PoolModel], *, max_concurrency: int = 16) -> None:
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

    def describe(self, line: str = "{name}: {descriptor}") -> str:
        """Returns a line for each model; ``line`` may also hold ``{price}``."""
        return "\n".join(
            line.replace("{name}", entry.name)
            .replace("{price}", f"{entry.price:g}")
            .replace("{descriptor}", entry.descriptor)
            for entry in self._entries.values()
        )

    def find(self, name: str) -> str | None:
        """Returns the name as the pool has it, or None where there is no such model."""
        entry = self._entries.get(name.strip().casefold())
        return entry.name if entry else None

    def route(self, name: str, query: str) -> Reply:
        """Returns the reply of the named model.

        Raises:
            ValueError: for a name that is not in the pool.
        """
        return self.route_many([(name, query)])[0]

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


def blocks_of(text: str) -> list[tuple[str, str]] | None:
    """Returns the tagged blocks of a text in order, ``(tag, content)``; None where tags are nested or not closed.

    Example:
        >>> blocks_of("<think> easy </think> <answer> 4 </answer>")
        [('think', 'easy'), ('answer', '4')]
        >>> blocks_of("<think> easy <answer> 4 </answer>") is None
        True
    """
    blocks, opened, start = [], "", 0
    for match in _TAG.finditer(text):
        closing, tag = match.groups()
        if bool(closing) != bool(opened) or (closing and tag != opened):
            return None
        if closing:
            blocks.append((tag, text[start : match.start()].strip()))
        opened, start = ("" if closing else tag), match.end()
    return None if opened else blocks


def final_answer(text: str) -> str:
    """Returns the content of the last complete answer tag, or an empty text.

    Example:
        >>> final_answer("<answer> 3 </answer> no: <answer> 4 </answer>")
        '4'
    """
    found: list[str] = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    return found[-1].strip() if found else ""


def search_request(turn: str, pool: ModelPool) -> tuple[str, str] | None:
    """Returns the ``(name, query)`` that a turn asks for last; None without one that can be sent.

    The first colon separates name and query, which may hold further ones. There is nothing to send without colon,
    with a name that the pool does not have, and with an empty query or the placeholder of the instructions.

    Example:
        >>> pool = ModelPool([PoolModel("small", lambda query: Reply(query))])
        >>> search_request("<search> small: when: 1990? </search>", pool)
        ('small', 'when: 1990?')
    """
    found = re.findall(r"<search>((?:(?!<search>).)*?)</search>", turn, re.DOTALL)
    name, colon, query = found[-1].partition(":") if found else ("", "", "")
    known = pool.find(name)
    if not colon or known is None or query.strip().casefold() in _PLACEHOLDERS:
        return None
    return known, query.strip()


def format_ok(text: str, names: Sequence[str]) -> bool:
    """Returns whether all that a router wrote, with the replies in it, has the form that is asked for.

    Tags are closed and not nested; it starts with a think block, one of which is not empty, and ends with its only
    answer; there is an information block for each search; each search has one colon, the name of a known model before
    it, and after it a query that is not empty and does not hold that name.

    Example:
        >>> format_ok("<think> I know </think> <answer> 4 </answer>", ["small"])
        True
        >>> format_ok("<answer> 4 </answer>", ["small"])
        False
    """
    text, blocks = text.strip(), blocks_of(text)
    if not blocks or not text.startswith("<think>") or not text.endswith("</answer>"):
        return False
    tags = [tag for tag, _ in blocks]
    if tags.count("answer") != 1 or tags.count("search") != tags.count("information"):
        return False
    if not any(tag == "think" and content for tag, content in blocks):
        return False
    known = {name.casefold() for name in names}
    for tag, content in blocks:
        if tag == "search":
            name, _, query = (part.strip().casefold() for part in content.partition(":"))
            if content.count(":") != 1 or name not in known or not query or name in query:
                return False
    return True


@dataclass
class RoutingEpisode:
    """One question on its way: what the router wrote and read, whom it asked, what that cost.

    It is an environment of ``heldout.train.rollout``: called with a turn, it returns what the router reads next, or
    None at the end. The end is an answer, or the turn after ``max_turns``, in which nobody is asked any more.

    Args:
        pool: the models that can be asked.
        max_turns: turns in which they can.
        max_obs_tokens: longer replies are cut at their end.
        tokenizer: by whose tokens they are cut; default: by words.

    Example:
        >>> pool = ModelPool([PoolModel("small", lambda query: Reply("it is Paris", 3), price=1.0)])
        >>> episode = RoutingEpisode(pool)
        >>> episode("<think> ask </think> <search> small: capital? </search>")
        '\\n<information> it is Paris </information>\\n'
        >>> episode("<think> ok </think> <answer> Paris </answer>"), episode.answer, episode.format_ok
        (None, 'Paris', True)
    """

    pool: ModelPool
    max_turns: int = 4
    max_obs_tokens: int = 600
    tokenizer: Any = None
    text: str = ""
    calls: list[Reply] = field(default_factory=list)
    turns: int = 0

    def __call__(self, turn: str) -> str | None:
        request = self.read(turn)
        if self.finished:
            return None
        return self.hear(self.pool.route(*request) if request else None)

    def read(self, turn: str) -> tuple[str, str] | None:
        """Takes a turn, and returns what it asks for, if it asks for something."""
        self.turns += 1
        self.text += turn
        if self.finished:
            return None
        return search_request(turn, self.pool)

    def hear(self, reply: Reply | None) -> str:
        """Takes the reply to a turn, and returns what the router reads; None stands for a turn without request."""
        if reply is not None:
            self.calls.append(reply)
            seen = f"\n<information> {self._cut(_TAG.sub(' ', reply.text))} </information>\n"
        else:
            seen = "\n<information> None </information>\n" if "</search>" in self._last_turn() else "\n"
        self.text += seen
        return seen

    @property
    def finished(self) -> bool:
        """Whether the router has answered, or had its last turn."""
        return self.turns > self.max_turns or "</answer>" in self._last_turn()

    @property
    def answer(self) -> str:
        """Of the last answer tag; empty without one."""
        return final_answer(self.text)

    @property
    def cost(self) -> float:
        """Money that the calls cost."""
        return sum(reply.cost for reply in self.calls)

    @property
    def format_ok(self) -> bool:
        """See ``format_ok``."""
        return format_ok(self.text, self.pool.names)

    def _last_turn(self) -> str:
        return self.text.rpartition("</information>")[2]

    def _cut(self, text: str) -> str:
        if self.tokenizer is None:
            words = text.split()
            return " ".join(words[: self.max_obs_tokens]) if len(words) > self.max_obs_tokens else text.strip()
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= self.max_obs_tokens:
            return text.strip()
        return str(self.tokenizer.decode(ids[: self.max_obs_tokens], skip_special_tokens=True)).strip()


@dataclass(frozen=True)
class Trace:
    """How a question was answered.

    Attributes:
        answer: empty where none was given.
        calls: replies of the models that were asked, in order.
        cost: money that they cost.
        format_ok: whether the text has the form that is asked for.
        text: all that the router wrote and read.
    """

    answer: str
    calls: tuple[Reply, ...]
    cost: float
    format_ok: bool
    text: str = ""


class RoutingAgent:
    """A language model that answers questions with the help of a pool.

    The router continues one text: prompt, turns and replies. A chat endpoint gets that text as a user's message. It
    writes at most ``max_turns + 1`` turns; in the last one nobody is asked any more.

    Args:
        router: the language model that thinks, asks and answers.
        pool: the models that it asks.
        max_turns: turns in which it may ask, at least 0.
        max_obs_tokens: longer replies are cut at their end.
        tokenizer: by whose tokens they are cut; default: by words.
        prompt: with the fields ``{models}`` and ``{question}``.
        line: how each model is described, see ``ModelPool.describe``.
        max_tokens: of a turn.
        temperature, seed: of the router.

    Raises:
        ValueError: for limits below their least value, or a prompt without its fields.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> pool = ModelPool([PoolModel("small", lambda query: Reply("it is Paris", 3), price=1.0)])
        >>> turns = ["<think> ask </think> <search> small: capital? ", "<think> ok </think> <answer> Paris "]
        >>> router = ScriptedLM(turns)
        >>> trace = RoutingAgent(router, pool).answer("What is the capital of France?")
        >>> trace.answer, len(trace.calls), trace.cost, trace.format_ok
        ('Paris', 1, 3e-06, True)

    Source: arXiv:2506.09033.
    """

    def __init__(
        self,
        router: LM,
        pool: ModelPool,
        max_turns: int = 4,
        max_obs_tokens: int = 600,
        *,
        tokenizer: Any = None,
        prompt: str = ROUTING_PROMPT,
        line: str = "{name}: {descriptor}",
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        if max_turns < 0 or max_obs_tokens < 1 or max_tokens < 1:
            raise ValueError(
                "max_turns must be at least 0, max_obs_tokens and max_tokens at least 1, "
                f"got {max_turns}, {max_obs_tokens} and {max_tokens}"
            )
        self.router, self.pool, self.max_turns, self.max_obs_tokens = router, pool, max_turns, max_obs_tokens
        self.tokenizer, self.prompt, self.line = tokenizer, prompt, line
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed
        routing_prompt("", pool, prompt)

    def answer(self, question: str) -> Trace:
        """Returns the answer to a question, and how it came about."""
        return self.answer_many([question])[0]

    def answer_many(self, questions: Sequence[str]) -> list[Trace]:
        """Returns a trace for each question; the questions that are open write in one batch and ask at once."""
        prompts = [routing_prompt(question, self.pool, self.prompt, self.line) for question in questions]
        episodes = [RoutingEpisode(self.pool, self.max_turns, self.max_obs_tokens, self.tokenizer) for _ in questions]
        active = list(range(len(episodes)))
        for turn in range(self.max_turns + 1):
            if not active:
                break
            written = self.router.generate(
                [prompts[i] + episodes[i].text for i in active],
                temperature=self.temperature,
                stop=ROUTING_STOPS,
                max_tokens=self.max_tokens,
                seed=self.seed + turn,
            )
            requests = {}
            for i, (said,) in zip(active, written, strict=True):
                requests[i] = episodes[i].read(closed_turn(said.text, ended=said.finish_reason != "length"))
            active = [i for i in active if not episodes[i].finished]
            asking = [(i, request) for i in active if (request := requests[i]) is not None]
            heard = self.pool.route_many([request for _, request in asking])
            replies = dict(zip([i for i, _ in asking], heard, strict=True))
            for i in active:
                episodes[i].hear(replies.get(i))
        return [Trace(e.answer, tuple(e.calls), e.cost, e.format_ok, e.text) for e in episodes]


def routing_prompt(
    question: str, pool: ModelPool, prompt: str = ROUTING_PROMPT, line: str = "{name}: {descriptor}"
) -> str:
    """Returns the router's prompt for a question.

    Raises:
        ValueError: if the prompt lacks ``{models}`` or ``{question}``.

    Example:
        >>> pool = ModelPool([PoolModel("small", lambda query: Reply(query), descriptor="quick")])
        >>> routing_prompt("2 + 2 ?", pool, "{models} | {question}")
        'small: quick | 2 + 2 ?'
    """
    for wanted in ("{models}", "{question}"):
        if wanted not in prompt:
            raise ValueError(f"the router's prompt needs the field {wanted}")
    parts = {"{models}": pool.describe(line), "{question}": question}
    return re.sub(r"\{models\}|\{question\}", lambda match: parts[match.group()], prompt)


def closed_turn(text: str, *, ended: bool = True) -> str:
    """Returns a turn with its stop string, which language models leave out, and without what stands behind it.

    Args:
        text: of a completion that was stopped at ``ROUTING_STOPS``.
        ended: whether it ended by itself; where its length was cut, nothing is closed.

    Example:
        >>> closed_turn("<think> hm </think> <answer> 4"), closed_turn("<answer> 4 </answer> and so on")
        ('<think> hm </think> <answer> 4 </answer>', '<answer> 4 </answer>')
    """
    places = [match.end() for stop in ROUTING_STOPS if (match := re.search(re.escape(stop), text))]
    if places:
        return text[: min(places)]
    opened = re.findall(r"<(search|answer)>", text)
    if not ended or not opened:
        return text
    return f"{text}{'' if text[-1:].isspace() else ' '}</{opened[-1]}>"
