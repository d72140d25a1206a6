"""Charts are drawn by another process: native drawing code may panic or abort, and must never cost a report.

One process draws all charts of a page. It is started with the first and ended when the page is made or this process
ends; one that dies or hangs is replaced for the next chart.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from heldout.study import exit_text

_PATIENCE = 120.0  # seconds that one chart may take
_PROGRAM = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import vl_convert
for line in sys.stdin:
    try:
        answer = {"svg": vl_convert.vegalite_to_svg(line, allowed_base_urls=[])}
    except BaseException as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), file=answers, flush=True)
"""


class DrawingError(Exception):
    """A chart cannot be drawn; the message says why, in one line."""


def draw(specification: Mapping[str, Any]) -> str:
    """The SVG of a Vega-Lite specification; nothing is loaded from elsewhere for it.

    Raises:
        DrawingError: it is no valid specification, or the drawing process died of it.

    Example:
        >>> draw({"mark": "point", "data": {"values": [{"x": 1}]}, "encoding": {}}).startswith("<svg")
        True
    """
    global _drawer
    try:
        line = json.dumps(specification)
    except (TypeError, ValueError, RecursionError) as error:
        raise DrawingError(f"it is no JSON: {error}") from None
    with _lock:
        if _drawer is None or _drawer.owner != os.getpid():
            _drawer = _Drawer()
        try:
            answer = _drawer.ask(line)
        except DrawingError:
            _drawer.end()
            _drawer = None
            raise
    if "error" in answer:
        lines = answer["error"].strip().splitlines()
        raise DrawingError(lines[0] if lines else "the drawing failed")
    return answer["svg"]


def stop_drawing() -> None:
    """Ends the drawing process, where there is one."""
    global _drawer
    with _lock:
        if _drawer is not None and _drawer.owner == os.getpid():
            _drawer.end()
        _drawer = None


class _Drawer:
    """The process that draws."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise DrawingError(f"the drawing process cannot be started: {error.strerror}") from None

    def ask(self, line: str) -> dict[str, str]:
        """What the process answers to a line; raises DrawingError when it does not."""
        given, taken = self._process.stdin, self._process.stdout
        assert given is not None
        assert taken is not None
        try:
            given.write(line.encode() + b"\n")
            given.flush()
            text, deadline = b"", time.monotonic() + _PATIENCE
            while not text.endswith(b"\n"):
                if os.name == "posix" and not select.select([taken], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    raise DrawingError(f"not drawn after {_PATIENCE:.0f} s")
                part = os.read(taken.fileno(), 1 << 20)
                if not part:
                    break
                text += part
            if text.endswith(b"\n"):
                return json.loads(text)
        except (OSError, ValueError):
            pass
        self._process.wait()
        raise DrawingError(f"the drawing process ended: {exit_text(self._process.returncode)}")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


_drawer: _Drawer | None = None
_lock = threading.Lock()
atexit.register(stop_drawing)
