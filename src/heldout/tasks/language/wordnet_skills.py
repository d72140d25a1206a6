"""Six language skills that rules can tell in English sentences, about kinds of things from WordNet.

A topic is a noun of WordNet, such as "bird"; its words are the kinds of it, such as "robin". The sentences are plain
English, for models that were trained on it. Source: after arXiv:2310.17567; skills, rules and sentences are ours.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from heldout.data import LanguageSkill, SkillCombination
from heldout.errors import check_at_least, check_nonempty, checked
from heldout.measure import SkillRules, count_sentences
from heldout.tasks.language.wordnet import Synset, wordnet_nouns

WORDNET_SKILL_TOPICS = (
    "bird", "fish", "fruit", "vegetable", "tree", "garment", "vehicle", "tool", "insect", "weapon", "dog", "furniture",
)  # fmt: skip

# The patterns have the article once: "not a robin but a wren", "like an owl".
_A = r"(?:an?|the)"
_SKILLS = {
    "rhetorical question": ("asks what it means to say", "Is it true that the robin is small?", r"\?"),
    "antithesis": (
        "denies one thing to say another",
        "It is not a robin but a wren.",
        rf"\bnot {_A} (\w+) but {_A} (?!\1\b)\w+",
    ),
    "simile": ("compares with something by like", "It is like a wren.", rf"\blike {_A} \w+"),
    "causal clause": ("gives a reason by because", "It sings because the owl is near.", rf"\bbecause {_A} \w+ \w+"),
    "reported speech": ("lets others say it", "People say that it sings.", r"\bsay that \w+ \w+"),
    "epizeuxis": ("says a thing twice in a row", "The robin, the robin, is small.", rf"\b({_A} \w+), \1\b"),
}


@checked
def wordnet_skill_topics(
    topics: Sequence[str] = WORDNET_SKILL_TOPICS, *, most: int = 40, folder: str | Path | None = None
) -> dict[str, tuple[str, ...]]:
    """Returns the words of each topic: single words of 3 to 10 letters for its kinds, the nearest kinds first.

    A word that two topics have is of neither.

    Args:
        topics: nouns of WordNet, each in its first meaning that has kinds.
        most: words of each.
        folder: of npm archives; default: ``heldout.sources.data_folder()``.

    Raises:
        SourceError: the package is not there, or is another; the message names the command.
        ValueError: a topic that is no noun with kinds.

    Example:
        >>> wordnet_skill_topics(["bird", "tool"])["tool"][:2]  # doctest: +SKIP
        ('abrader', 'bender')
    """
    check_nonempty(topics=topics)
    check_at_least(1, most=most)
    return kinds_of(wordnet_nouns(folder), topics, most)


@checked
def kinds_of(nouns: Mapping[str, Synset], topics: Sequence[str], most: int) -> dict[str, tuple[str, ...]]:
    """Returns the words for the kinds of each topic, from nouns as ``wordnet_nouns`` has them.

    Args:
        nouns, topics, most: as for ``wordnet_skill_topics``.

    Raises:
        ValueError: a topic that is no noun with kinds.

    Example:
        >>> nouns = {"1": Synset(("bird",), "", (("~", "2"),)), "2": Synset(("robin", "red robin"), "", ())}
        >>> kinds_of(nouns, ["bird"], 5)
        {'bird': ('robin',)}
    """
    check_nonempty(nouns=nouns, topics=topics)
    check_at_least(1, most=most)
    found: dict[str, list[str]] = {}
    for topic in topics:
        named = [key for key, noun in nouns.items() if noun.words[:1] == (topic,)]
        root = next((key for key in named if any(kind == "~" for kind, _ in nouns[key].links)), None)
        if root is None:
            raise ValueError(f"topics must be nouns that have kinds, got {topic!r}")
        words: dict[str, None] = {}
        layer, seen = [root], {root}
        while layer:
            layer = [key for at in layer for kind, key in nouns[at].links if kind == "~" and key in nouns]
            layer = [key for key in dict.fromkeys(layer) if key not in seen]
            seen |= set(layer)
            words |= dict.fromkeys(w for key in layer for w in nouns[key].words if re.fullmatch(r"[a-z]{3,10}", w))
        found[topic] = list(words)
    shared = {word for a in found for b in found if a != b for word in set(found[a]) & set(found[b])}
    return {topic: tuple([word for word in words if word not in shared][:most]) for topic, words in found.items()}


def _shows(pattern: str, text: str, topic: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


WORDNET_SKILLS = tuple(
    LanguageSkill(name, definition, example, functools.partial(_shows, pattern))
    for name, (definition, example, pattern) in _SKILLS.items()
)
"""Six skills, each told by a pattern of words."""


@checked
def wordnet_skill_rules(words: Mapping[str, Sequence[str]]) -> SkillRules:
    """Returns the rules for the other three points.

    On topic are texts with two different words of the topic or more, itself among them, and none of another. Sense is
    what rules can see of it: each sentence has 4 to 40 words, begins with a capital, ends with a mark and has an "is"
    or another of a few verbs.

    Args:
        words: of each topic.

    Raises:
        ValueError: no topics.

    Example:
        >>> rules = wordnet_skill_rules({"bird": ("robin", "wren"), "tool": ("saw",)})
        >>> rules.on_topic("The robin is beside the wren.", "bird"), rules.on_topic("The robin is a saw.", "bird")
        (True, False)
    """
    check_nonempty(words=words)
    topic_of = {word: topic for topic, members in words.items() for word in (topic, *members)}

    def on_topic(text: str, topic: str) -> bool:
        found = {word for word in re.findall(r"[a-z]+", text.lower()) if word in topic_of}
        return len(found) >= 2 and all(topic_of[word] == topic for word in found)

    return SkillRules(on_topic, _plain_sentences, count_sentences)


def _plain_sentences(text: str, topic: str) -> bool:
    sentences = re.findall(r"[^.!?]+[.!?]?", text.strip())
    if not sentences:
        return False
    for sentence in map(str.strip, sentences):
        words = re.findall(r"[a-z']+", sentence.lower())
        verbs = {"is", "are", "has", "have", "does", "do", "can", "will", "was", "were"} & set(words)
        if not (4 <= len(words) <= 40 and sentence[0].isupper() and sentence[-1] in ".!?" and verbs):
            return False
        if any(a == b for a, b in itertools.pairwise(words)):
            return False
    return True


@checked
def write_wordnet_skills(
    combination: SkillCombination, words: Mapping[str, Sequence[str]], *, each: bool = False, seed: int = 0
) -> str:
    """Returns a text with all points for skills of ``WORDNET_SKILLS``.

    Args:
        combination: skills and a topic.
        words: of the topics, six or more of this one.
        each: give each skill a sentence of its own; default: at most as many sentences as the limit allows.
        seed: of words and order.

    Raises:
        ValueError: another skill or topic, or too few words.

    Example:
        >>> asked = SkillCombination(WORDNET_SKILLS[1:3], "bird")
        >>> write_wordnet_skills(asked, {"bird": ("robin", "wren", "owl", "lark", "finch", "crow")}, seed=1)
        'The lark is not a crow but a finch and is like an owl.'
    """
    check_at_least(0, seed=seed)
    check_nonempty(combination=combination.skills)
    names = [skill.name for skill in combination.skills]
    if unknown := [name for name in names if name not in _SKILLS]:
        raise ValueError(f"combination must have skills of WORDNET_SKILLS, got {unknown[0]!r}")
    known = list(words.get(combination.topic, ()))
    if len(known) < 6:
        raise ValueError(f"words must have 6 or more of topic {combination.topic!r}, got {len(known)}")
    rng = random.Random(seed)
    shuffled = rng.sample(names, len(names))
    count = len(names) if each else rng.randint(1, combination.limit)
    groups = [{name} for name in shuffled[:count]]
    for name in shuffled[count:]:
        rng.choice(groups).add(name)
    return " ".join(_sentence(group, known, rng) for group in groups)


def _sentence(asked: set[str], words: Sequence[str], rng: random.Random) -> str:
    subject, *others = rng.sample(list(words), 6)
    a, b, c, d, _ = (f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in others)
    out = "is it true that " if "rhetorical question" in asked else ""
    out += "people say that " if "reported speech" in asked else ""
    out += f"the {subject}, the {subject}, " if "epizeuxis" in asked else f"the {subject} "
    out += f"is not {a} but {b}" if "antithesis" in asked else f"is beside {b}"
    out += f" and is like {c}" if "simile" in asked else ""
    out += f" because {d} is near" if "causal clause" in asked else ""
    return out[0].upper() + out[1:] + ("?" if "rhetorical question" in asked else ".")
