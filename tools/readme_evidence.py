"""Writes the evidence table of the README from evidence/*.json: python tools/readme_evidence.py"""

from pathlib import Path

from heldout.catalog import evidence, systems

ROOT = Path(__file__).parents[1]
START, END = "<!-- evidence: made by tools/readme_evidence.py -->", "<!-- end of evidence -->"
SIGNS = {"holds": "✅ holds", "inconclusive": "➖ inconclusive", "contradicted": "❌ contradicted"}


def table() -> str:
    """Returns the Markdown table of every recorded claim."""
    lines = ["| system | claim at laptop scale | estimate [95 % interval] | verdict |", "|---|---|---|---|"]
    for slug, system in systems().items():
        recorded = evidence(slug) if system.built else None
        for claim in recorded["claims"] if recorded else ():
            interval = "" if claim["low"] is None else f" [{claim['low']:.3g}, {claim['high']:.3g}]"
            estimate = "" if claim["estimate"] is None else f"{claim['estimate']:.3g}"
            text = claim["text"].replace("|", "\\|")
            lines.append(
                f"| {slug} | {text} | {estimate}{interval} | {SIGNS.get(claim['verdict'], claim['verdict'])} |"
            )
    return "\n".join(lines)


def main() -> None:
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{START}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
