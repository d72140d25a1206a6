"""Shapes of answers, lawful and unlawful, of vLLM, llama.cpp, SGLang, TGI, Ollama and hosted services."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from heldout.lm import EndpointError, EndpointLM
from heldout.lm.models.endpoint_answers import pause_of
from tests.lm.models.test_endpoint import served

LAWFUL = [  # a choice, its text, its finish reason
    ({"message": {"content": "yes"}, "finish_reason": "stop", "stop_reason": None}, "yes", "stop"),  # vLLM
    ({"message": {"content": "yes"}, "finish_reason": "stop", "matched_stop": 2}, "yes", "stop"),  # SGLang
    ({"message": {"content": "yes"}, "finish_reason": "eos_token"}, "yes", "stop"),  # TGI
    ({"message": {"content": "yes"}, "finish_reason": "stop_sequence"}, "yes", "stop"),
    ({"message": {"content": "yes"}, "finish_reason": "end_turn"}, "yes", "stop"),
    ({"message": {"content": "yes"}, "finish_reason": "max_tokens"}, "yes", "length"),
    ({"message": {"content": "yes"}, "finish_reason": ""}, "yes", "stop"),  # Ollama
    ({"message": {"content": "yes"}}, "yes", "stop"),
    ({"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}, "", "length"),
    ({"message": {"role": "assistant"}, "finish_reason": "stop"}, "", "stop"),
    ({"message": {"content": None, "refusal": "I cannot"}, "finish_reason": "stop"}, "", "stop"),
    ({"message": {"content": None, "tool_calls": []}, "finish_reason": "tool_calls"}, "", "tool_calls"),
    ({"message": {"content": ""}, "finish_reason": "content_filter"}, "", "content_filter"),
    ({"message": {"content": [{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]}}, "yes", "stop"),
    (
        {"message": {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]}},
        "yes",
        "stop",
    ),
    ({"text": "yes", "finish_reason": "length"}, "yes", "length"),
]


@pytest.mark.parametrize(("choice", "text", "reason"), LAWFUL)
def test_a_lawful_answer_is_an_answer_after_one_request(choice, text, reason):
    async def handle(number, path, body, request):
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})

    with served(handle) as url:
        lm = EndpointLM("m", url, retries=0)
        ((found,),) = lm.generate(["p"])
    assert (found.text, found.finish_reason, found.tokens) == (text, reason, 2)
    assert lm.requests == 1


def logprobs(values, places, tokens=None):
    return {"token_logprobs": values, "text_offset": places, **({"tokens": tokens} if tokens else {})}


ECHOES = [  # echoed text and log probabilities of "ab cd", of which " cd" is scored; the score, or what is said
    ("ab cd!", logprobs([None, -1.0, -2.0, -9.0], [0, 2, 4, 5], ["ab", " c", "d", "!"]), -3.0),
    ("ab cd!", logprobs([None, -1.0, -2.0, -9.0], [0, 2, 4, 5]), -3.0),
    ("ab cd", logprobs([None, -1.0, -2.0], [0, 2, 4]), -3.0),
    ("ab cd!", logprobs([None, -0.5, -1.0, -2.0, -9.0], [0, 0, 2, 4, 5]), -3.0),  # a beginning token of the server
    ("ab cd!", logprobs([None, -1.0, -2.0, -9.0], [0, 2, 4, 5], ["12", "7", "9", "3"]), -3.0),  # ids in place of tokens
    ("ab cd!", logprobs([None, -1.0, -2.0, -9.0], [0, 2, 4, 5], [f"token_id:{n}" for n in range(4)]), -3.0),
    ("ab cd!", logprobs([None, -0.5, -3.0, -9.0], [0, 0, 2, 5], ["<s>", "ab", " cd", "!"]), -3.0),
    ("ab cd", logprobs([None, -1.0, -2.0], [0, 2, 3], ["ab", "\ufffd", "\ufffd"]), "do not make up the text"),
    ("ab cd", logprobs([None, -1.0], [0, 2], ["xy", " zz"]), "do not make up the text"),
    ("ab cd", logprobs([None, -1.0], [0, 2], ["ab cd"]), "do not make up the text"),
    ("ab cd", logprobs([None, -1.0, -2.0], [0, 2, 9]), "text_offset"),
    (" foo", logprobs([-0.01], [0], [" foo"]), "does not echo"),
    ("ab cd!", logprobs([-0.01], [5]), "text_offset"),
    ("ab cd!", logprobs([None, -1.0, -9.0], [0, 4, 2]), "text_offset"),
    ("ab cd!", logprobs([None, -1.0, -2.0, -9.0], [0, 1, 4, 5], ["ab", " c", "d", "!"]), "follow its tokens"),
    ("ab cd!", logprobs([None, -1.0], [0, 2, 4, 5]), "text_offset"),
    ("ab cd!", logprobs([None, None, -2.0, -9.0], [0, 2, 4, 5]), "no log probability of the continuation"),
    ("ab cd!", logprobs([None, 1.5, -2.0, -9.0], [0, 2, 4, 5]), "no log probability of the continuation"),
    ("ab cd!", logprobs([None, "x", -2.0, -9.0], [0, 2, 4, 5]), "no log probability of the continuation"),
    ("ab cd!", logprobs([], []), "no log probabilities"),
    ("ab cd!", None, "no log probabilities"),
    ("ab cd4", logprobs([None, -0.5, -9.0], [0, 1, 2], ["1", "2", "3"]), "text_offset"),  # ids, whose places are wrong
    ("ab cd4", logprobs([None, -0.5, -9.0], [0, 0, 0], [f"token_id:{n}" for n in range(3)]), "text_offset"),
]


@pytest.mark.parametrize(("text", "found", "expected"), ECHOES)
def test_what_a_server_claims_of_the_text_is_checked(text, found, expected):
    async def handle(number, path, body, request):
        return web.json_response({"choices": [{"text": text, "logprobs": found}]})

    with served(handle) as url:
        lm = EndpointLM("m", url)
        if isinstance(expected, float):
            assert lm.score(["ab"], [[" cd"]]) == [[expected]]
        else:
            with pytest.raises(EndpointError, match=expected):
                lm.score(["ab"], [[" cd"]])


def test_a_pause_is_seconds_or_a_date():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert pause_of("2.5") == 2.5
    assert 25 < pause_of(later) <= 30
    assert [pause_of(header) for header in (None, "soon", "nan", "-3")] == [None, None, None, 0.0]
