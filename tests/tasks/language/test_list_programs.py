"""The words of the instruction world and the operations on lists of them."""

from collections import Counter

from heldout.tasks import Program, lexicon, run_program
from heldout.tasks.language.list_programs import apply_operation


def test_the_lexicon_covers_all_combinations_of_attributes_evenly():
    counts = Counter(tuple(attributes.values()) for attributes in lexicon(128).values())
    assert len(counts) == 32
    assert set(counts.values()) == {4}
    assert dict(list(lexicon(128).items())[:40]) == lexicon(40)


def test_operations_without_an_output_have_none():
    words = lexicon(60)
    word = next(word for word, values in words.items() if "red" not in values.values())
    assert apply_operation(("keep", "red"), [word], words) is None
    assert apply_operation(("second",), [word], words) is None
    assert run_program(Program("answer", (("keep", "red"), ("first",))), word, words) is None
