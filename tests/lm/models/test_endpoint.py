"""An endpoint's client against servers on loopback that behave, misbehave, and serve a real model."""

from __future__ import annotations

import asyncio
import base64
import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import pytest
from aiohttp import web

from heldout.lm import LM, BudgetError, CachedLM, EndpointError, EndpointLM, TransformersLM, tiny_llama, word_tokenizer


@contextmanager
def served(handle):
    """The address of a server whose handler gets ``(number of the request, path, body, headers)``."""
    loop, ready, number = asyncio.new_event_loop(), threading.Event(), iter(range(1_000_000))
    place: list[str] = []

    async def respond(request):
        return await handle(next(number), request.path, await request.json(), request)

    async def start():
        app = web.Application()
        app.router.add_post("/{path:.*}", respond)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        place.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        ready.set()
        return runner

    def run():
        asyncio.set_event_loop(loop)
        place.append(loop.run_until_complete(start()))
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield place[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


def answer(*texts, usage=(3, 2)):
    choices = [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} for text in texts]
    found = {"choices": choices}
    if usage:
        found["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return web.json_response(found)


async def echo(number, path, body, request):
    return answer(*[f"{body['messages'][-1]['content']} {body['seed']}"] * body.get("n", 1))


@pytest.fixture
def quick(monkeypatch):
    """Pauses between attempts that take no time."""
    monkeypatch.setattr("heldout.lm.models.endpoint.random.uniform", lambda low, high: 0.001)


def test_prompts_come_back_in_their_order_with_what_they_cost():
    with served(echo) as url:
        lm = EndpointLM("m", url, prices=(1e6, 10e6))
        found = lm.generate([f"p{i}" for i in range(40)], seed=7)
    assert [row[0].text for row in found] == [f"p{i} 7" for i in range(40)]
    assert found[0][0].cost == 3 + 20
    assert (lm.spent, lm.prompt_tokens, lm.completion_tokens, lm.requests) == (40 * 23, 120, 80, 40)
    assert isinstance(lm, LM)


def test_options_reach_the_server_and_none_takes_one_out():
    seen = []

    async def note(number, path, body, request):
        seen.append((path, body))
        return answer("yes STOP no")

    with served(note) as url:
        lm = EndpointLM("m", url, extra={"top_k": 20, "seed": None})
        options = {"temperature": 0.5, "top_p": 0.9, "stop": ["STOP"], "max_tokens": 9}
        ((found,),) = lm.generate([[{"role": "system", "content": "s"}]], **options)
    assert found.text == "yes "
    path, body = seen[0]
    assert path == "/v1/chat/completions"
    assert body == {"model": "m", "messages": [{"role": "system", "content": "s"}], **options, "top_k": 20}


def test_a_server_that_ignores_n_is_asked_for_the_others_with_other_seeds():
    async def one(number, path, body, request):
        return answer(f"seed {body['seed']}", usage=(3, 2))

    with served(one) as url:
        (row,) = EndpointLM("m", url).generate(["p"], 4, temperature=1.0, seed=10)
    assert sorted(c.text for c in row) == ["seed 10", "seed 11", "seed 12", "seed 13"]


def test_usage_of_several_choices_is_shared_without_loss():
    async def three(number, path, body, request):
        return answer("a", "b", "c", usage=(5, 8))

    with served(three) as url:
        (row,) = EndpointLM("m", url, prices=(0.0, 1e6)).generate(["p"], 3)
    assert sum(c.tokens for c in row) == 8
    assert sum(c.prompt_tokens for c in row) == 5
    assert sum(c.cost for c in row) == pytest.approx(8)


async def _too_many(number, path, body, request):
    return web.Response(status=429, headers={"Retry-After": "0"})


async def _too_fast(number, path, body, request):
    told = {
        "message": "Rate limit reached. Visit https://models.invalid/account/billing",
        "code": "rate_limit_exceeded",
    }
    return web.json_response({"error": told}, status=429, headers={"Retry-After": "0"})


async def _broken(number, path, body, request):
    return web.Response(status=500)


async def _garbage(number, path, body, request):
    return web.Response(text="<html>")


async def _no_choices(number, path, body, request):
    return web.json_response({"choices": []})


async def _no_text(number, path, body, request):
    return web.json_response({"choices": [{"message": {"content": 7}}]})


async def _broken_off(number, path, body, request):
    return web.json_response({"choices": [{"message": {"content": "ha"}, "error": {"code": 502}}]})


async def _hang(number, path, body, request):
    await asyncio.sleep(2)
    return answer("late")


async def _drop(number, path, body, request):
    request.transport.close()
    return web.Response()


@pytest.mark.parametrize(
    "fault", [_too_many, _too_fast, _broken, _garbage, _no_choices, _no_text, _broken_off, _hang, _drop]
)
def test_a_fault_that_passes_is_survived_and_one_that_stays_is_told(fault, quick):
    async def first_time_only(number, path, body, request):
        return await (fault if number == 0 else echo)(number, path, body, request)

    with served(first_time_only) as url:
        lm = EndpointLM("m", url, timeout=0.3)
        assert lm.generate(["p"])[0][0].text == "p 0"
        assert lm.requests == 2
    with served(fault) as url, pytest.raises(EndpointError, match="gave no answer in 3 attempts"):
        EndpointLM("m", url, timeout=0.3, retries=2).generate(["p"])


def test_an_endpoint_that_is_not_there_is_told(quick):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EndpointError, match="gave no answer in 2 attempts"):
        EndpointLM("m", f"http://127.0.0.1:{port}/v1", retries=1).generate(["p"])


