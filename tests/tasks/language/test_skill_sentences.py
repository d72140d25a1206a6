"""The world of 20 skills: what is written shows what was asked for, and what is left out is missed."""

import random

import pytest

from heldout.data import LanguageSkill, SkillCombination
from heldout.measure import grade_skill_points, grade_skill_text
from heldout.tasks import (
    HELD_OUT_CATEGORIES,
    SENTENCE_RULES,
    SENTENCE_SKILLS,
    SENTENCE_TOPICS,
    SkillWriter,
    split_skills,
    write_sentence,
)

NAMES = [skill.name for skill in SENTENCE_SKILLS]
BY_NAME = {skill.name: skill for skill in SENTENCE_SKILLS}


def shown(text, topic):
    return {skill.name for skill in SENTENCE_SKILLS if skill.check(text, topic)}


def combination(rng, k):
    return SkillCombination(tuple(rng.sample(SENTENCE_SKILLS, k)), rng.choice(SENTENCE_TOPICS))


def test_there_are_four_skills_of_each_category_and_no_name_is_a_word():
    categories = [skill.category for skill in SENTENCE_SKILLS]
    assert {category: categories.count(category) for category in categories} == dict.fromkeys(categories, 4)
    words = set()
    for number, topic in enumerate([*SENTENCE_TOPICS] * 60):
        words |= set(write_sentence(NAMES, topic, seed=number).split())
    assert not words & set(NAMES)
    assert len(words) == 10 * len(SENTENCE_TOPICS) + 23


@pytest.mark.parametrize("skill", SENTENCE_SKILLS, ids=lambda skill: skill.name)
def test_the_example_of_a_skill_shows_it_and_no_other(skill):
    assert shown(skill.example, "bread") == {skill.name}
    assert SENTENCE_RULES.makes_sense(skill.example, "bread")


def test_a_sentence_shows_what_was_asked_for_and_no_other_skill():
    rng = random.Random(0)
    for number in range(500):
        asked = rng.sample(NAMES, rng.randint(0, 20))
        topic = rng.choice(SENTENCE_TOPICS)
        sentence = write_sentence(asked, topic, seed=number)
        assert shown(sentence, topic) == set(asked), sentence
        assert SENTENCE_RULES.makes_sense(sentence, topic), sentence


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_references_have_all_points_and_lose_one_for_each_fault(k):
    rng = random.Random(k)
    for number in range(60):
        asked = combination(rng, k)
        text = SkillWriter().write(asked, seed=number)
        assert grade_skill_text(text, asked, SENTENCE_RULES) == (1.0,) * (k + 3)
        left_out = rng.randrange(k)
        rest = SkillCombination(asked.skills[:left_out] + asked.skills[left_out + 1 :], asked.topic)
        points = grade_skill_points(SkillWriter().write(rest, seed=number), asked, SENTENCE_RULES)
        assert points.skills == tuple(at != left_out for at in range(k))
        assert points[1:] == (True, True, True)
        longer = text + f" {write_sentence([], asked.topic, seed=number)}" * asked.limit
        assert grade_skill_points(longer, asked, SENTENCE_RULES) == ((True,) * k, True, True, False)
        other = next(topic for topic in SENTENCE_TOPICS if topic != asked.topic)
        strayed = grade_skill_points(text, SkillCombination(asked.skills, other), SENTENCE_RULES)
        assert strayed == ((False,) * k, False, True, True)


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_a_sentence_for_each_skill_never_has_full_marks(k):
    rng = random.Random(k)
    for number in range(40):
        asked = combination(rng, k)
        points = grade_skill_points(SkillWriter("each").write(asked, seed=number), asked, SENTENCE_RULES)
        assert points == ((True,) * k, True, True, False)


def test_sentences_are_as_few_as_the_limit_and_of_every_number_up_to_it():
    asked = combination(random.Random(0), 4)
    counts = {SENTENCE_RULES.sentences(SkillWriter().write(asked, seed=number)) for number in range(60)}
    assert counts == {1, 2, 3}


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("will miller say that baker will knead dough ?", {"report", "question"}),
        ("miller will say that baker will knead dough , miller .", {"report", "epanalepsis"}),
        ("will baker never knead dough ?", {"question", "litotes"}),
        ("baker will knead not loaf but more dough than flour .", {"antithesis", "comparison"}),
    ],
)
def test_two_skills_of_one_place_change_each_other(sentence, names):
    assert shown(sentence, "bread") == names


