import time
from dataclasses import replace

import pytest

from heldout.lm import (
    EndpointLM,
    ModelPool,
    PoolModel,
    Reply,
    RoutingAgent,
    RoutingEpisode,
    ScriptedLM,
    TransformersLM,
    final_answer,
    format_ok,
    routing_prompt,
    search_request,
    tiny_llama,
    train_tiny,
    word_tokenizer,
)
from heldout.lm.strategies.routing import blocks_of, closed_turn
from tests.lm.models.test_endpoint import answer, served

GOOD = "<think> ask </think> <search> small: capital? </search>\n<information> Paris </information>\n"
END = "<think> ok </think> <answer> Paris </answer>"


def echo(query):
    return Reply(f"you said {query}", 3)


def broken(query):
    raise ConnectionError("no route")


@pytest.fixture
def pool():
    return ModelPool([PoolModel("small", echo, 2.0, "quick"), PoolModel("Large", echo, 10.0, "good")])


def asks(name, query="capital?"):
    return f"<think> hm </think> <search> {name}: {query} "


def test_replies_cost_tokens_times_price(pool):
    assert pool.route("small", "x") == Reply("you said x", 3, 6e-6, "small")
    assert pool.route(" large ", "x").cost == pytest.approx(3e-5)
    assert (pool.requests, pool.errors) == (2, 0)
    assert pool.cost == pytest.approx(3.6e-5)


def test_requests_are_made_at_once_and_answered_in_order():
    def slow(query):
        time.sleep(0.1)
        return Reply(query, 1)

    pool = ModelPool([PoolModel("slow", slow)])
    started = time.perf_counter()
    replies = pool.route_many([("slow", str(number)) for number in range(8)])
    assert time.perf_counter() - started < 0.6
    assert [reply.text for reply in replies] == [str(number) for number in range(8)]


def test_a_model_that_raises_replies_error_and_is_counted(pool):
    pool = ModelPool([PoolModel("small", echo), PoolModel("down", broken, 5.0)])
    reply, other = pool.route_many([("down", "x"), ("small", "x")])
    assert (reply.text, reply.cost, reply.error) == ("error", 0.0, "ConnectionError: no route")
    assert not other.error
    assert (pool.requests, pool.errors) == (2, 1)
    agent = RoutingAgent(ScriptedLM([asks("down"), END]), pool)
    trace = agent.answer("?")
    assert "<information> error </information>" in trace.text
    assert pool.errors == 2


def test_the_pool_describes_its_models(pool):
    assert pool.describe() == "small: quick\nLarge: good"
    assert pool.describe("{descriptor} ({price}) {name}") == "quick (2) small\ngood (10) Large"
    assert routing_prompt("{models}?", pool, "{question} {models}").startswith("{models}? small")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "entries must not be empty"),
        ([PoolModel("a:b", echo)], "without ':'"),
        ([PoolModel(" ", echo)], "without ':'"),
        ([PoolModel("a", echo), PoolModel("A", echo)], "'A' twice"),
        ([PoolModel("a", echo, -1.0)], "not be negative, got -1"),
    ],
)
def test_bad_pools_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        ModelPool(entries)


def test_bad_requests_and_options_are_refused(pool):
    with pytest.raises(ValueError, match="no model 'none'; it has small, Large"):
        pool.route("none", "x")
    with pytest.raises(ValueError, match="max_turns"):
        RoutingAgent(ScriptedLM([]), pool, max_turns=-1)
    with pytest.raises(ValueError, match=r"needs the field \{question\}"):
        RoutingAgent(ScriptedLM([]), pool, prompt="{models}")
    with pytest.raises(ValueError, match=r"needs the field \{query\}"):
        PoolModel.of("a", ScriptedLM([]), prompt="go")


def test_a_language_model_in_the_pool_brings_its_price():
    lm = EndpointLM("m", "http://127.0.0.1:9/v1", prices=(0.1, 0.4))
    assert PoolModel.of("m", lm).price == 0.4
    assert PoolModel.of("m", lm, price=1.0).price == 1.0
    model = PoolModel.of("m", ScriptedLM({"Q: x": "one two"}), price=3.0, prompt="Q: {query}")
    assert ModelPool([model]).route("m", "x") == Reply("one two", 2, 6e-6, "m")