def test_a_refusal_is_not_repeated_and_tells_the_servers_words():
    async def refuse(number, path, body, request):
        return web.json_response({"error": {"message": "no such model"}}, status=404)

    with served(refuse) as url:
        lm = EndpointLM("m", url)
        with pytest.raises(EndpointError, match=r"status 404.*no such model"):
            lm.generate(["p"])
    assert lm.requests == 1


def test_no_more_than_max_concurrency_requests_are_open_at_once():
    now, most = [0], [0]

    async def count(number, path, body, request):
        now[0] += 1
        most[0] = max(most[0], now[0])
        await asyncio.sleep(0.01)
        now[0] -= 1
        return answer("x")

    with served(count) as url:
        EndpointLM("m", url, max_concurrency=3).generate(["p"] * 20)
    assert most[0] == 3


def test_the_budget_is_never_exceeded_and_what_was_answered_is_kept(tmp_path):
    async def long_answer(number, path, body, request):
        return answer("x", usage=(5, body["max_tokens"]))

    with served(long_answer) as url:
        lm = EndpointLM("m", url, prices=(0.0, 1e6), budget=100.0, max_concurrency=4)
        cached = CachedLM(lm, tmp_path / "answers.db")
        prompts = [f"p{i}" for i in range(20)]
        with pytest.raises(BudgetError, match=r"may cost 15, and 90 of 100 are spent") as caught:
            cached.generate(prompts, max_tokens=15)
        assert lm.spent == 90
        assert len(caught.value.finished) == 6
        done = [prompts[i] for i in caught.value.finished]
        assert len(cached.generate(done, max_tokens=15)) == 6
        assert lm.spent == 90


def test_an_attempt_without_answer_counts_as_its_worst_case(quick):
    with served(_garbage) as url:
        lm = EndpointLM("m", url, prices=(0.0, 1e6), retries=1, budget=1000.0)
        with pytest.raises(EndpointError):
            lm.generate(["p"], max_tokens=10)
    assert lm.spent == 20


