"""Four sets of pairs with splits that hold compositions out."""

import itertools
from collections import Counter

import pytest
import torch

from heldout.data import mcd_split, ngrams, split_divergences
from heldout.tasks import COMPOSITION_SETS, composition_pairs, composition_split, held_out_word


def parts(pairs, split):
    return ([pairs[i] for i in part.tolist()] for part in split)


@pytest.mark.parametrize("name", COMPOSITION_SETS)
def test_pairs_are_different_short_and_the_same_again(name):
    pairs = composition_pairs(name, 200, seed=3)
    assert pairs == composition_pairs(name, 200, seed=3) != composition_pairs(name, 200, seed=4)
    assert len(set(pairs)) == len(pairs) > 100
    assert max(len(target) for _, target in pairs) <= {"cogs": 14, "pcfg": 9}.get(name, 20)
    assert not {token for _, target in pairs for token in target} & {"(", ")", ",", "."}


def test_a_standard_split_holds_a_fifth_out_whatever_the_order_of_its_positions():
    pairs = composition_pairs("pcfg", 101)
    split = composition_split("pcfg", "standard", pairs, seed=1)
    assert len(split.test) == 20
    assert sorted(torch.cat(split).tolist()) == list(range(101))
    assert split.test.tolist() != composition_split("pcfg", "standard", pairs, seed=2).test.tolist()


@pytest.mark.parametrize("name", ["scan", "pcfg"])
def test_a_length_split_trains_on_shorter_targets(name):
    pairs = composition_pairs(name, 300)
    train, test = parts(pairs, composition_split(name, "length", pairs))
    assert max(len(target) for _, target in train) < min(len(target) for _, target in test)
    assert 0.5 < len(train) / len(pairs) < 0.9


@pytest.mark.parametrize(
    ("name", "words"), [("cogs", {"cat", "dog", "Emma"}), ("places", {"brint", "tarn", "eastfen"})]
)
def test_a_template_of_the_test_is_in_no_training_pair(name, words):
    pairs = composition_pairs(name, 300)
    everything = {word for source, _ in pairs for word in source}
    assert words <= everything
    train, test = parts(pairs, composition_split(name, "template", pairs, seed=1))
    # names and nouns occur in targets as they stand in sources, all other words of a template in one of the two alone
    shared = [{*source} & {*target} for source, target in pairs]
    names = {word for each in shared for word in each}
    masked = [{tuple("#" if t in names else t for t in side) for side, _ in part} for part in (train, test)]
    assert not masked[0] & masked[1]


def test_an_mcd_split_has_new_pairs_of_words_and_the_same_words():
    pairs = composition_pairs("scan", 400)
    split = composition_split("scan", "mcd", pairs, seed=1)
    divergences = split_divergences(pairs, *split, ngrams(1), ngrams(2))
    random = split_divergences(pairs, *composition_split("scan", "standard", pairs), ngrams(1), ngrams(2))
    assert divergences.atoms <= 0.02
    assert divergences.compounds > random.compounds
    for seed, limit in ((1, 0.02), (2, 0.5)):
        expected = mcd_split(pairs, ngrams(1), ngrams(2), atom_limit=limit, seed=seed)
        found = composition_split("scan", "mcd", pairs, seed=seed, atom_limit=limit)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_templates_are_held_out_anew_for_each_seed():
    pairs = composition_pairs("cogs", 300)
    first, second = (composition_split("cogs", "template", pairs, seed=seed).test.tolist() for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize(("name", "word"), [("scan", "jump"), ("cogs", "cat")])
def test_a_held_out_word_is_known_alone_and_composed_in_the_test_only(name, word):
    pairs, split = held_out_word(name, "original", 200, seed=1)
    train, test = parts(pairs, split)
    spelled = (*(f"'{letter}" for letter in word), "'")

    def holds(source):
        return any(source[i : i + len(spelled)] == spelled for i in range(len(source)))

    alone = [source for source, _ in train if holds(source)]
    assert {*alone} == {spelled}
    assert len(alone) / len(train) == pytest.approx(0.1, abs=0.015)
    assert all(holds(source) and source != spelled for source, _ in test)
    if name == "scan":
        assert len(test) == 40
        assert not {"twice", "thrice"} & {token for source, _ in pairs for token in source}


@pytest.mark.parametrize("name", ["scan", "cogs"])
@pytest.mark.parametrize("style", ["random", "cvcv"])
def test_a_new_word_has_seven_to_fourteen_letters_and_is_drawn_in_its_style(name, style):
    for seed in range(1, 5):
        pairs = held_out_word(name, style, 100, seed=seed).pairs
        old = held_out_word(name, "original", 100, seed=seed)
        alone = {pair for pair in pairs if all(token.startswith("'") for token in pair[0])}
        (new,) = alone - {*old.pairs}
        assert len(alone) == 22
        letters = [token[1:] for token in new[0][:-1]]
        assert 7 <= len(letters) <= 14
        vowels = [letter in "aeiou" for letter in letters]
        assert all(a != b for a, b in itertools.pairwise(vowels)) == (style == "cvcv")
        longest = max(len(source) - 1 for source, _ in alone - {new})
        assert longest == {"scan": 5, "cogs": 10}[name]


@pytest.mark.parametrize("name", ["scan", "cogs"])
def test_other_letters_change_one_word_and_neither_the_split_nor_the_rest(name):
    styles = {style: held_out_word(name, style, 200, seed=1) for style in ("original", "random", "cvcv")}
    first = styles["original"]
    for style in ("random", "cvcv"):
        other = styles[style]
        assert all(torch.equal(a, b) for a, b in zip(first.split, other.split, strict=True))
        same = Counter(a == b for a, b in zip(first.pairs, other.pairs, strict=True))
        alone = [i for i in first.split.train.tolist() if first.pairs[i] == first.pairs[0]]
        assert same[False] == len(first.split.test) + len(alone)  # those that compose the word, and the word alone
        longer = [(a, b) for a, b in zip(first.pairs, other.pairs, strict=True) if a != b]
        assert all(len(b[0]) >= len(a[0]) + 3 and len(b[1]) > len(a[1]) for a, b in longer)
    letters = held_out_word(name, "cvcv", 200, seed=1).pairs[int(first.split.test[0])]
    assert letters != held_out_word(name, "cvcv", 200, seed=2).pairs[int(first.split.test[0])]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: composition_pairs("geo", 5), "name"),
        (lambda: composition_pairs("scan", 0), "n must be at least 1"),
        (lambda: composition_split("scan", "odd", [("a", "A")]), "kind"),
        (lambda: composition_split("scan", "template", [("a", "A")]), "which has no names"),
        (lambda: composition_split("scan", "mcd", [("a", "A")], atom_limit=2), "atom_limit"),
        (lambda: held_out_word("pcfg", "random", 5), "name"),
        (lambda: held_out_word("scan", "odd", 5), "style"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