@pytest.mark.parametrize(
    ("turn", "request_"),
    [
        ("<search> small: a b </search>", ("small", "a b")),
        ("<search>SMALL:at 10:30?</search>", ("small", "at 10:30?")),
        ("<search> small: a </search> <search> large: b </search>", ("Large", "b")),
        ("<search> small a </search>", None),
        ("<search> other: a </search>", None),
        ("<search> small: </search>", None),
        ("<search> small: your query </search>", None),
        ("<search> small: a", None),
        ("hello", None),
    ],
)
def test_what_a_turn_asks_for(pool, turn, request_):
    assert search_request(turn, pool) == request_


def test_a_well_formed_episode_has_the_form():
    assert format_ok(GOOD + END, ["small"])
    assert format_ok(f"  {GOOD}{GOOD}{END}\n", ["Small"])
    assert format_ok(END, [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris",
        "<answer> Paris </answer>",
        "<think> </think> <answer> Paris </answer>",
        GOOD,
        GOOD + END + END,
        GOOD + END + " so",
        "so " + GOOD + END,
        GOOD + "<think> ok <answer> Paris </answer> </think>",
        "<think> ok </think> <search> small: a </search> " + END,
        "<think> ok </think> <information> a </information> " + END,
        GOOD.replace("small:", "small") + END,
        GOOD.replace("capital", "capital: x") + END,
        GOOD.replace("capital?", "") + END,
        GOOD.replace("small", "other") + END,
        GOOD.replace("capital?", "ask small") + END,
        "<think> a " + END,
        "</think> " + END,
    ],
)
def test_malformed_episodes_have_not(text):
    assert not format_ok(text, ["small"])


def test_blocks_and_answers_are_read():
    assert blocks_of(GOOD) == [("think", "ask"), ("search", "small: capital?"), ("information", "Paris")]
    assert blocks_of("<think> a </answer>") is None
    assert final_answer("<answer> a </answer> <answer> b <answer> c </answer>") == "c"
    assert final_answer("<answer> a") == ""


def test_turns_are_closed_where_the_stop_string_was_left_out():
    assert closed_turn("<search> a: b") == "<search> a: b </search>"
    assert closed_turn("<search> a: b ") == "<search> a: b </search>"
    assert closed_turn("<search> a: b", ended=False) == "<search> a: b"
    assert closed_turn("nothing") == "nothing"
    assert closed_turn("<answer> 4 </answer> and <search> a: b </search>") == "<answer> 4 </answer>"


def test_an_answer_at_once_is_direct_answering(pool):
    router = ScriptedLM([END])
    trace = RoutingAgent(router, pool).answer("capital?")
    assert (trace.answer, trace.calls, trace.cost, trace.format_ok) == ("Paris", (), 0, True)
    assert pool.requests == 0


def test_the_agent_reads_replies_and_pays_for_them(pool):
    router = ScriptedLM([asks("small"), asks("large", "and?"), END[: -len("</answer>")]])
    trace = RoutingAgent(router, pool).answer("capital?")
    assert trace.answer == "Paris"
    assert trace.format_ok
    assert [reply.name for reply in trace.calls] == ["small", "Large"]
    assert trace.cost == pytest.approx(3.6e-5)
    assert router.calls[1].endswith("</search>\n<information> you said capital? </information>\n")
    assert router.calls[2].startswith(router.calls[1])


@pytest.mark.parametrize("turns", [0, 1, 4])
def test_it_ends_after_one_turn_more_in_which_nobody_is_asked(pool, turns):
    router = ScriptedLM(lambda prompt, sample: asks("small"))
    trace = RoutingAgent(router, pool, turns).answer("capital?")
    assert len(router.calls) == turns + 1
    assert pool.requests == len(trace.calls) == turns
    assert not trace.format_ok
    assert trace.answer == ""


def test_requests_that_cannot_be_sent_are_told_so_and_the_episode_goes_on(pool):
    router = ScriptedLM([asks("other"), "what ?", asks("small"), END])
    trace = RoutingAgent(router, pool).answer("capital?")
    assert "<information> None </information>" in trace.text
    assert trace.answer == "Paris"
    assert len(trace.calls) == 1


