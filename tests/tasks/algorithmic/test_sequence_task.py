"""Sequence tasks: answers against naive references, masks, hints, balance, carries."""

from collections import Counter

import pytest
import torch

from heldout.data import END, PAD, START
from heldout.tasks import SEQUENCE_TASKS, SequenceTask, sequence_task

CASES = [(name, form) for name, formats in SEQUENCE_TASKS.items() for form in formats]


def task_of(name, form, max_len=9, **options):
    return sequence_task(name, form, max_len=max_len, **options)


def naive(name, form, prompt):
    """The answer without its hints, from the prompt alone, by other means than the task's."""
    hinted = form not in ("plain", "reverse")
    plain = [token for token in prompt if not token.startswith("h")] if hinted else list(prompt)
    if name == "count":
        return [str(number) for number in range(int(plain[0]), int(plain[1]) + 1)]
    if name == "mode":
        return [max(set(plain), key=plain.count)]
    if name in ("copy", "copy_unique"):
        return plain
    if name == "sort":
        return sorted(plain, key=int)
    if name == "parity":
        return [str(plain.count("1") % 2)]
    first, second = "".join(plain).split("+")
    digits = str(int(first) + int(second)).zfill(len(first))
    return list(reversed(digits) if "reverse" in form else digits)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_answers_are_right_and_what_is_stored_is_what_solve_says(name, form):
    task = task_of(name, form)
    for prompt, answer in task.pairs(150, range(1, 10), seed=1):
        assert task.solve(prompt) == answer
        said = [token for token in answer if not token.startswith("h")]
        if form == "scratchpad":
            said = said[-1:]
        assert said == naive(name, form, prompt)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_rows_are_start_prompt_answer_end_and_the_mask_is_exactly_answer_and_end(name, form):
    task = task_of(name, form)
    pairs = task.pairs(60, [1, 4, 9], seed=2)
    ids, mask = task.sample(60, [1, 4, 9], seed=2)
    known = {**{number: token for token, number in task.vocab.ids.items()}}
    for (prompt, answer), row, asked in zip(pairs, ids, mask, strict=True):
        size = int((row != PAD).sum())
        assert int(row[0]) == START
        assert int(row[size - 1]) == END
        tokens = [known[int(number)] for number in row[1 : size - 1]]
        assert tokens == [*prompt, ">", *answer]
        assert asked.nonzero()[:, 0].tolist() == list(range(len(prompt) + 2, size))
    assert ids.shape[1] == task.size(9) or form == "scratchpad"
    assert ids.shape[1] <= task.size(9)


def test_the_longest_scratchpad_has_the_size_that_is_told():
    task = task_of("parity", "scratchpad")
    ids, _ = task.encode([(p := " ".join(f"h{i} 1" for i in range(9)), task.solve(p))])
    assert ids.shape[1] == task.size(9)


def test_hints_are_consecutive_shared_by_operands_and_answer_and_all_are_drawn():
    task, seen = task_of("addition", "reverse+hints"), set()
    for prompt, answer in task.pairs(300, range(1, 10), seed=0):
        at = prompt.index("+")
        hints = prompt[0:at:2]
        assert hints == prompt[at + 1 :: 2] == tuple(reversed(answer[0::2]))
        first = int(hints[0][1:])
        assert hints == tuple(f"h{first + i}" for i in range(len(hints)))
        seen |= set(hints)
    assert seen == set(task.hint_vocab)


@pytest.mark.parametrize(("name", "form"), [case for case in CASES if case[1] not in ("plain", "reverse")])
def test_short_prompts_begin_with_any_hint_that_leaves_room(name, form):
    task = task_of(name, form)
    starts = Counter(int(prompt[0][1:]) for prompt, _ in task.pairs(1600, [2], seed=0))
    places = len(task.hint_vocab) - (2 if name == "addition" else 1)  # of two tokens, three with the leading zero
    assert sorted(starts) == list(range(places))
    assert min(starts.values()) > 0.7 * 1600 / places


def test_a_scratchpad_has_one_step_for_each_1_with_the_sign_after_it():
    task = task_of("parity", "scratchpad")
    for prompt, answer in task.pairs(100, range(1, 10), seed=5):
        ones = [(hint, bit) for hint, bit in zip(prompt[0::2], prompt[1::2], strict=True) if bit == "1"]
        assert answer[0:-1:2] == tuple(hint for hint, _ in ones)
        assert answer[1:-1:2] == tuple("-+"[i % 2] for i in range(len(ones)))
        assert answer[-1] == str(len(ones) % 2)


@pytest.mark.parametrize("length", [1, 5, 9])
def test_parities_are_balanced_and_so_is_the_mode(length):
    parities = Counter(answer[-1] for _, answer in task_of("parity", "plain").pairs(2000, [length], seed=0))
    assert abs(parities["1"] - 1000) < 150
    modes = Counter(answer[0] for _, answer in task_of("mode", "plain").pairs(2000, [length], seed=0))
    assert len(modes) == 10
    assert max(modes.values()) < 300


