"""Sentences and logical forms, against forms written by hand."""

import pytest

from heldout.tasks import SentenceForms

FORMS = {
    "Emma slept": "sleep . agent ( x_1 , Emma )",
    "the cat ran": "* cat ( x_1 ) AND run . agent ( x_2 , x_1 )",
    "a cat was seen by Emma": "cat ( x_1 ) AND see . agent ( x_3 , Emma ) AND see . theme ( x_3 , x_1 )",
    "Emma gave a cake to Liam":
        "give . agent ( x_1 , Emma ) AND give . theme ( x_1 , x_3 ) AND give . recipient ( x_1 , Liam ) "
        "AND cake ( x_3 )",
    "Emma gave Liam the cake":
        "give . agent ( x_1 , Emma ) AND give . theme ( x_1 , x_4 ) AND give . recipient ( x_1 , Liam ) "
        "AND * cake ( x_4 )",
    "Ava said that Noah ate a cake on the table":
        "say . agent ( x_1 , Ava ) AND say . ccomp ( x_1 , x_4 ) AND eat . agent ( x_4 , Noah ) "
        "AND eat . theme ( x_4 , x_6 ) AND cake ( x_6 ) AND cake . nmod . on ( x_6 , x_9 ) AND * table ( x_9 )",
}  # fmt: skip


@pytest.mark.parametrize("source", FORMS)
def test_sentences_have_the_forms_written_by_hand(source):
    assert " ".join(SentenceForms().interpret(source)) == FORMS[source]


def test_the_interpreter_agrees_with_the_generator():
    forms = SentenceForms(depth=3, nesting=0.5)
    pairs = forms.sample(2000, seed=1)
    assert len({source for source, _ in pairs}) == 2000
    assert all(forms.interpret(source) == target for source, target in pairs)
    words = {word for source, _ in pairs for word in source}
    assert words >= {"was", "by", "to", "that", "on", "in", "beside", "gave", "slept"}


def test_nothing_is_nested_at_depth_0_and_the_same_seed_gives_the_same():
    flat = SentenceForms(depth=0)
    pairs = flat.sample(300, seed=0)
    assert not any({"that", "on", "in", "beside"} & set(source) for source, _ in pairs)
    assert pairs == flat.sample(300, seed=0) != flat.sample(300, seed=1)


def test_a_word_alone_has_the_form_that_the_interpreter_gives_it():
    forms = SentenceForms()
    for word in ("cat", "Emma"):
        source, target = forms.primitive(word)
        assert forms.interpret(source) == target
    with pytest.raises(ValueError, match="word"):
        forms.primitive("saw")


@pytest.mark.parametrize(
    "source",
    ["", "cat slept", "Emma saw", "Emma slept Liam", "Emma gave Liam", "saw Emma", "Emma was seen", "Ava said that",
     "a cat on Emma slept", "the Emma ran"],
)  # fmt: skip
def test_what_is_no_sentence_is_refused(source):
    with pytest.raises(ValueError, match="source"):
        SentenceForms().interpret(source)


def test_unusable_words_are_refused_by_name():
    for nouns in ([], ["cat", "cat"], ["saw"], ["big cat"], ["Emma"]):
        with pytest.raises(ValueError, match="nouns"):
            SentenceForms(nouns=nouns)
    with pytest.raises(ValueError, match="nesting"):
        SentenceForms(nesting=1.5)
    with pytest.raises(ValueError, match="n must be at most"):
        SentenceForms(nouns=["cat"], names=["Emma"], depth=0).sample(400)
