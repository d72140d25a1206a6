"""Speed of the grammars: all 20,910 commands of SCAN, and as many pairs of the other two, made and interpreted.

Limit: 2 seconds of processor time for making each set; the interpreters are printed beside.
"""

import time
from collections.abc import Callable
from typing import Any

from heldout.tasks import ScanGrammar, SentenceForms, StringEdits

LIMIT, SIZE = 2.0, 20_910


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def main() -> int:
    ok = True
    scan = ScanGrammar()
    sets: dict[str, tuple[Any, Callable[[], Any]]] = {
        "all SCAN commands": (scan, lambda: list(ScanGrammar().pairs())),
        "SCAN commands in random order": (scan, lambda: ScanGrammar().sample(SIZE, seed=0)),
        "PCFG string edits": (edits := StringEdits(), lambda: edits.sample(SIZE, seed=0)),
        "sentences with logical forms": (forms := SentenceForms(), lambda: forms.sample(SIZE, seed=0)),
    }
    for name, (grammar, make) in sets.items():
        seconds, pairs = min((timed(make) for _ in range(3)), key=lambda found: found[0])
        read, right = timed(lambda g=grammar, p=pairs: all(g.interpret(source) == target for source, target in p))
        fine = seconds <= LIMIT and right and len(pairs) == SIZE
        ok &= fine
        print(f"{len(pairs)} {name}: {seconds:.2f} s (limit {LIMIT:g}), interpreted in {read:.2f} s: "
              f"{'as stored' if right else 'DIFFERENTLY'}")  # fmt: skip
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
