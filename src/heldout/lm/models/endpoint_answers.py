"""What the answers of OpenAI-compatible servers say, none of it believed unchecked; keys out of what is told."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_ENDED = {"eos", "eos_token", "stop_sequence", "end_turn", "stop_token"}
_SECRET = re.compile(r"api[-_]?key|authorization|secret|password|bearer|(^|_)token$", re.IGNORECASE)
_FULL = {"max_tokens", "max_length", "model_length", "max_output_tokens"}


def text_of(choice: Mapping[str, Any]) -> str:
    """What a choice says: nothing, where a server lawfully says nothing; the texts of a list of parts."""
    said = (choice["message"] or {}).get("content") if "message" in choice else choice["text"]
    if isinstance(said, list):
        said = "".join(part.get("text") or "" for part in said if part.get("type", "text") in ("text", "output_text"))
    if said is not None and not isinstance(said, str):
        raise TypeError("a completion without text")
    return said or ""


_ID = re.compile(r"(token_id:)?\d+")  # in place of a token's text


def reason_of(choice: Mapping[str, Any]) -> str:
    """Returns why a completion ended: "stop" or "length" under every server's word, else its own word."""
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or not reason or reason.lower() in _ENDED:
        return "stop"
    return "length" if reason.lower() in _FULL else reason


def usage_in(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """Tokens read and written, or None unless the answer tells them as numbers that can be."""
    usage = answer.get("usage")
    if not isinstance(usage, Mapping):
        return None
    counts = [usage.get("prompt_tokens", 0), usage.get("completion_tokens")]
    if not any(counts) or not all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts):
        return None
    return counts[0], counts[1]


def echoed_score(choice: Mapping[str, Any], text: str, start: int) -> float:
    """Returns the log likelihood of ``text[start:]``, after checking that the log probabilities are about the text.

    Raises:
        ValueError: what the server says does not fit the text that was sent.
    """
    found = choice.get("logprobs") or {}
    values, places, tokens = found.get("token_logprobs"), found.get("text_offset"), found.get("tokens")
    if not values or not places:
        raise ValueError("it gives no log probabilities of what it read")
    echoed = choice.get("text")
    if not isinstance(echoed, str) or not echoed.startswith(text):
        raise ValueError("it does not echo the text that was sent")
    if len(values) != len(places) or any(type(p) is not int for p in places) or places != sorted(places) or places[0]:
        raise ValueError("its text_offset does not follow the text")
    ends = [*places[1:], len(echoed)]
    if places[-1] > len(echoed) or (len(echoed) > len(text) and places[-1] != len(text)):  # one token is written
        raise ValueError("its text_offset does not follow the text")
    if tokens is not None and not all(_ID.fullmatch(str(token)) for token in tokens):
        wide = [(str(token), low) for token, low, high in zip(tokens, places, ends, strict=False) if high > low]
        if len(tokens) != len(values) or "".join(token for token, _ in wide) != echoed:  # "\ufffd" for parts of letters
            raise ValueError("its tokens do not make up the text, so that its text_offset cannot be checked")
        read = 0
        for token, place in wide:
            if place != read:
                raise ValueError("its text_offset does not follow its tokens")
            read += len(token)
    inside = [
        value
        for value, low, high in zip(values, places, ends, strict=True)
        if low < len(text) and high > max(start, low)
    ]
    if not inside or any(not isinstance(v, int | float) or not math.isfinite(v) or v > 1e-6 for v in inside):
        raise ValueError("it gives no log probability of the continuation")
    return float(sum(inside))


def before_stop(text: str, stop: Sequence[str]) -> str:
    """Returns a text up to the first stop string."""
    for end in stop:
        text = text.split(end)[0]
    return text


def pause_of(header: str | None) -> float | None:
    """The pause that a server asks for, in seconds or as the date when it ends."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def forms_of_key(key: str) -> re.Pattern[str]:
    """Returns what finds a key: as it stands, with letters as escapes of JSON or of addresses, and in base64."""
    letters = "".join(f"(?:{re.escape(c)}|(?i:\\\\u{ord(c):04x}|%{ord(c):02x}|&#{ord(c)};))" for c in key)
    encoded = [base64.b64encode(before + key.encode()).decode().rstrip("=") for before in (b"", b":", b"Bearer ")]
    return re.compile("|".join([letters, *(re.escape(form) + "=*" for form in encoded)]))


def without_secrets(value: Any, key: str | None) -> Any:
    """Returns options without what looks like a key, by its name or because it is the key."""
    if isinstance(value, Mapping):
        return {n: "***" if _SECRET.search(str(n)) else without_secrets(v, key) for n, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, key) for item in value]
    return forms_of_key(key).sub("***", value) if key and isinstance(value, str) else value