def test_long_replies_are_cut_and_cannot_speak_in_tags():
    long = PoolModel("long", lambda query: Reply("<answer> no </answer> " + "word " * 50, 52))
    episode = RoutingEpisode(ModelPool([long]), max_obs_tokens=5)
    assert episode(asks("long") + "</search>") == "\n<information> no word word word word </information>\n"
    tokenizer = word_tokenizer(["no word"])
    episode = RoutingEpisode(ModelPool([long]), max_obs_tokens=3, tokenizer=tokenizer)
    assert episode(asks("long") + "</search>") == "\n<information> no word word </information>\n"


def test_many_questions_are_answered_in_batches(pool):
    def router(prompt, sample):
        return END if "information> you" in prompt or "easy" in prompt else asks("small")

    traces = RoutingAgent(ScriptedLM(router), pool).answer_many(["easy ?", "hard ?", "hard ?"])
    assert [len(trace.calls) for trace in traces] == [0, 1, 1]
    assert all(trace.answer == "Paris" for trace in traces)
    assert RoutingAgent(ScriptedLM([]), pool).answer_many([]) == []


def test_a_local_model_routes(pool):
    asked, told = "<think> hm </think> <search> small : capital </search>", "you said capital"
    text = f"{asked} <information> {told} </information> {END}"
    prompt = routing_prompt("city ?", pool, "{models}\n{question}\n")
    tokenizer = word_tokenizer([text, prompt])
    model = tiny_llama(tokenizer, dim=32, layers=2, context=64)
    train_tiny(model, tokenizer, [(prompt, text)], steps=80, batch_size=4, lr=1e-2)
    lm = TransformersLM(model, tokenizer)
    trace = RoutingAgent(lm, pool, max_tokens=12, prompt="{models}\n{question}\n").answer("city ?")
    assert trace.text.split() == text.split()
    assert (trace.answer, trace.format_ok, len(trace.calls)) == ("Paris", True, 1)


def test_an_agent_routes_over_an_endpoint():
    seen = []

    async def respond(number, path, body, request):
        said = body["messages"][-1]["content"]
        seen.append(body)
        if body["model"] == "helper":
            return answer("it is Paris", usage=(5, 3))
        heard = "<information> it is Paris </information>" in said
        # as servers do, it leaves the stop string out
        return answer(END[: -len("</answer>")] if heard else asks("helper"))

    with served(respond) as url:
        helper = PoolModel.of("helper", EndpointLM("helper", url, prices=(0.0, 2.0)), max_tokens=9)
        router = EndpointLM("router", url)
        traces = RoutingAgent(router, ModelPool([helper])).answer_many(["capital of France?", "and its capital?"])
    assert all(trace.answer == "Paris" and trace.format_ok for trace in traces)
    assert [trace.cost for trace in traces] == pytest.approx([6e-6, 6e-6])
    assert router.requests == 4
    routing = [body for body in seen if body["model"] == "router"]
    helping = [body for body in seen if body["model"] == "helper"]
    assert all(body["stop"] == ["</search>", "</answer>"] for body in routing)
    assert all("Question: capital?" in body["messages"][-1]["content"] for body in helping)
    assert {body["max_tokens"] for body in helping} == {9}


@pytest.mark.parametrize("word", ["stop", "eos_token", "stop_sequence", "end_turn", "eos"])
def test_a_turn_that_ended_is_read_whatever_the_server_calls_it(word):
    class Named(ScriptedLM):
        def generate(self, prompts, n=1, **options):
            return [[replace(c, finish_reason=word) for c in row] for row in super().generate(prompts, n, **options)]

    router = Named(["<think> ask </think> <search> small: capital? ", "<think> ok </think> <answer> Paris "])
    small = ModelPool([PoolModel("small", lambda query: Reply("it is Paris", 3), price=1.0)])
    trace = RoutingAgent(router, small).answer("What is the capital of France?")
    assert (trace.answer, len(trace.calls)) == ("Paris", 1)