@pytest.mark.parametrize(
    "sentence",
    [
        "miller will say that will baker knead dough ?",  # both as they stand alone
        "miller will say that baker will knead dough , baker .",
        "will baker knead dough .",
        "baker will knead dough ?",
        "baker knead dough .",
        "baker will knead grind dough .",
        "baker , yes miller , will knead dough .",
        "baker will knead dough , flour that will roast .",
        "baker will knead more dough .",
        "baker will knead dough than flour .",
        "baker will knead dough in kitchen in kitchen .",
        "baker will knead dough in kitchen",
        "baker will knead not dough but dough .",
        "baker will knead more dough than dough .",
        "baker will knead dough like dough of kitchen .",
        "baker will say that baker will knead dough .",
        "will baker say that baker will knead dough ?",
    ],
)
def test_what_the_grammar_does_not_have_shows_nothing_and_makes_no_sense(sentence):
    assert shown(sentence, "bread") == set()
    assert not SENTENCE_RULES.makes_sense(sentence, "bread")


def test_a_skill_in_the_words_of_another_topic_is_not_credited():
    assert not BY_NAME["setting"].check("baker will knead dough in harbour .", "bread")
    assert BY_NAME["setting"].check("sailor will drop net . baker will knead dough in kitchen .", "bread")


def test_a_text_with_a_word_of_another_topic_is_not_on_topic():
    assert SENTENCE_RULES.on_topic("baker will knead dough .", "bread")
    assert not SENTENCE_RULES.on_topic("baker will knead dough . sailor will drop net .", "bread")
    assert not SENTENCE_RULES.on_topic("baker will knead dough in harbour .", "bread")
    assert not SENTENCE_RULES.on_topic("will never", "bread")


def test_a_text_that_names_a_skill_never_has_full_marks():
    rng = random.Random(5)
    for number in range(40):
        asked = combination(rng, 3)
        words = SkillWriter().write(asked, seed=number).split()
        words.insert(rng.randrange(len(words) + 1), asked.skills[0].name)
        assert not grade_skill_points(" ".join(words), asked, SENTENCE_RULES).full


def test_skills_in_one_sentence_are_not_their_sentences_without_the_marks_between():
    rng = random.Random(6)
    for number in range(40):
        asked = combination(rng, 2)
        first, second = (write_sentence([skill.name], asked.topic, seed=number) for skill in asked.skills)
        for between in ("", " ,", " though"):
            glued = f"{first[:-2]}{between} {second}"
            assert not grade_skill_points(glued, asked, SENTENCE_RULES).full, glued


def test_slips_leave_out_one_skill():
    rng, writer = random.Random(1), SkillWriter(slips=1.0)
    for number in range(40):
        asked = combination(rng, 3)
        points = grade_skill_points(writer.write(asked, seed=number), asked, SENTENCE_RULES)
        assert sum(points.skills) == 2


def test_skills_are_split_by_category_and_topics_in_halves():
    split = split_skills(SENTENCE_SKILLS, SENTENCE_TOPICS, HELD_OUT_CATEGORIES, seed=4)
    assert {skill.category for skill in split.held_out} == set(HELD_OUT_CATEGORIES)
    assert not {skill.category for skill in split.train} & set(HELD_OUT_CATEGORIES)
    assert len(split.train) + len(split.held_out) == 20
    assert set(split.train_topics) | set(split.held_out_topics) == set(SENTENCE_TOPICS)
    assert not set(split.train_topics) & set(split.held_out_topics)


def test_bad_splits_and_bad_requests_are_refused():
    twice = [LanguageSkill("a", category="x"), LanguageSkill("a", category="y")]
    with pytest.raises(ValueError, match="trained on and held out, got 'a'"):
        split_skills(twice, ["s", "t"], ["y"])
    with pytest.raises(ValueError, match="held_out must be categories"):
        split_skills(SENTENCE_SKILLS, SENTENCE_TOPICS, ["logic"])
    with pytest.raises(ValueError, match="leave a category"):
        split_skills(twice, ["s", "t"], ["x", "y"])
    with pytest.raises(ValueError, match="topics must be at least 2"):
        split_skills(twice, ["s"], ["y"])
    with pytest.raises(ValueError, match="topic must be one of"):
        write_sentence([], "weather")
    with pytest.raises(ValueError, match="got 'irony'"):
        write_sentence(["irony"], "sea")
    with pytest.raises(ValueError, match="skills must be different"):
        write_sentence(["cause", "cause"], "sea")
    with pytest.raises(ValueError, match="sentences must be one of"):
        SkillWriter("many")