def test_the_key_is_sent_and_told_to_nobody(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    seen = []

    async def refuse(number, path, body, request):
        seen.append(request.headers["Authorization"])
        return web.Response(status=401, text="bad key")

    with served(refuse) as url:
        lm = EndpointLM("m", url, api_key_env="SOME_KEY")
        with pytest.raises(EndpointError) as caught:
            lm.generate(["p"])
    assert seen == ["Bearer sk-secret"]
    assert "sk-secret" not in f"{caught.value} {vars(lm)} {lm.identity}"


@pytest.mark.parametrize(
    "shown",
    [
        r"sk-\u0073ecret", r"sk-\U0073ecret".replace("U", "u"), "sk%2dsecret", "sk%2Dsecret", "c2stc2VjcmV0",
        base64.b64encode(b"Bearer sk-secret").decode(), base64.b64encode(b":sk-secret").decode(),
    ],
)  # fmt: skip
def test_a_key_that_a_server_echoes_in_another_form_is_not_told(monkeypatch, shown):
    monkeypatch.setenv("SOME_KEY", "sk-secret")

    async def refuse(number, path, body, request):
        return web.Response(status=401, text=f"no such key: {shown}!")

    with served(refuse) as url, pytest.raises(EndpointError) as caught:
        EndpointLM("m", url, api_key_env="SOME_KEY").generate(["p"])
    assert "no such key: ***" in str(caught.value)
    assert shown not in str(caught.value)


def test_a_key_among_further_fields_is_no_part_of_the_identity(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    extra = {"user": "me of sk-secret", "provider": {"api_key": "other-key", "order": ["a"]}, "top_k": 3}
    lm = EndpointLM("m", "http://localhost/v1", api_key_env="SOME_KEY", extra=extra)
    assert "sk-secret" not in lm.identity
    assert "other-key" not in lm.identity
    assert '"order": ["a"]' in lm.identity
    assert lm.identity != EndpointLM("m", "http://localhost/v1", extra={**extra, "top_k": 4}).identity
    assert lm.extra == extra  # what is sent stays


def test_an_error_inside_a_choice_is_told_in_the_servers_words(quick):
    async def broken(number, path, body, request):
        return web.json_response(
            {"choices": [{"message": {"content": "ha"}, "error": {"message": "boom", "code": 502}}]}
        )

    with served(broken) as url:
        lm = EndpointLM("m", url, retries=1, prices=(0.0, 1e6))
        with pytest.raises(EndpointError, match="boom"):
            lm.generate(["p"], max_tokens=10)
    assert (lm.requests, lm.spent) == (2, 20)


def test_scores_come_from_echoed_log_probabilities():
    async def scored(number, path, body, request):
        assert path == "/v1/completions"
        assert body["echo"]
        # tokens "ab", " c", "d" and one that was written
        logprobs = {"token_logprobs": [None, -1.0, -2.0, -9.0], "text_offset": [0, 2, 4, 5]}
        return web.json_response({"choices": [{"text": "ab cd!", "logprobs": logprobs}]})

    with served(scored) as url:
        assert EndpointLM("m", url).score(["ab"], [[" cd"]]) == [[-3.0]]

    async def silent(number, path, body, request):
        return web.json_response({"choices": [{"text": "ab cd!"}]})

    with served(silent) as url, pytest.raises(EndpointError, match="no log probabilities"):
        EndpointLM("m", url).score(["ab"], [[" cd"]])
    with pytest.raises(ValueError, match="not of chat messages"):
        EndpointLM("m", url).score([[{"role": "user", "content": "x"}]], [["y"]])


def test_it_works_inside_a_running_loop():
    async def inside(url):
        return EndpointLM("m", url).generate(["p"])

    with served(echo) as url:
        assert asyncio.run(inside(url))[0][0].text == "p 0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"timeout": 0.0}, "timeout"),
        ({"prices": (-1.0, 0.0)}, "prices"),
        ({"prices": (math.inf, 0.0)}, "finite"),
        ({"base_url": "http://x/v1?key=sk-secret"}, "must end with its path"),
        ({"api": "edits"}, "api must be"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EndpointLM("m", **{"base_url": "http://x", **options})


def test_a_real_server_answers_as_the_model_does(tmp_path):
    pytest.importorskip("uvicorn")
    words = [f"w{i}" for i in range(30)]
    tokenizer = word_tokenizer([" ".join(words)])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}w0"
    model = tiny_llama(tokenizer, dim=16, layers=1)
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    server = subprocess.Popen(
        [*command, str(tmp_path / "tiny"), "--port", str(port), "--device", "cpu"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=1)
                break
            except OSError:
                if server.poll() is not None:
                    pytest.skip("this version of transformers cannot serve here")
                time.sleep(0.25)
        lm = EndpointLM(str(tmp_path / "tiny"), f"http://localhost:{port}/v1", max_concurrency=2)
        prompts = ["w1 w2", "w3", "w4 w5 w6"]
        served_texts = [row[0].text for row in lm.generate(prompts, max_tokens=5)]
        assert lm.completion_tokens > 0
    finally:
        server.terminate()
        server.wait(20)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    local = TransformersLM(model, tokenizer).generate(chats, max_tokens=5)
    assert served_texts == [row[0].text for row in local]


def test_requests_go_through_the_proxy_that_the_environment_names(monkeypatch):
    seen = []

    async def proxy(number, path, body, request):
        seen.append((request.raw_path, request.headers["Host"]))
        return answer("through")

    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with served(proxy) as url:
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
        ((found,),) = EndpointLM("m", "http://models.invalid/v1").generate(["p"])
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        EndpointLM("m", url).generate(["p"])
    assert found.text == "through"
    assert seen[0] == ("http://models.invalid/v1/chat/completions", "models.invalid")
    assert seen[1][0] == "/v1/chat/completions"


REFUSED = [  # status, headers, body, what the error says
    (200, {}, {"error": {"message": "the model is gone", "type": "x"}}, "in an answer of 200: .*the model is gone"),
    (200, {}, {"error": "out of\x1b[31m luck"}, r"out of.{0,6}\[31m luck"),
    (429, {}, {"error": {"code": "insufficient_quota", "message": "pay"}}, "status 429.*insufficient_quota"),
    (429, {}, {"error": {"message": "pay " * 100, "code": "insufficient_quota"}}, "status 429.*pay pay"),
    (402, {}, {"error": {"message": "Insufficient credits"}}, "status 402.*Insufficient credits"),
    (400, {}, {"detail": "header was Bearer sk-secret"}, r"header was Bearer \*\*\*"),
    (307, {"Location": "http://elsewhere.invalid/v1/chat/completions"}, {}, "redirects to elsewhere.invalid"),
    (302, {}, {}, "redirects to"),
    (302, {"Location": "http://[x/v1"}, {}, "redirects to"),
]


@pytest.mark.parametrize(("status", "headers", "body", "message"), REFUSED)
def test_what_cannot_pass_is_told_in_the_servers_words_and_not_repeated(status, headers, body, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")

    async def refuse(number, path, asked, request):
        return web.json_response(body, status=status, headers=headers)

    with served(refuse) as url:
        lm = EndpointLM("m", url)
        with pytest.raises(EndpointError, match=message) as caught:
            lm.generate(["p"])
    assert lm.requests == 1
    assert "sk-secret" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_redirect_on_the_same_server_is_followed():
    async def moved(number, path, body, request):
        if path == "/v1/chat/completions":
            return web.Response(status=308, headers={"Location": "/other"})
        return answer(path)

    with served(moved) as url:
        assert EndpointLM("m", url).generate(["p"])[0][0].text == "/other"


def test_an_answer_larger_than_the_limit_is_broken_off(monkeypatch):
    monkeypatch.setattr("heldout.lm.models.endpoint._LARGEST", 10_000)

    async def flood(number, path, body, request):
        return answer("x" * 300_000)

    with served(flood) as url:
        lm = EndpointLM("m", url, prices=(0.0, 1e6))
        with pytest.raises(EndpointError, match="more than 10000 bytes"):
            lm.generate(["p"], max_tokens=3)
    assert (lm.requests, lm.spent) == (1, 3)


@pytest.mark.parametrize(
    "extra",
    [
        {"max_tokens": None, "max_completion_tokens": 1000},
        {"max_completion_tokens": 1000},
        {"max_tokens": None, "options": {"num_predict": 1000}},
        {"best_of": 20},
        {"max_tokens": None, "parameters": {"max_new_tokens": 1000}},
        {"parameters": {"num_return_sequences": 20}},
        {"max_length": 1000},
        {"extra_body": {"max_tokens": 1000}},
        {"generation_config": {"max_new_tokens": 1000}},
        {"extra_body": {"sampling": {"n": 20}}},
        {"max_tokens": None},
        {"max_tokens": -1},
    ],
)
def test_a_budget_binds_whatever_the_wire_calls_the_limit(extra):
    with served(echo) as url:
        lm = EndpointLM("m", url, prices=(0.0, 1e6), budget=10.0, extra=extra)
        with pytest.raises(BudgetError, match=r"may cost|a limit on tokens"):
            lm.generate(["p"] * 8, max_tokens=1)
    assert (lm.requests, lm.spent) == (0, 0.0)


def test_a_budget_that_is_large_enough_is_spent_under_the_other_name():
    with served(echo) as url:
        extra = {"max_tokens": None, "max_completion_tokens": 4}
        lm = EndpointLM("m", url, prices=(0.0, 1e6), budget=10.0, extra=extra)
        assert lm.generate(["p"])[0][0].text == "p 0"
    assert lm.spent == 2


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 5, "total_tokens": 1005},
        {"completion_tokens": -5},
        {"completion_tokens": "2"},
        [1],
        {"completion_tokens": 1.5},
    ],
)
def test_usage_that_cannot_be_counts_as_the_worst_case(usage):
    async def liar(number, path, body, request):
        return web.json_response({"choices": [{"message": {"content": "x"}}], "usage": usage})

    with served(liar) as url:
        lm = EndpointLM("m", url, prices=(0.0, 1e6))
        assert lm.generate(["p"], max_tokens=7)[0][0].text == "x"
    assert (lm.spent, lm.completion_tokens) == (7, 0)


def test_user_and_password_in_the_address_are_refused_unseen():
    with pytest.raises(ValueError, match="must not hold user and password") as caught:
        EndpointLM("m", "https://me:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)


def test_answers_are_kept_as_they_arrive_even_when_the_caller_is_interrupted(tmp_path):
    stop = KeyboardInterrupt()

    class Interrupted(EndpointLM):
        def generate(self, prompts, n=1, *, arrived=None, **options):
            def count(number, row):
                arrived(number, row)
                if number == 7:
                    raise stop

            return super().generate(prompts, n, arrived=count, **options)

    prompts = [f"p{i}" for i in range(20)]
    with served(echo) as url:
        with pytest.raises(KeyboardInterrupt):
            CachedLM(Interrupted("m", url, max_concurrency=1), tmp_path / "answers.db").generate(prompts)
        lm = EndpointLM("m", url)
        found = CachedLM(lm, tmp_path / "answers.db").generate(prompts)
    assert [row[0].text for row in found] == [f"{prompt} 0" for prompt in prompts]
    assert lm.requests == 12


def test_three_hundred_prompts_at_once_outlive_dropped_connections(quick):
    async def drops(number, path, body, request):
        await asyncio.sleep(0.05)
        if number % 5 == 0 and number < 300:
            request.transport.abort()
        return await echo(number, path, body, request)

    prompts = [f"p{number}" for number in range(300)]
    with served(drops) as url:
        lm = EndpointLM("m", url, max_concurrency=300)
        assert [row[0].text for row in lm.generate(prompts)] == [f"{prompt} 0" for prompt in prompts]
    assert lm.requests == 360
