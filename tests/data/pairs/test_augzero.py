"""AugZero's blocks, by their definition."""

from collections import Counter

import pytest

from heldout.data import augzero
from heldout.tasks import mini_scan

PAIRS = mini_scan().sample(40, seed=0)


def stripped(side):
    return tuple(token.partition("#")[0] for token in side)


def vocabulary(pairs):
    return {token for pair in pairs for side in pair for token in side}


@pytest.mark.parametrize("scheme", ["index", "permutation"])
@pytest.mark.parametrize("copies", [1, 2, 5])
def test_copies_are_blocks_of_the_same_pairs_in_other_tokens(copies, scheme):
    found = augzero(PAIRS, copies, scheme=scheme)
    assert len(found) == copies * len(PAIRS)
    assert found[: len(PAIRS)] == PAIRS
    assert len(vocabulary(found)) == copies * len(vocabulary(PAIRS))
    assert set(found.new_tokens) == vocabulary(found) - vocabulary(PAIRS)
    assert Counter((stripped(a), stripped(b)) for a, b in found) == Counter(PAIRS * copies)


def test_every_token_of_a_block_is_the_copy_of_that_number():
    found = augzero(PAIRS, 3)
    for block in (1, 2):
        for pair in found[block * len(PAIRS) : (block + 1) * len(PAIRS)]:
            assert all(token.endswith(f"#{block}") for side in pair for token in side)


def test_permuted_copies_are_one_to_one_within_a_block():
    found = augzero(PAIRS, 4, scheme="permutation", seed=1)
    for start in range(0, len(found), len(PAIRS)):
        block = found[start : start + len(PAIRS)]
        names = {(old, new) for a, b in zip(PAIRS, block, strict=True) for old, new in zip(a[0], b[0], strict=True)}
        assert len({old for old, _ in names}) == len({new for _, new in names}) == len(names)
    assert found != augzero(PAIRS, 4, scheme="permutation", seed=2)


def test_texts_come_back_as_texts():
    assert augzero([("a b", ["C"])], 2) == [("a b", ["C"]), ("a#1 b#1", ("C#1",))]


class Letters:
    def tokenize(self, text):
        return list(text.replace(" ", ""))


def test_a_tokenizer_s_tokens_are_copied():
    found = augzero([("ab", "C")], 2, tokenizer=Letters())
    assert found == [(("a", "b"), ("C",)), (("a#1", "b#1"), ("C#1",))]
    assert found.new_tokens == ["a#1", "b#1", "C#1"]


def test_a_transformers_tokenizer_gives_each_copy_an_id():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {"[UNK]": 0, "jump": 1, "twice": 2, "JUMP": 3}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    found = augzero([("jump twice", "JUMP JUMP")], 3, tokenizer=tokenizer)
    assert tokenizer.add_tokens(found.new_tokens) == 6
    ids = [tokenizer.convert_tokens_to_ids(list(source)) for source, _ in found]
    assert len({number for row in ids for number in row}) == 6
    assert 0 not in {number for row in ids for number in row}


def test_unusable_input_is_refused_by_name():
    with pytest.raises(ValueError, match="copies"):
        augzero(PAIRS, 0)
    with pytest.raises(ValueError, match="pairs"):
        augzero([], 2)
    for token in ("walk#", "walk#1"):
        with pytest.raises(ValueError, match="pairs must have no token that ends in the separator"):
            augzero([(token, "W")], 2)
    with pytest.raises(TypeError, match="tokenizer"):
        augzero(PAIRS, 2, tokenizer=3)
    assert len(augzero([("C#", "x")], 2, separator="~")) == 2
    with pytest.raises(ValueError, match="separator must have no spaces"):
        augzero(PAIRS, 2, separator=" ")
    for tokenizer in (None, Letters()):
        for pair in (None, "ab", ("a",)):
            with pytest.raises(ValueError, match="pairs must be pairs"):
                augzero([pair], 2, tokenizer=tokenizer)
