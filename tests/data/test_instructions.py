"""Prompts from instructions."""

import warnings
from dataclasses import replace

import pytest

from heldout.data import DEFINITION, FULL, NO_INSTRUCTION, PROMPT, encode_instruction
from heldout.tasks import Instance, InstructionExample, InstructionTask

TASK = InstructionTask(
    name="reverse",
    category="transform",
    definition="Reverse the list.",
    prompt="Write the list backwards.",
    avoid="Do not repeat items.",
    emphasis="Keep the case.",
    positive=[InstructionExample("a b", "b a", "b was last"), InstructionExample("c", "c", "one item")],
    negative=[InstructionExample("d e", "d e", "not reversed", "write e d")],
    instances=[Instance("x y z", ("z y x",))],
)
INSTANCE = TASK.instances[0]
END = "input: x y z\noutput:"


def test_without_instruction_there_is_only_the_input():
    assert encode_instruction(TASK, INSTANCE, NO_INSTRUCTION) == END
    assert encode_instruction(TASK, "x y z", NO_INSTRUCTION) == END


def test_single_fields():
    assert encode_instruction(TASK, INSTANCE, PROMPT) == f"Prompt: Write the list backwards.\n{END}"
    assert encode_instruction(TASK, INSTANCE, DEFINITION) == f"Definition: Reverse the list.\n{END}"
    assert encode_instruction(TASK, INSTANCE, ("avoid", "emphasis")) == (
        f"Things to Avoid: Do not repeat items.\nEmphasis & Caution: Keep the case.\n{END}"
    )


def test_the_full_instruction_has_all_fields_in_the_order_of_the_authors():
    assert encode_instruction(TASK, INSTANCE) == "\n".join(
        [
            "Definition: Reverse the list.",
            "Prompt: Write the list backwards.",
            "Things to Avoid: Do not repeat items.",
            "Emphasis & Caution: Keep the case.",
            "Negative Example1-",
            "input: d e",
            "output: d e",
            "reason: not reversed",
            "suggestion: write e d",
            "Positive Example1-",
            "input: a b",
            "output: b a",
            "reason: b was last",
            "Positive Example2-",
            "input: c",
            "output: c",
            "reason: one item",
            END,
        ]
    )


def test_without_explanations_positive_examples_are_inputs_and_outputs():
    positive = encode_instruction(TASK, INSTANCE, ("positive",), explanations=False)
    assert positive == f"input: a b\noutput: b a\ninput: c\noutput: c\n{END}"
    negative = encode_instruction(TASK, INSTANCE, ("negative",), explanations=False)
    assert negative == f"Negative Example1-\ninput: d e\noutput: d e\n{END}"


def test_absent_fields_vanish():
    bare = replace(TASK, prompt="-", avoid="", emphasis=" - ", positive=[InstructionExample("a", "b")], negative=[])
    assert encode_instruction(bare, INSTANCE, n_positive=1, n_negative=0) == (
        f"Definition: Reverse the list.\nPositive Example1-\ninput: a\noutput: b\n{END}"
    )


def test_more_examples_than_there_are_is_a_warning():
    with pytest.warns(UserWarning, match="reverse has 2 positive examples, not 5"):
        many = encode_instruction(TASK, INSTANCE, n_positive=5)
    assert many == encode_instruction(TASK, INSTANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_instruction(replace(TASK, negative=[]), INSTANCE)


def test_truncation_cuts_examples_first_then_fields_and_never_the_input():
    last = len(encode_instruction(TASK, INSTANCE).split())
    seen = []
    for limit in range(last, 4, -1):
        prompt = encode_instruction(TASK, INSTANCE, limit=limit)
        assert prompt.endswith(END)
        assert len(prompt.split()) <= limit
        seen.append((prompt.count("Negative"), prompt.count("Positive"), "Emphasis" in prompt, "Definition" in prompt))
    assert list(dict.fromkeys(seen)) == [
        (1, 2, True, True), (0, 2, True, True), (0, 1, True, True), (0, 0, True, True), (0, 0, False, True),
        (0, 0, False, False),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="the input alone has length 5, more than the limit of 4"):
        encode_instruction(TASK, INSTANCE, limit=4)


def test_the_length_may_be_counted_by_a_tokenizer():
    assert encode_instruction(TASK, INSTANCE, DEFINITION, limit=len(END), length=len) == END


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"fields must be among definition, .* got 'title'"):
        encode_instruction(TASK, INSTANCE, ("definition", "title"))
    with pytest.raises(ValueError, match="at least 0, got -1"):
        encode_instruction(TASK, INSTANCE, n_positive=-1)
    assert FULL[0] == "definition"


def test_examples_go_one_by_one():
    more = replace(TASK, negative=[*TASK.negative, InstructionExample("f g", "f g", "not reversed", "write g f")])

    def shown(negative, positive):
        return encode_instruction(more, INSTANCE, FULL, positive, negative)

    for kept in ((2, 2), (1, 2), (0, 2), (0, 1), (0, 0)):
        expected = shown(*kept)
        assert encode_instruction(more, INSTANCE, FULL, 2, 2, limit=len(expected.split())) == expected
