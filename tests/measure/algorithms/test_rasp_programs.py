"""Reference programs solve what the tasks draw, at every length, and keep the rules."""

import pytest
import torch

from heldout.measure import RASP_PROGRAMS, rasp, rasp_codes, rasp_simplicity
from heldout.measure.algorithms.rasp_programs import STOP
from heldout.tasks import SEQUENCE_TASKS, sequence_task

KNOWN = [case for case, program in RASP_PROGRAMS.items() if program is not None]
LONGEST = 30


def drawn(name, form, n, seed):
    longest = 18 if name == "addition" else LONGEST  # eight bits hold 127 places
    options = {"vocab": 60} if name == "count" else {}
    if (name, form) == ("copy_unique", "hints"):
        longest, options = 15, {"vocab": 15}  # symbols of hinted tokens lie below the hints
    task = sequence_task(name, form, max_len=longest, **options)
    return task.pairs(n, range(1, longest + 1), seed=seed)


def test_every_task_and_format_has_its_entry():
    assert set(RASP_PROGRAMS) == {(name, form) for name, formats in SEQUENCE_TASKS.items() for form in formats}


@pytest.mark.parametrize(("name", "form"), KNOWN)
def test_a_program_writes_each_token_of_200_answers(name, form):
    """Programs do not look ahead, so that one run over the true answer tells what is written token by token."""
    for prompt, answer in drawn(name, form, 200, seed=1):
        whole = rasp_codes(("<start>", *prompt, ">", *answer, "<end>"))
        said = RASP_PROGRAMS[name, form](whole)
        assert torch.equal(said[len(prompt) + 1 : -1], whole[len(prompt) + 2 :]), (prompt, answer)


@pytest.mark.parametrize(("name", "form"), KNOWN)
def test_a_program_answers(name, form):
    for prompt, answer in drawn(name, form, 4, seed=7):
        said = rasp.decode(RASP_PROGRAMS[name, form], rasp_codes(("<start>", *prompt, ">")), STOP, max_new=200)
        assert said == rasp_codes(answer).tolist(), (prompt, answer)


@pytest.mark.parametrize(("name", "form"), KNOWN)
def test_a_program_keeps_the_rules(name, form):
    examples = [
        rasp_codes(("<start>", *prompt, ">", *answer, "<end>")) for prompt, answer in drawn(name, form, 5, seed=2)
    ]
    rasp.check_learnable(RASP_PROGRAMS[name, form], [example for example in examples if len(example) < 128])


def test_reversed_addition_is_shorter_than_forward_and_no_program_is_the_least_simple():
    found = {case: rasp_simplicity(*case) for case in RASP_PROGRAMS}
    assert found["addition", "reverse+hints"] > found["addition", "hints"] > 0
    assert {case for case, value in found.items() if value == 0} == set(RASP_PROGRAMS) - set(KNOWN)
    assert found["sort", "plain"] == 0.5
    with pytest.raises(ValueError, match="name and format must be one of"):
        rasp_simplicity("copy", "reverse")


@pytest.mark.parametrize("tokens", ["x", "h", "128", "h112", "h1 16", "-1"])
def test_tokens_that_are_none_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens must be"):
        rasp_codes(tokens)
