"""Streams of APIs that are parsed once and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from heldout.errors import checked
from heldout.sources import cache_folder, computed_once
from heldout.tasks.language.api_stream import ApiFunction, ApiStream, CallSite, api_stream, sources_digest

_VERSION = 1  # raised when the way a stream is made changes


@checked
def kept_api_stream(
    sources: Mapping[str, str], groups: Mapping[str, Sequence[str]], *, val: float = 0.1, test: float = 0.2
) -> ApiStream:
    """Returns ``api_stream`` of the same arguments, from the cache or anew.

    Parsing takes about 3 seconds for each million characters, reading a tenth of that. What is kept is told apart by
    the sources themselves, the groups and the shares.

    Raises:
        ValueError: as ``api_stream``.

    Example:
        >>> stream = kept_api_stream(python_sources("json"), {"re": ["re"]})  # doctest: +SKIP
    """
    told = json.dumps([_VERSION, sources_digest(sources), list(groups.items()), val, test])

    def parsed() -> Any:
        made = api_stream(sources, groups, val=val, test=test)
        return made.pretrain, {
            group: {part: [(f.file, f.text, list(map(astuple, f.calls))) for f in some] for part, some in parts.items()}
            for group, parts in made.tasks.items()
        }

    name = hashlib.sha256(told.encode()).hexdigest()[:32]
    pretrain, tasks = computed_once(cache_folder() / "streams" / f"{name}.pt", parsed)
    return ApiStream(
        pretrain,
        {
            group: {
                part: [ApiFunction(file, text, tuple(CallSite(*c) for c in calls), group) for file, text, calls in some]
                for part, some in parts.items()
            }
            for group, parts in tasks.items()
        },
    )
