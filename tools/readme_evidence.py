"""Writes EVIDENCE.md, and the README's table and counts, from evidence/*.json: python tools/readme_evidence.py"""

import re
from pathlib import Path

from heldout.catalog import claim_counts, evidence, ledger, outdated, systems
from heldout.report import VERDICT_SIGN, cell
from heldout.study import changed_verdicts
from heldout.study.evidence import RECORDING_SEEDS

ROOT = Path(__file__).parents[1]
START, END = "<!-- evidence: made by tools/readme_evidence.py -->", "<!-- end of evidence -->"
SIGNS = {verdict: f"{sign} {verdict}" for verdict, sign in VERDICT_SIGN.items()}


def recorded() -> dict[str, dict]:
    """Returns the evidence of the built systems, by slug."""
    found = {slug: evidence(slug) for slug, system in systems().items() if system.built}
    return {slug: document for slug, document in found.items() if document}


def summary() -> str:
    """Returns the Markdown table of the verdicts' counts by system, and how its recordings were made."""
    lines = ["| system | paper | ✅ | ➖ | ❌ | recorded |", "|---|---|---|---|---|---|"]
    for slug in recorded():
        counts = claim_counts(slug) or {}
        title = cell(systems()[slug].title)
        cells = " | ".join(str(counts[verdict] or "") for verdict in SIGNS)
        lines.append(f"| {slug} | {title} | {cells} | {history(slug)} |")
    return "\n".join(lines)


def history(slug: str) -> str:
    """Returns how often a study was recorded, on which seeds the newest time, and how many verdicts changed."""
    recordings = (ledger(slug) or {})["recordings"]
    fresh = min(recordings[-1]["seeds"]) >= RECORDING_SEEDS.start
    texts = [f"{len(recordings)} ×", f"{len(recordings[-1]['seeds'])} {'fresh' if fresh else 'early'} seeds"]
    if slug in outdated():
        texts.append("of an earlier version")
    if changed := len(changed_verdicts(ledger(slug) or {})):
        texts.append(f"{changed} verdict{'s' * (changed > 1)} changed")
    return ", ".join(texts)


def table() -> str:
    """Returns the Markdown table of every recorded claim."""
    lines = ["| system | claim at laptop scale | estimate [95 % interval] | verdict |", "|---|---|---|---|"]
    for slug, document in recorded().items():
        for claim, sign in [*((c, None) for c in document["claims"]), *((c, "check") for c in document["checks"])]:
            interval = "" if claim["low"] is None else f" [{claim['low']:.3g}, {claim['high']:.3g}]"
            estimate = "" if claim["estimate"] is None else f"{claim['estimate']:.3g}"
            text = cell(claim["text"])
            verdict = SIGNS.get(claim["verdict"], claim["verdict"])
            verdict = f"check: {verdict.split()[-1]}" if sign else verdict
            verdict += " (earlier version)" if document["outdated"] else ""
            lines.append(f"| {slug} | {text} | {estimate}{interval} | {verdict} |")
    return "\n".join(lines)


def readme(text: str) -> str:
    """Returns the README with today's table and counts."""
    built, total = sum(system.built for system in systems().values()), len(systems())
    unrecorded = built - len(recorded())
    before, rest = text.split(START)
    text = f"{before}{START}\n{summary()}\n{END}{rest.split(END)[1]}"
    text = re.sub(r"\d+ of \d+ systems are built", f"{built} of {total} systems are built", text)
    told = f"{unrecorded} of them without recorded evidence yet" if unrecorded else "all with recorded evidence"
    text = re.sub(r"\((\d+ of them without recorded evidence yet|all with recorded evidence)\)", f"({told})", text)
    planned = f"{total - built} of the {total} systems in the catalog are planned"
    return re.sub(r"\d+ of the \d+ systems in the catalog are planned", planned, text)


HEAD = """# Evidence

Every row was recorded by `heldout reproduce SYSTEM --record`. "Holds" means that the 95 % interval over seeds lies
beyond the margin that the claim names; a check is what must be so by construction, and is not counted. Fresh seeds
(10,000 and up) follow from the study's digest: nobody had seen them when the study was written. The newest
recording of every system is of that kind; the first ones used the seeds 0, 1, 2, ... and stay beside them. Nothing is
removed from a ledger (`evidence/SYSTEM.json`). What a claim tests, how it was tuned and why it may not hold is told
in `evidence/SYSTEM.md` or in the docstring of the system's file in
`src/heldout/reproductions/`. "Of an earlier version" is a recording whose study has changed since: its rows are what
that version showed.

"""


def main() -> None:
    file = ROOT / "README.md"
    file.write_text(readme(file.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "EVIDENCE.md").write_text(HEAD + table() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
