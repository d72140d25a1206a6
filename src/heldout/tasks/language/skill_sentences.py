"""A world of 20 language skills in 5 categories, whose every use in a sentence a rule can tell.

Sentences say that somebody will do something to a thing, in the words of one topic: "baker will knead dough .". A skill
is a way to say it, not a word: it repeats the verb, turns the sentence into a question, compares the thing with
another. Each has its place in the sentence and its words from the topic, so all of them fit into one sentence, but not
as they stand alone: a question about reported speech turns the report around ("will miller say that baker will knead
dough ?"), and what ends as it begins repeats the reporter. What two skills of one place look like together no sentence
with one of them shows.

Source: the world of the reproduction of arXiv:2409.19808; a construction of our own.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from heldout.data import LanguageSkill, SkillCombination
from heldout.errors import check_at_least, check_fields, check_fraction, check_nonempty, check_one_of, checked
from heldout.measure import SkillRules


class _Words(NamedTuple):
    agents: tuple[str, ...]
    things: tuple[str, ...]
    verbs: tuple[str, ...]
    place: str


def _words(line: str) -> _Words:
    agents, things, verbs, place = (tuple(part.split()) for part in line.split("|"))
    return _Words(agents, things, verbs, place[0])


_TOPICS = {
    "bread": _words("baker miller cook|dough flour loaf|knead grind roast|kitchen"),
    "sea": _words("sailor pilot fisher|anchor sail net|drop hoist cast|harbour"),
    "law": _words("judge lawyer witness|verdict oath case|read swear argue|court"),
    "garden": _words("gardener florist botanist|rose hedge seed|water trim plant|greenhouse"),
    "music": _words("singer drummer composer|song rhythm chord|sing beat compose|concert"),
    "war": _words("soldier captain scout|sword flag fort|draw raise storm|battlefield"),
    "school": _words("teacher pupil tutor|lesson essay riddle|teach write solve|classroom"),
    "farm": _words("farmer shepherd milker|cow wool hay|milk shear stack|barn"),
    "theatre": _words("actor dancer director|scene mask curtain|rehearse wear open|stage"),
    "medicine": _words("doctor nurse surgeon|wound fever bandage|heal cool change|hospital"),
    "mine": _words("miner digger smelter|coal ore tunnel|hew melt dig|quarry"),
    "trade": _words("merchant banker clerk|coin silk ledger|count buy sign|market"),
}
_KINDS = {"A": "agents", "T": "things", "V": "verbs"}
_CLASS = {
    word: (kind, topic)
    for topic, words in _TOPICS.items()
    for kind, members in (("A", words.agents), ("T", words.things), ("V", words.verbs), ("P", (words.place,)))
    for word in members
}

# name: (category, definition, example)
_SKILLS = {
    "epizeuxis": ("repetition", "says the verb twice in a row", "baker will knead knead dough ."),
    "diacope": ("repetition", "says the subject again after a word", "baker , yes baker , will knead dough ."),
    "anadiplosis": ("repetition", "takes the object up again", "baker will knead dough , dough that will roast ."),
    "epanalepsis": ("repetition", "ends as the main clause begins", "baker will knead dough , baker ."),
    "antithesis": ("contrast", "says what is not meant first", "baker will knead not loaf but dough ."),
    "litotes": ("contrast", "denies", "baker will never knead dough ."),
    "comparison": ("contrast", "ranks the object above another", "baker will knead more dough than flour ."),
    "concession": ("contrast", "admits what speaks against it", "baker will knead dough though miller grind ."),
    "question": ("voice", "asks it", "will baker knead dough ?"),
    "apostrophe": ("voice", "turns to somebody first", "o cook , baker will knead dough ."),
    "report": ("voice", "lets another one say it", "miller will say that baker will knead dough ."),
    "parenthesis": ("voice", "puts something in between", "baker ( miller grind ) will knead dough ."),
    "cause": ("reasoning", "gives a reason", "baker will knead dough because cook roast ."),
    "purpose": ("reasoning", "gives an aim", "baker will knead dough to roast loaf ."),
    "condition": ("reasoning", "gives a condition first", "if miller grind , baker will knead dough ."),
    "sequence": ("reasoning", "tells what comes after it", "baker will knead dough before cook roast ."),
    "simile": ("figure", "compares it with another thing", "baker will knead dough like loaf of kitchen ."),
    "setting": ("figure", "says where it is", "baker will knead dough in kitchen ."),
    "hyperbole": ("figure", "makes the object many", "baker will knead thousand dough ."),
    "apposition": ("figure", "says who the subject is", "baker , cook of kitchen , will knead dough ."),
}  # fmt: skip

# A sentence with its content words told by their kind: "A:baker will V:knead T:dough .". Parts that may stand in any
# order are read as one and told apart afterwards; each may be there once.
_FRONTS = {"apostrophe": r"o A:\w+ , ", "condition": r"if A:\w+ V:\w+ , "}
_BESIDE_SUBJECT = {
    "diacope": r", yes (?P=subject) , ", "parenthesis": r"\( A:\w+ V:\w+ \) ", "apposition": r", A:\w+ of P:\w+ , ",
}  # fmt: skip
_TAILS = {
    "concession": r" though A:\w+ V:\w+", "cause": r" because A:\w+ V:\w+", "purpose": r" to V:\w+ T:\w+",
    "sequence": r" before A:\w+ V:\w+", "simile": r" like T:\w+ of P:\w+", "setting": r" in P:\w+",
}  # fmt: skip


def _any_of(parts: dict[str, str]) -> str:
    return "(?:" + "|".join(parts.values()) + ")*"


_REST = (
    r"(?P<litotes>never )?(?P<verb>V:\w+)(?P<epizeuxis> (?P=verb))?(?P<antithesis> not T:\w+ but)?"
    r"(?P<comparison> more)?(?P<hyperbole> thousand)? (?P<object>T:\w+)(?P<than> than T:\w+)?"
    rf"(?P<anadiplosis> , (?P=object) that will V:\w+)?(?P<tails>{_any_of(_TAILS)})"
    r"(?P<epanalepsis> , (?P<again>A:\w+))?"
)
_SUBJECT = rf"(?P<subject>A:\w+) (?P<beside>{_any_of(_BESIDE_SUBJECT)})"
_FORMS = [
    re.compile(rf"(?P<fronts>{_any_of(_FRONTS)})" + form)
    for form in (
        rf"(?P<report>(?P<reporter>A:\w+) will say that )?{_SUBJECT}will {_REST} \.",
        rf"(?P<question>will ){_SUBJECT}{_REST} \?",
        rf"(?P<question>will )(?P<report>(?P<reporter>A:\w+) say that ){_SUBJECT}will {_REST} \?",
    )
]


@functools.lru_cache(maxsize=100_000)
def _read(sentence: str) -> frozenset[str] | None:
    """The skills that a sentence shows; None: it is none of the grammar."""
    told = " ".join(f"{_CLASS[word][0]}:{word}" if word in _CLASS else word for word in sentence.split())
    match = next((found for form in _FORMS if (found := form.fullmatch(told))), None)
    if match is None:
        return None
    groups = match.groupdict()
    if (groups["comparison"] is None) != (groups["than"] is None):
        return None
    shown = {name for name in _SKILLS if groups.get(name)}
    for part, kinds in (("fronts", _FRONTS), ("beside", _BESIDE_SUBJECT), ("tails", _TAILS)):
        for name, form in kinds.items():
            times = len(re.findall(form.replace("(?P=subject)", groups["subject"]), groups[part]))
            if times > 1:
                return None
            shown |= {name} if times else set()
    if "epanalepsis" in shown and groups["again"] != (groups.get("reporter") or groups["subject"]):
        return None
    # What is another thing, or somebody else, is not the same: no "not dough but dough".
    others = re.findall(r"(?<=not )T:\w+(?= but)|(?<=than )T:\w+|(?<=like )T:\w+", told)
    if groups["object"] in others or groups.get("reporter") == groups["subject"]:
        return None
    return frozenset(shown)


def _split(text: str) -> list[str]:
    """The sentences of a text, with what it ends with unfinished."""
    return [part.strip() for part in re.findall(r"[^.?]*[.?]|[^.?]+$", text) if part.strip()]


def _shows(name: str, text: str, topic: str) -> bool:
    """Whether some sentence in the words of the topic shows a skill."""
    for sentence in _split(text):
        found = _read(sentence)
        if found is not None and name in found and _in_topic(sentence, topic):
            return True
    return False


def _in_topic(text: str, topic: str) -> bool:
    topics = [_CLASS[word][1] for word in text.split() if word in _CLASS]
    return bool(topics) and all(each == topic for each in topics)


def _sensible(text: str, topic: str) -> bool:
    sentences = _split(text)
    return bool(sentences) and all(_read(sentence) is not None for sentence in sentences)


def _count(text: str) -> int:
    return len(_split(text))


SENTENCE_SKILLS = tuple(
    LanguageSkill(name, definition, example, functools.partial(_shows, name), category)
    for name, (category, definition, example) in _SKILLS.items()
)
"""20 skills, four of each of 5 categories: repetition, contrast, voice, reasoning, figure."""

SENTENCE_TOPICS = tuple(_TOPICS)
"""12 topics of 10 words each: three who act, three things, three verbs and a place."""

SENTENCE_RULES = SkillRules(on_topic=_in_topic, makes_sense=_sensible, sentences=_count)
"""All content words are of the topic; every sentence is one of the grammar."""

HELD_OUT_CATEGORIES = ("reasoning", "figure")


class SkillSplit(NamedTuple):
    """What is combined in training, and what is not.

    Attributes:
        train, held_out: skills, of different categories.
        train_topics, held_out_topics: topics.

    Example:
        >>> split = split_skills(SENTENCE_SKILLS, SENTENCE_TOPICS, HELD_OUT_CATEGORIES)
        >>> {skill.category for skill in split.held_out} == set(HELD_OUT_CATEGORIES)
        True
        >>> set(split.train_topics) & set(split.held_out_topics)
        set()
    """

    train: tuple[LanguageSkill, ...]
    held_out: tuple[LanguageSkill, ...]
    train_topics: tuple[str, ...]
    held_out_topics: tuple[str, ...]


@checked
def split_skills(
    skills: Sequence[LanguageSkill], topics: Sequence[str], held_out: Sequence[str], *, seed: int = 0
) -> SkillSplit:
    """Returns skills split by category, and topics split in halves at random.

    Args:
        skills: with categories.
        topics: at least two.
        held_out: categories.
        seed: of the halves.

    Raises:
        ValueError: a category that no skill has, one half empty, names that are on both sides.

    Example:
        >>> split = split_skills(SENTENCE_SKILLS, SENTENCE_TOPICS, ["reasoning", "figure"])
        >>> len(split.train), len(split.held_out), len(split.train_topics)
        (12, 8, 6)
    """
    check_nonempty(skills=skills, held_out=held_out)
    check_at_least(0, seed=seed)
    known = {skill.category for skill in skills}
    if unknown := [each for each in held_out if each not in known]:
        raise ValueError(f"held_out must be categories of the skills, got {unknown[0]!r}")
    if len(topics) < 2:
        raise ValueError(f"topics must be at least 2, to be split, got {len(topics)}")
    train = tuple(skill for skill in skills if skill.category not in held_out)
    rest = tuple(skill for skill in skills if skill.category in held_out)
    if not train:
        raise ValueError("held_out must leave a category to train on")
    if both := {skill.name for skill in train} & {skill.name for skill in rest}:
        raise ValueError(f"skills must not be trained on and held out, got {both.pop()!r} in two categories")
    shuffled = random.Random(seed).sample(list(topics), len(topics))
    half = len(shuffled) // 2
    return SkillSplit(train, rest, tuple(shuffled[:half]), tuple(shuffled[half:]))


@checked
def write_sentence(skills: Sequence[str], topic: str, *, seed: int = 0) -> str:
    """Returns a sentence about a topic that shows these skills and no other.

    Args:
        skills: names of any of ``SENTENCE_SKILLS``, also none.
        topic: one of ``SENTENCE_TOPICS``.
        seed: of its words, and of the order of what may stand in any.

    Raises:
        ValueError: another skill or topic, or one twice.

    Example:
        >>> write_sentence(["question", "litotes"], "bread")
        'will miller never grind dough ?'
    """
    check_at_least(0, seed=seed)
    _check_known(skills, topic)
    return _written(skills, topic, random.Random(seed))


@dataclass(frozen=True)
class SkillWriter:
    """Writes texts for ``SENTENCE_SKILLS`` that have all points, as a language model of another kind would.

    Args:
        sentences: how skills are spread: "few" puts them into at least one sentence and at most as many as the limit
            allows; "each" gives each its own, which is one too many where there are two or more.
        slips: share of the texts that leave out a skill, as a real writer does.

    Example:
        >>> asked = SkillCombination(SENTENCE_SKILLS[8:10], "bread")
        >>> SkillWriter().write(asked, seed=1)
        'o cook , will miller grind loaf ?'
        >>> SkillWriter("each").write(asked, seed=1)
        'will miller grind flour ? o baker , miller will knead dough .'
    """

    sentences: str = "few"
    slips: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_one_of(["few", "each"], sentences=self.sentences)
        check_fraction(slips=self.slips)

    @checked
    def write(self, combination: SkillCombination, *, seed: int = 0) -> str:
        """Returns a text.

        Raises:
            ValueError: other skills than ``SENTENCE_SKILLS``, one twice, or another topic.
        """
        check_at_least(0, seed=seed)
        names = [skill.name for skill in combination.skills]
        _check_known(names, combination.topic)
        rng = random.Random(seed)
        groups: list[list[str]] = [[]]
        if names:
            count = combination.k if self.sentences == "each" else rng.randint(1, combination.limit)
            shuffled = rng.sample(names, len(names))
            groups = [[name] for name in shuffled[:count]]
            for name in shuffled[count:]:
                rng.choice(groups).append(name)
            if rng.random() < self.slips:
                group = rng.choice(groups)
                group.remove(rng.choice(group))
        return " ".join(_written(group, combination.topic, rng) for group in groups)


def _check_known(skills: Sequence[str], topic: str) -> None:
    if topic not in _TOPICS:
        raise ValueError(f"topic must be one of SENTENCE_TOPICS, got {topic!r}")
    if unknown := [name for name in skills if name not in _SKILLS]:
        raise ValueError(f"skills must be names of SENTENCE_SKILLS, got {unknown[0]!r}")
    if len(set(skills)) < len(skills):
        raise ValueError(f"skills must be different, got {', '.join(skills)}")


def _written(skills: Sequence[str], topic: str, rng: random.Random) -> str:
    words, asked = _TOPICS[topic], set(skills)
    subject = rng.choice(words.agents)
    verb, thing = rng.choice(words.verbs), rng.choice(words.things)

    def agent() -> str:
        return rng.choice([each for each in words.agents if each != subject])

    def another() -> str:
        return rng.choice([each for each in words.things if each != thing])

    def act() -> str:
        return rng.choice(words.verbs)

    def some(parts: dict[str, str]) -> list[str]:
        """The parts that are asked for, in any order."""
        present = [part for name, part in parts.items() if name in asked]
        return rng.sample(present, len(present))

    out = some({"apostrophe": f"o {agent()} ,", "condition": f"if {agent()} {act()} ,"})
    reporter = agent() if "report" in asked else None
    if "question" in asked:
        out.append("will")
    if reporter:
        out.append(f"{reporter} say that" if "question" in asked else f"{reporter} will say that")
    out.append(subject)
    out += some({
        "diacope": f", yes {subject} ,",
        "parenthesis": f"( {agent()} {act()} )",
        "apposition": f", {agent()} of {words.place} ,",
    })  # fmt: skip
    if reporter or "question" not in asked:
        out.append("will")
    out += ["never"] * ("litotes" in asked) + [verb] * (1 + ("epizeuxis" in asked))
    if "antithesis" in asked:
        out.append(f"not {another()} but")
    out += ["more"] * ("comparison" in asked) + ["thousand"] * ("hyperbole" in asked) + [thing]
    if "comparison" in asked:
        out.append(f"than {another()}")
    if "anadiplosis" in asked:
        out.append(f", {thing} that will {act()}")
    out += some({
        "concession": f"though {agent()} {act()}",
        "cause": f"because {agent()} {act()}",
        "purpose": f"to {act()} {rng.choice(words.things)}",
        "sequence": f"before {agent()} {act()}",
        "simile": f"like {another()} of {words.place}",
        "setting": f"in {words.place}",
    })  # fmt: skip
    if "epanalepsis" in asked:
        out.append(f", {reporter or subject}")
    return " ".join([*out, "?" if "question" in asked else "."])
