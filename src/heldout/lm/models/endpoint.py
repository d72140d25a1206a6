"""A language model behind an OpenAI-compatible endpoint.

The protocol is spoken directly through aiohttp: the openai client takes about 3 ms of one core for a request, aiohttp
about half a millisecond, which is what limits many requests at once.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from heldout.errors import checked, require
from heldout.language_model import Completion, Prompt
from heldout.lm.models.endpoint_answers import (
    before_stop,
    echoed_score,
    forms_of_key,
    pause_of,
    reason_of,
    text_of,
    usage_in,
    without_secrets,
)
from heldout.lm.models.local import check_choices, check_sampling

_TRY_AGAIN = {408, 409, 425, 429}
_LONGEST_PAUSE = 60.0  # seconds
_LARGEST = 64 * 2**20  # bytes of an answer
_LIMITS = (
    "max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens", "max_length",
    "num_predict", "n_predict",
)  # fmt: skip
_TEXTS = ("messages", "prompt", "tools", "functions", "response_format")  # fields whose insides are no options
_TIMES = ("n", "best_of", "num_return_sequences")
_USELESS_AGAIN = ("insufficient_quota", "current quota", "billing", "credit", "invalid_api_key")
_PER_MESSAGE = 16  # tokens that a chat template may add, for the worst case of a cost


class EndpointError(RuntimeError):
    """An endpoint that refused a request, or gave no usable answer to it.

    Attributes:
        charged: whether the request may have cost its worst case.
        finished: completions of the prompts that were answered before, by the number of the prompt.

    Example:
        >>> EndpointError("the server hung up", charged=True).finished
        {}
    """

    def __init__(self, message: str, *, charged: bool = False) -> None:
        super().__init__(message)
        self.charged = charged
        self.finished: dict[int, list[Completion]] = {}


class BudgetError(EndpointError):
    """A request that was not sent, because it could have cost more than is left."""


class _UnusableError(Exception):
    """An answer that may be better the next time."""

    def __init__(self, reason: str, *, pause: float | None = None, charged: bool = False) -> None:
        super().__init__(reason)
        self.pause, self.charged = pause, charged


class EndpointLM:
    """A model behind an OpenAI-compatible endpoint as an ``LM``.

    The API key is read from the environment when a request is sent, and kept nowhere. Requests that fail in a way that
    may pass (time-outs, dropped connections, 429, 5xx, answers that are not the protocol's) are sent again, after a
    pause that doubles each time, with jitter, or after what the server asks for.

    Args:
        model: name that the endpoint knows.
        base_url: up to and with ``/v1``; default $OPENAI_BASE_URL, else OpenAI's.
        api: "chat", where a text is sent as a user's message, or "completions", where it is continued.
        api_key_env: environment variable of the key; a server that needs none is asked without.
        max_concurrency: requests at once.
        timeout: seconds that one request may take.
        retries: further attempts for a request that failed.
        prices: money for a million tokens read, and for a million written.
        budget: money that may be spent. A request is sent only if even its longest answer fits into what is left.
        extra: further fields of each request, such as ``{"top_k": 20}``; None takes a field out.

    Attributes:
        spent: money so far; an attempt that got no answer counts as its worst case, because it may have been charged.
        prompt_tokens, completion_tokens: so far.
        requests: sent so far, repeated ones included.

    Raises:
        ValueError: for limits below one, negative prices, or a user and password in the address.

    Example:
        >>> lm = EndpointLM("qwen3", "http://localhost:8000/v1", max_concurrency=32, budget=2.0, prices=(0.1, 0.4))
        >>> lm.generate(["What is 12 * 9?"], temperature=0.7, n=5)  # doctest: +SKIP
    """

    @checked
    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        api: Literal["chat", "completions"] = "chat",
        api_key_env: str = "OPENAI_API_KEY",
        max_concurrency: int = 16,
        timeout: float = 60.0,
        retries: int = 5,
        prices: tuple[float, float] = (0.0, 0.0),
        budget: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if max_concurrency < 1 or retries < 0 or not timeout > 0:
            raise ValueError(
                "max_concurrency must be at least 1, retries at least 0 and timeout above 0, "
                f"got {max_concurrency}, {retries} and {timeout}"
            )
        if not all(0 <= p < math.inf for p in prices) or (budget is not None and not budget >= 0):
            raise ValueError(f"prices and budget must not be negative, and prices finite, got {prices} and {budget}")
        if api not in ("chat", "completions"):
            raise ValueError(f"api must be 'chat' or 'completions', got {api!r}")
        address = base_url or os.environ.get("OPENAI_BASE_URL") or ""
        if "@" in urlsplit(address).netloc:
            raise ValueError(f"base_url must not hold user and password: put the key into ${api_key_env}")
        if urlsplit(address).query or urlsplit(address).fragment:
            raise ValueError("base_url must end with its path, without ? and #: fields of a request go into extra")
        self.model = model
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1").rstrip("/")
        self.api, self.api_key_env, self.max_concurrency = api, api_key_env, max_concurrency
        self.timeout, self.retries, self.prices, self.budget = timeout, retries, prices, budget
        self.extra = dict(extra or {})
        self.spent = 0.0
        self.prompt_tokens = self.completion_tokens = self.requests = 0

    @property
    def identity(self) -> str:
        """What answers depend on, as far as the endpoint tells: its address, the model's name and fixed options."""
        fixed = without_secrets(self.extra, os.environ.get(self.api_key_env))
        return f"endpoint {self.base_url} {self.model} {self.api} {json.dumps(fixed, sort_keys=True)}"

    @checked
    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        max_tokens: int = 256,
        seed: int = 0,
        arrived: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """Returns ``n`` completions of each prompt; see ``LM``.

        ``arrived`` is told the number of a prompt and its completions as soon as they are there.

        An endpoint that gives fewer than ``n`` is asked for the others one by one, each with a seed of its own.

        Raises:
            EndpointError: a request that was refused or failed for good; it knows what was ``finished``.
            BudgetError: a request that could have cost more than is left of the budget.
        """
        check_sampling(n, temperature, top_p, max_tokens)
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of prompts, got one text")
        options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
        if stop:
            options["stop"] = list(stop)
        return self._run([(self._complete, (prompt, n, options)) for prompt in prompts], arrived)

    @checked
    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[Sequence[str]],
        *,
        arrived: Callable[[int, list[float]], None] | None = None,
    ) -> list[list[float]]:
        """Returns the log likelihood of each continuation, from endpoints that echo a text with its log probabilities.

        Args:
            prompts, continuations: see ``LM``.
            arrived: is told the number of a prompt and its scores as soon as they are there.

        Raises:
            EndpointError: as ``generate``; also where what the endpoint says of the text is not about the text sent.
        """
        check_choices(prompts, continuations)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError("an endpoint scores continuations of texts, not of chat messages")
        places = [(i, j) for i, row in enumerate(continuations) for j in range(len(row))]
        found: list[dict[int, float]] = [{} for _ in continuations]

        def note(number: int, value: float) -> None:
            i, j = places[number]
            found[i][j] = value
            if arrived is not None and len(found[i]) == len(continuations[i]):
                arrived(i, [found[i][k] for k in range(len(found[i]))])

        self._run([(self._score, (prompts[i], continuations[i][j])) for i, j in places], note)
        return [[row[j] for j in range(len(row))] for row in found]

    def _run(
        self,
        jobs: Sequence[tuple[Callable[..., Coroutine[Any, Any, Any]], tuple[Any, ...]]],
        arrived: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        async def run() -> list[Any]:
            async with _Exchange(self) as exchange:
                asked = [partial(job, exchange, *rest) for job, rest in jobs]
                return await _all_or_error(asked, self.max_concurrency, arrived)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(run())
        with ThreadPoolExecutor(1) as pool:  # inside a notebook, whose own loop must not be entered again
            return pool.submit(asyncio.run, run()).result()

    async def _complete(
        self, exchange: _Exchange, prompt: Prompt, n: int, options: Mapping[str, Any]
    ) -> list[Completion]:
        fields: dict[str, Any]
        if self.api == "chat":
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
            path, fields = "chat/completions", {"messages": messages}
        elif isinstance(prompt, str):
            path, fields = "completions", {"prompt": prompt}
        else:
            raise ValueError("the completions endpoint continues texts; chat messages need api='chat'")
        asked = {"model": self.model, **fields, **options}
        found = await exchange.completions(path, {**asked, "n": n} if n > 1 else asked)
        if len(found) < n:
            more = [exchange.completions(path, {**asked, "seed": options["seed"] + k}) for k in range(len(found), n)]
            found += [completion for rest in await asyncio.gather(*more) for completion in rest]
        return found[:n]

    async def _score(self, exchange: _Exchange, prompt: str, continuation: str) -> float:
        text = prompt + continuation
        asked = {"model": self.model, "prompt": text, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
        answer, _ = await exchange.ask("completions", asked)
        try:
            return echoed_score(answer["choices"][0], text, len(prompt))
        except (ValueError, TypeError, AttributeError) as error:
            raise EndpointError(f"{self.base_url} cannot be used for scoring: {error}", charged=True) from None


class _Exchange:
    """Requests of one call: so many at once, repeated when they fail, within the budget."""

    def __init__(self, lm: EndpointLM) -> None:
        self.lm = lm
        self.reserved = 0.0
        self.answered = asyncio.Condition()
        self.slots = asyncio.Semaphore(lm.max_concurrency)

    async def __aenter__(self) -> _Exchange:
        aiohttp = require("aiohttp")
        key = os.environ.get(self.lm.api_key_env)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.lm.max_concurrency),
            timeout=aiohttp.ClientTimeout(total=self.lm.timeout),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            proxy=_proxy_for(self.lm.base_url),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.session.close()

    async def completions(self, path: str, fields: Mapping[str, Any]) -> list[Completion]:
        answer, cost = await self.ask(path, fields)
        choices = answer["choices"]
        read, written = usage_in(answer) or (0, 0)
        found = []
        for k, choice in enumerate(choices):
            # The endpoint tells what all choices took together: each gets its share, the first one the rest.
            share = written // len(choices) + (written % len(choices) if k == 0 else 0)
            found.append(
                Completion(
                    before_stop(text_of(choice), fields.get("stop", ())),
                    tokens=share,
                    prompt_tokens=read if k == 0 else 0,
                    cost=cost / len(choices),
                    finish_reason=reason_of(choice),
                )
            )
        return found

    async def ask(self, path: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """Returns the answer to a request, and what it cost."""
        lm = self.lm
        fields = {name: value for name, value in {**fields, **lm.extra}.items() if value is not None}
        worst = self._worst_cost(fields)
        for attempt in range(lm.retries + 1):
            await self._reserve(worst)
            cost = worst  # of an attempt that is broken off: the endpoint may have charged it
            try:
                async with self.slots:
                    lm.requests += 1
                    answer = await self._post(path, fields)
                cost = self._cost(answer, worst)
                return answer, cost
            except _UnusableError as error:
                cost = worst if error.charged else 0.0
                reason, pause = str(error), error.pause
            except EndpointError as error:
                cost = worst if error.charged else 0.0
                raise
            finally:
                await self._settle(worst, cost)
            if attempt < lm.retries:
                backoff = 0.5 * 2**attempt * random.uniform(0.5, 1.0)
                await asyncio.sleep(min(_LONGEST_PAUSE, backoff if pause is None else pause))
        raise EndpointError(f"{lm.model} at {lm.base_url} gave no answer in {lm.retries + 1} attempts: {reason}")

    async def _post(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        aiohttp = require("aiohttp")
        address = f"{self.lm.base_url}/{path}"
        try:
            for _ in range(4):
                async with self.session.post(address, json=fields, allow_redirects=False) as response:
                    if response.status // 100 == 3:
                        address = self._moved(address, response.headers.get("Location"))
                        continue
                    body = bytearray()
                    async for part in response.content.iter_chunked(2**16):
                        body += part
                        if len(body) > _LARGEST:
                            raise EndpointError(f"{address} sent more than {_LARGEST} bytes", charged=True)
                    break
            else:
                raise EndpointError(f"{self.lm.base_url}/{path} redirects without end")
        except TimeoutError:
            raise _UnusableError(f"no answer within {self.lm.timeout:g} s", charged=True) from None
        except aiohttp.ClientError as error:
            raise _UnusableError(
                self._shown(f"{type(error).__name__}: {error}"),
                charged=not isinstance(error, aiohttp.ClientConnectorError),
            ) from None
        said, status = self._shown(body[:4000].decode(errors="replace")), response.status
        if status < 400:
            try:
                answer = json.loads(body)
                if answer.get("error"):
                    said = self._shown(f"in an answer of {status}: {json.dumps(answer['error'], ensure_ascii=False)}")
                    code = answer["error"].get("code") if isinstance(answer["error"], dict) else None
                    status = code if isinstance(code, int) and 400 <= code < 600 else 400
                else:
                    for choice in answer["choices"]:
                        text_of(choice)
                        if choice.get("error"):
                            told = json.dumps(choice["error"], ensure_ascii=False)
                            raise _UnusableError(self._shown(f"a choice with the error {told}"), charged=True)
                    if answer["choices"]:
                        return dict(answer)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                pass
        if status < 400:
            raise _UnusableError("an answer that is not the protocol's", charged=True)
        whole = body[:100_000].decode(errors="replace")  # limits of a rate pass, whatever page their words point to
        useless = any(word in whole for word in _USELESS_AGAIN) and "rate_limit" not in whole
        if (status in _TRY_AGAIN or status >= 500) and not useless:
            raise _UnusableError(f"status {status}: {said}", pause=pause_of(response.headers.get("Retry-After")))
        raise EndpointError(f"{self.lm.base_url}/{path} refused the request with status {status}: {said}")

    def _moved(self, address: str, location: str | None) -> str:
        """Where a redirect leads, if that is the same server: prompts and keys are not sent to another."""
        old = urlsplit(address)
        try:
            new = urlsplit(urljoin(address, location or ""))
        except ValueError:  # no address at all
            new = urlsplit("")
        if not location or (old.scheme, old.netloc) != (new.scheme, new.netloc):
            raise EndpointError(
                f"{self.lm.base_url} redirects to {self._shown(new.netloc)}: give that address if it is right"
            )
        return new.geturl()

    def _shown(self, text: str) -> str:
        """The words of a server for people: without the key and control characters, and not too many."""
        key = os.environ.get(self.lm.api_key_env)
        text = forms_of_key(key).sub("***", text) if key else text
        return "".join(c if c.isprintable() else " " for c in text).strip()[:300]

    def _worst_cost(self, fields: Mapping[str, Any]) -> float:
        """The cost if each byte that is sent were a token, and each completion as long as it may be.

        Raises:
            BudgetError: where there is a budget, but nothing limits what is written.
        """
        read = len(json.dumps(fields, ensure_ascii=False).encode()) + _PER_MESSAGE * (
            len(fields.get("messages", ())) + 1
        )
        places = list(_options_in(fields))
        limits = [place[name] for place in places for name in _LIMITS if place.get(name) is not None]
        times = [place[name] for place in places for name in _TIMES if place.get(name) is not None]
        counts = [*limits, *times]
        if not limits or not all(isinstance(c, int) and not isinstance(c, bool) and c >= 1 for c in counts):
            if self.lm.budget is not None and self.lm.prices[1] > 0:
                raise BudgetError(
                    f"a budget needs a limit on tokens, an int of at least 1, in one of {', '.join(_LIMITS)}"
                )
            return self._price(read, 0)
        return self._price(read, max([1, *times]) * max(limits))

    def _price(self, read: int, written: int) -> float:
        return (read * self.lm.prices[0] + written * self.lm.prices[1]) / 1e6

    def _cost(self, answer: Mapping[str, Any], worst: float) -> float:
        usage = usage_in(answer)
        if usage is None:
            return worst
        read, written = usage
        self.lm.prompt_tokens += read
        self.lm.completion_tokens += written
        return self._price(read, written)

    async def _reserve(self, worst: float) -> None:
        """Waits until the budget has room for a request, or says that it never will."""
        budget = self.lm.budget
        if budget is None:
            return
        async with self.answered:
            while self.lm.spent + self.reserved + worst > budget:
                if self.reserved <= 0:
                    raise BudgetError(
                        f"the next request may cost {worst:.6g}, and {self.lm.spent:.6g} of {budget:.6g} are spent"
                    )
                await self.answered.wait()
            self.reserved += worst

    async def _settle(self, worst: float, cost: float) -> None:
        self.lm.spent += cost
        if self.lm.budget is not None:
            async with self.answered:
                self.reserved = max(0.0, self.reserved - worst)
                self.answered.notify_all()


async def _all_or_error(
    jobs: Sequence[Callable[[], Coroutine[Any, Any, Any]]],
    at_once: int,
    arrived: Callable[[int, Any], None] | None = None,
) -> list[Any]:
    """Returns what all jobs return; the first error stops the others and is told what had finished."""
    if not jobs:
        return []
    found: dict[int, Any] = {}
    waiting = iter(enumerate(jobs))

    async def work() -> None:
        for number, job in waiting:
            found[number] = await job()
            if arrived is not None:
                arrived(number, found[number])

    # As many workers as requests, not a task for each job: the garbage collector would look through all of those.
    workers = [asyncio.create_task(work()) for _ in range(min(at_once, len(jobs)))]
    _, pending = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    for worker in pending:
        worker.cancel()
    ended = await asyncio.gather(*workers, return_exceptions=True)
    errors = [outcome for outcome in ended if isinstance(outcome, Exception)]
    if not errors:
        return [found[number] for number in range(len(jobs))]
    if isinstance(errors[0], EndpointError):
        errors[0].finished = {number: outcome for number, outcome in found.items() if isinstance(outcome, list)}
    raise errors[0]


def _options_in(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A request's options and all that lie inside of them, under whatever name a server takes them."""
    yield fields
    for name, value in fields.items():
        if isinstance(value, Mapping) and name not in _TEXTS:
            yield from _options_in(value)


def _proxy_for(url: str) -> str | None:
    """What the environment says ($HTTPS_PROXY, $NO_PROXY), read once: aiohttp would do it in a thread, each time."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
