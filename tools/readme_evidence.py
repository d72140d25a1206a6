"""Writes EVIDENCE.md, and the README's table and counts, from evidence/*.json: python tools/readme_evidence.py"""

import re
from collections import Counter
from pathlib import Path

from heldout.catalog import evidence, systems

ROOT = Path(__file__).parents[1]
START, END = "<!-- evidence: made by tools/readme_evidence.py -->", "<!-- end of evidence -->"
SIGNS = {"holds": "✅ holds", "inconclusive": "➖ inconclusive", "contradicted": "❌ contradicted"}


def recorded() -> dict[str, dict]:
    """Returns the evidence of the built systems, by slug."""
    found = {slug: evidence(slug) for slug, system in systems().items() if system.built}
    return {slug: document for slug, document in found.items() if document}


def summary() -> str:
    """Returns the Markdown table of the verdicts' counts by system."""
    lines = ["| system | paper | ✅ | ➖ | ❌ |", "|---|---|---|---|---|"]
    for slug, document in recorded().items():
        counts = Counter(claim["verdict"] for claim in document["claims"])
        title = systems()[slug].title.replace("|", "\\|")
        lines.append(f"| {slug} | {title} | " + " | ".join(str(counts[verdict] or "") for verdict in SIGNS) + " |")
    return "\n".join(lines)


def table() -> str:
    """Returns the Markdown table of every recorded claim."""
    lines = ["| system | claim at laptop scale | estimate [95 % interval] | verdict |", "|---|---|---|---|"]
    for slug, document in recorded().items():
        for claim in document["claims"]:
            interval = "" if claim["low"] is None else f" [{claim['low']:.3g}, {claim['high']:.3g}]"
            estimate = "" if claim["estimate"] is None else f"{claim['estimate']:.3g}"
            text = claim["text"].replace("|", "\\|")
            verdict = SIGNS.get(claim["verdict"], claim["verdict"])
            lines.append(f"| {slug} | {text} | {estimate}{interval} | {verdict} |")
    return "\n".join(lines)


def readme(text: str) -> str:
    """Returns the README with today's table and counts."""
    built, total = sum(system.built for system in systems().values()), len(systems())
    before, rest = text.split(START)
    text = f"{before}{START}\n{summary()}\n{END}{rest.split(END)[1]}"
    text = re.sub(r"\d+ of \d+ systems are built", f"{built} of {total} systems are built", text)
    planned = f"{total - built} of the {total} systems in the catalog are planned"
    return re.sub(r"\d+ of the \d+ systems in the catalog are planned", planned, text)


HEAD = """# Evidence

Every row was recorded by `heldout reproduce SYSTEM --record` on seeds that nothing was tuned on. "Holds" means that the
95 % interval over seeds lies beyond the margin that the claim names. What a claim tests, how it was tuned and why it
may not hold is told in the docstring of the system's file in `src/heldout/reproductions/`.

"""


def main() -> None:
    file = ROOT / "README.md"
    file.write_text(readme(file.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "EVIDENCE.md").write_text(HEAD + table() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
