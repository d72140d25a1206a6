"""An agent that asks the models of a pool, reads what they reply, and answers.

The agent writes in tags: it thinks (``<think>``), asks a model by its name (``<search>name: query</search>``), reads
the reply in an ``<information>`` block that it did not write, and ends with an ``<answer>``.

Source: Router-R1, arXiv:2506.09033 (sections 3.1 and 3.2); rules of the format as in its published code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from heldout.errors import check_at_least, check_fields, check_nonnegative, checked
from heldout.language_model import LM
from heldout.lm.strategies.model_pool import ModelPool, Reply

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


_TAG = re.compile(r"<(/?)(think|search|information|answer)>")
_PLACEHOLDERS = {"", "query", "your query", "your-query"}


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


@checked
def final_answer(text: str) -> str:
    """Returns the content of the last complete answer tag, or an empty text.

    Example:
        >>> final_answer("<answer> 3 </answer> no: <answer> 4 </answer>")
        '4'
    """
    found: list[str] = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    return found[-1].strip() if found else ""


@checked
def search_request(turn: str, pool: ModelPool) -> tuple[str, str] | None:
    """Returns the ``(name, query)`` that a turn asks for last; None without one that can be sent.

    The first colon separates name and query, which may hold further ones. There is nothing to send without colon,
    with a name that the pool does not have, and with an empty query or the placeholder of the instructions.

    Example:
        >>> from heldout.lm import PoolModel
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


@checked
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
        >>> from heldout.lm import PoolModel
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

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(0, max_turns=self.max_turns, turns=self.turns)
        check_at_least(1, max_obs_tokens=self.max_obs_tokens)

    @checked
    def __call__(self, turn: str) -> str | None:
        request = self.read(turn)
        if self.finished:
            return None
        return self.hear(self.pool.route(*request) if request else None)

    @checked
    def read(self, turn: str) -> tuple[str, str] | None:
        """Takes a turn, and returns what it asks for, if it asks for something."""
        self.turns += 1
        self.text += turn
        if self.finished:
            return None
        return search_request(turn, self.pool)

    @checked
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

    Example:
        >>> from heldout.lm import PoolModel, ScriptedLM
        >>> pool = ModelPool([PoolModel("small", lambda query: Reply("four"))])
        >>> trace = RoutingAgent(ScriptedLM(["<think> easy </think> <answer> 4 "]), pool).answer("2 + 2?")
        >>> trace.answer, trace.calls, trace.format_ok
        ('4', (), True)
    """

    answer: str
    calls: tuple[Reply, ...]
    cost: float
    format_ok: bool
    text: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


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
        >>> from heldout.lm import PoolModel
        >>> pool = ModelPool([PoolModel("small", lambda query: Reply("it is Paris", 3), price=1.0)])
        >>> turns = ["<think> ask </think> <search> small: capital? ", "<think> ok </think> <answer> Paris "]
        >>> router = ScriptedLM(turns)
        >>> trace = RoutingAgent(router, pool).answer("What is the capital of France?")
        >>> trace.answer, len(trace.calls), trace.cost, trace.format_ok
        ('Paris', 1, 3e-06, True)

    Source: arXiv:2506.09033.
    """

    @checked
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
        check_nonnegative(temperature=temperature)
        if max_turns < 0 or max_obs_tokens < 1 or max_tokens < 1:
            raise ValueError(
                "max_turns must be at least 0, max_obs_tokens and max_tokens at least 1, "
                f"got {max_turns}, {max_obs_tokens} and {max_tokens}"
            )
        self.router, self.pool, self.max_turns, self.max_obs_tokens = router, pool, max_turns, max_obs_tokens
        self.tokenizer, self.prompt, self.line = tokenizer, prompt, line
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed
        routing_prompt("", pool, prompt)

    @checked
    def answer(self, question: str) -> Trace:
        """Returns the answer to a question, and how it came about."""
        return self.answer_many([question])[0]

    @checked
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


@checked
def routing_prompt(
    question: str, pool: ModelPool, prompt: str = ROUTING_PROMPT, line: str = "{name}: {descriptor}"
) -> str:
    """Returns the router's prompt for a question.

    Raises:
        ValueError: if the prompt lacks ``{models}`` or ``{question}``.

    Example:
        >>> from heldout.lm import PoolModel
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
