import random

import numpy as np
import pytest

from heldout.tasks import (
    EXPERT_NAMES,
    EXPERT_WORDINGS,
    RELATIONS,
    TEST_NAMES,
    TEST_WORDINGS,
    UNABLE,
    ExpertFacts,
    SimulatedExpert,
    draw_experts,
    expert_fact_words,
)

WORLD = ExpertFacts(seed=3)


def expert(domain, skill):
    return SimulatedExpert("x y", "", 1.0, domain, skill)


def share_right(who, hops, domain=None, gap=0.5):
    reply = WORLD.expert(who, gap=gap)
    questions = WORLD.questions(1500, hops=hops, seed=0)
    if domain:
        questions = [q for q in questions if RELATIONS[q.queries[0].split()[0]][0] == domain]
    return np.mean([stated(reply(q.text)) == q.answer for q in questions])


def stated(reply):
    words = reply.split()
    return next((" ".join(words[i + 1 : i + 3]) for i, word in enumerate(words) if word in ("is", "but")), None)


def test_second_hops_lie_in_another_domain():
    for question in WORLD.questions(200, hops=2, seed=1):
        one, two = (RELATIONS[query.split()[0]][0] for query in question.queries)
        assert one != two
        middle = WORLD.lookup(question.queries[0])
        assert question.queries[1].endswith(f" of {middle}")
        assert question.answer == WORLD.lookup(question.queries[1]) == WORLD.lookup(question.text)


def test_facts_follow_the_seed_and_questions_theirs():
    assert ExpertFacts(seed=3).facts == WORLD.facts != ExpertFacts(seed=4).facts
    assert (
        WORLD.questions(5, hops=1, seed=0) == WORLD.questions(5, hops=1, seed=0) != WORLD.questions(5, hops=1, seed=1)
    )
    assert len(WORLD.facts) == 8 * 60


def test_test_questions_start_from_entities_that_training_questions_do_not():
    starts = [
        {q.text.split(" of ")[-1] for q in WORLD.questions(500, hops=2, seed=0, part=p)} for p in ("train", "test")
    ]
    assert not starts[0] & starts[1]
    assert 140 <= len(starts[0]) <= 160


def test_what_is_no_question_has_no_answer():
    for text in ("", "music 1", "singer of film 1", "singer of singer of music 1", "singer of nobody", "singer"):
        assert WORLD.lookup(text) is None
        assert WORLD.expert(expert(None, 1.0))(text) == UNABLE


@pytest.mark.parametrize("skill", [0.6, 0.85])
def test_generalists_know_a_share_of_everything_and_half_of_what_combines_it(skill):
    assert share_right(expert(None, skill), 1) == pytest.approx(skill, abs=0.07)
    assert share_right(expert(None, skill), 2) == pytest.approx(skill**2 / 2, abs=0.07)
    assert share_right(expert(None, skill), 2, gap=0.0) == pytest.approx(skill**2, abs=0.09)


def test_specialists_know_their_domain_and_say_so_elsewhere():
    who = expert("music", 0.95)
    assert share_right(who, 1, "music") == pytest.approx(0.95, abs=0.1)
    reply = WORLD.expert(who)
    for question in WORLD.questions(50, hops=2, seed=0):
        assert reply(question.text) == UNABLE
    for question in WORLD.questions(50, hops=1, seed=0):
        assert (reply(question.text) == UNABLE) == (RELATIONS[question.text.split()[0]][0] != "music")


def test_experts_say_the_same_again_and_differ_by_seed():
    one, again, other = (WORLD.expert(expert(None, 0.5), seed=seed) for seed in (0, 0, 1))
    said = [[reply(q.text) for q in WORLD.questions(40, hops=1, seed=0)] for reply in (one, again, other)]
    assert said[0] == said[1] != said[2]


def test_six_experts_are_drawn_with_names_and_descriptors():
    drawn = draw_experts(random.Random(0))
    assert len({e.name for e in drawn}) == 6
    assert sorted(e.price for e in drawn) == [0.2, 0.2, 0.2, 0.4, 0.4, 1.2]
    assert len({e.domain for e in drawn if e.domain}) == 3
    for each in drawn:
        assert each.descriptor.split()[-1] == (each.domain or ("most" if each.skill > 0.8 else "some"))
    assert len({e.name.split()[0] for e in drawn}) == 6
    assert draw_experts(random.Random(0)) == drawn != draw_experts(random.Random(1))


def test_held_out_names_are_new_pairs_of_known_syllables_and_wordings_new_orders_of_known_words():
    assert len(EXPERT_NAMES) == 30
    assert len(TEST_NAMES) == 10
    assert not set(EXPERT_NAMES) & set(TEST_NAMES)
    for place in (0, 1):
        assert {n.split()[place] for n in TEST_NAMES} <= {n.split()[place] for n in EXPERT_NAMES}
    words = {word for text in EXPERT_WORDINGS for word in text.split()}
    assert all(set(text.split()) <= words for text in TEST_WORDINGS)
    assert not set(EXPERT_WORDINGS) & set(TEST_WORDINGS)


def test_the_vocabulary_holds_all_that_is_written():
    words = set(expert_fact_words())
    drawn = draw_experts(random.Random(0), wordings=TEST_WORDINGS, names=TEST_NAMES)
    for each in drawn:
        assert set(f"{each.name} {each.descriptor}".split()) <= words
        for question in WORLD.questions(30, hops=2, seed=0):
            assert set(f"{question.text} {WORLD.expert(each)(question.text)}".split()) <= words


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 2 entities"):
        ExpertFacts(entities=1)
    with pytest.raises(ValueError, match="hops must be 1 or 2"):
        WORLD.questions(1, hops=3, seed=0)
    with pytest.raises(ValueError, match="first words differ, got 2"):
        draw_experts(random.Random(0), names=["a", "b"])
