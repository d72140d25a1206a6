"""Skills in English sentences about kinds of things: rules, words and texts."""

import random

import pytest

from heldout.data import LanguageSkill, SkillCombination, skill_combinations
from heldout.measure import grade_skill_points
from heldout.sources import WORDNET, missing
from heldout.tasks import (
    WORDNET_SKILL_TOPICS,
    WORDNET_SKILLS,
    Synset,
    kinds_of,
    wordnet_skill_rules,
    wordnet_skill_topics,
    write_wordnet_skills,
)

WORDS = {
    "bird": ("robin", "wren", "owl", "lark", "finch", "crow", "emu"),
    "tool": ("saw", "axe", "rake", "file", "hoe", "plane"),
}
RULES = wordnet_skill_rules(WORDS)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_texts_show_what_was_asked_for_and_lose_one_point_for_each_fault(k):
    for number, asked in enumerate(skill_combinations(WORDNET_SKILLS, list(WORDS), k, 2, seed=k) * 10):
        text = write_wordnet_skills(asked, WORDS, seed=number)
        assert grade_skill_points(text, asked, RULES).full, text
        shown = {skill.name for skill in WORDNET_SKILLS if skill.check(text, asked.topic)}
        assert shown == asked.names
        spread = write_wordnet_skills(asked, WORDS, each=True, seed=number)
        assert grade_skill_points(spread, asked, RULES) == ((True,) * k, True, True, k == 1)
        other = next(topic for topic in WORDS if topic != asked.topic)
        strayed = grade_skill_points(text, SkillCombination(asked.skills, other), RULES)
        assert strayed == ((True,) * k, False, True, True)


def test_examples_show_their_skill():
    for skill in WORDNET_SKILLS:
        assert skill.check(skill.example, "bird")


def test_nothing_is_denied_to_say_the_same():
    antithesis = WORDNET_SKILLS[1]
    assert antithesis.check("It is not a wren but the robin.", "bird")
    assert antithesis.check("It is not a wren but a wrentit.", "bird")
    assert not antithesis.check("It is not a wren but the wren.", "bird")


@pytest.mark.parametrize(
    "text",
    [
        "the robin is beside the wren.",
        "The robin is beside the wren",
        "The robin.",
        "The robin flew past the wren.",
        "The robin is is beside the wren.",
        "",
    ],
)
def test_what_is_no_plain_sentence_makes_no_sense(text):
    assert not RULES.makes_sense(text, "bird")


def test_a_text_is_on_topic_by_two_words_and_none_of_another_topic():
    assert RULES.on_topic("A robin and a wren.", "bird")
    assert RULES.on_topic("The bird is a robin.", "bird")
    assert not RULES.on_topic("A robin.", "bird")
    assert not RULES.on_topic("A robin and the robin.", "bird")
    assert not RULES.on_topic("A robin, a wren and an axe.", "bird")


def test_kinds_are_those_of_all_depths_without_shared_words():
    links = {"a": "bcd", "b": "e", "c": "", "d": "", "e": "", "f": "d", "g": ""}
    words = {"a": "top", "b": "robin", "c": "red robin", "d": "shared", "e": "wren", "f": "other", "g": "top"}
    nouns = {
        key: Synset((words[key],), "", tuple(("~", child) for child in children)) for key, children in links.items()
    }
    assert kinds_of(nouns, ["top", "other"], 9) == {"top": ("robin", "wren"), "other": ()}
    assert kinds_of(nouns, ["top"], 2) == {"top": ("robin", "shared")}
    with pytest.raises(ValueError, match="nouns that have kinds, got 'wren'"):
        kinds_of(nouns, ["wren"], 2)


def test_bad_requests_are_refused():
    asked = SkillCombination(WORDNET_SKILLS[:1], "bird")
    with pytest.raises(ValueError, match="6 or more of topic 'bird', got 1"):
        write_wordnet_skills(asked, {"bird": ("robin",)})
    with pytest.raises(ValueError, match="got 'pun'"):
        write_wordnet_skills(SkillCombination((LanguageSkill("pun"),), "bird"), WORDS)
    with pytest.raises(ValueError, match="words must not be empty"):
        wordnet_skill_rules({})


@pytest.mark.skipif(bool(missing([WORDNET])), reason="WordNet is not installed")
def test_wordnet_has_forty_words_of_each_topic_and_none_of_two():
    words = wordnet_skill_topics()
    assert list(words) == list(WORDNET_SKILL_TOPICS)
    assert {len(members) for members in words.values()} == {40}
    assert len({word for members in words.values() for word in members}) == 480
    asked = SkillCombination(WORDNET_SKILLS[:3], random.Random(0).choice(WORDNET_SKILL_TOPICS))
    assert grade_skill_points(write_wordnet_skills(asked, words), asked, wordnet_skill_rules(words)).full