def test_lengths_are_equally_likely_and_nothing_else_is_drawn():
    ids, mask = task_of("copy", "plain").sample(3000, [2, 5, 9], seed=0)
    assert not set(mask.sum(1).tolist()) - {3, 6, 10}
    counts = Counter(mask.sum(1).tolist())
    assert min(counts.values()) > 900
    assert ids.dtype == torch.int64


def test_carries_are_frequent_and_run_far():
    task, carried, chains = task_of("addition", "plain"), [], []
    for prompt, _ in task.pairs(2000, [9], seed=0):
        at = prompt.index("+")
        carry = chain = longest = 0
        for a, b in zip(prompt[at - 1 :: -1], prompt[:at:-1], strict=True):
            nine = int(a) + int(b) == 9
            chain = chain + 1 if nine and carry else 0
            longest = max(longest, chain)
            carry = int(int(a) + int(b) + carry > 9)
            carried.append(carry)
        chains.append(longest)
    assert 0.22 < sum(carried) / len(carried) < 0.5  # the leading zeros, a tenth of the places, have none
    assert sum(chain >= 4 for chain in chains) > 150  # of two uniform numbers, hardly any


def test_counting_begins_anywhere_that_leaves_room():
    task = task_of("count", "plain", vocab=12)
    starts = Counter(int(prompt[0]) for prompt, _ in task.pairs(2000, [9], seed=0))
    assert sorted(starts) == [0, 1, 2, 3]
    assert min(starts.values()) > 400


def test_samples_are_those_of_their_seed():
    task = task_of("sort", "plain")
    assert torch.equal(task.sample(9, [3, 4], seed=1).ids, task.sample(9, [3, 4], seed=1).ids)
    assert task.pairs(9, [4], seed=1) != task.pairs(9, [4], seed=2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sequence_task("copy_unique", max_len=30, vocab=20), "at least max_len, 30"),
        (lambda: sequence_task("sort", max_len=30, vocab=20), "at least max_len, 30"),
        (lambda: sequence_task("parity", "hints", max_len=8, hints=7), "at least 8 hints, got 7"),
        (lambda: sequence_task("addition", "hints", max_len=8, hints=8), "at least 9 hints"),
        (lambda: sequence_task("count", "hints"), "format must be one of 'plain'"),
        (lambda: sequence_task("parity", vocab=3), "vocab must be 2"),
        (lambda: task_of("copy", "plain").sample(2, [10]), "at most max_len, 9, got 10"),
        (lambda: task_of("copy", "plain").sample(2, []), "lengths"),
        (lambda: task_of("copy", "plain").size(10), "at most max_len"),
        (lambda: task_of("count", "plain").solve("5 2"), "prompt must be one of count"),
        (lambda: task_of("sort", "plain").solve("5 5"), "prompt must be one of sort"),
        (lambda: task_of("parity", "hints").solve("h1 0 h3 1"), "prompt must be one of parity"),
        (lambda: task_of("addition", "plain").solve("1 2 + 1"), "prompt must be one of addition"),
        (lambda: task_of("addition", "hints").solve("h0 1 + h1 1"), "prompt must be one of addition"),
        (lambda: task_of("copy", "plain").encode([("1 9", "1")]), "got '9'"),
        (lambda: SequenceTask("copy", "plain", 4, ["0"]), "symbols must be at least 2"),
    ],
)
def test_bad_input_is_refused_by_name(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_in_half_of_the_additions_the_second_operand_has_small_digits():
    """Digits of the second operand that do not complete a 9 have a mean of 4.5, or of half a bound that is uniform."""
    task, means = task_of("addition", "plain"), []
    for prompt, _ in task.pairs(3000, [9], seed=0):
        at = prompt.index("+")
        free = [int(b) for a, b in zip(prompt[1:at], prompt[at + 2 :], strict=True) if int(a) + int(b) != 9]
        if len(free) >= 5:
            means.append(sum(free) / len(free))
    small = sum(mean < 2 for mean in means) / len(means)
    assert 0.12 < small < 0.35  # of uniform digits, 1 in 100


def test_a_vocabulary_of_just_the_longest_length_and_the_usual_one_of_counting():
    for name in ("copy_unique", "sort"):
        prompt, answer = task_of(name, "plain", vocab=9).pairs(1, [9])[0]
        assert set(prompt) == set(answer) == set(map(str, range(9)))
    assert len(task_of("count", "plain").symbols) == 18


@pytest.mark.parametrize(
    ("name", "prompt"), [("count", "2 5 7"), ("copy", "0 x"), ("mode", ">"), ("parity", "0 1 2"), ("addition", "1 1")]
)
def test_prompts_of_other_tokens_or_sizes_are_refused(name, prompt):
    with pytest.raises(ValueError, match=f"prompt must be one of {name}"):
        task_of(name, "plain").solve(prompt)
