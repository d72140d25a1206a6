"""Windows around call sites."""

from dataclasses import replace

import pytest
import torch

from heldout.lm import code_tokenizer
from heldout.tasks import ApiFunction, CallSite, api_functions, call_windows

SOURCE = "import os\n" + "\n".join(
    f"def f{i}(x):\n    value{i} = x + {i}\n    os.mkdir(x)\n    return os.path.join(x, value{i}, os.getcwd())"
    for i in range(5)
)
FUNCTIONS, _ = api_functions(SOURCE, {"files": ["os"]})
TOKENIZER = code_tokenizer([SOURCE], 320)


def test_every_site_is_in_one_window_and_its_tokens_are_its_text():
    windows = call_windows(FUNCTIONS, TOKENIZER, length=40, context=10, seed=3)
    assert sorted(windows.names) == sorted(name for function in FUNCTIONS for name in function.names())
    texts = {function.text[call.start : call.end] for function in FUNCTIONS for call in function.calls}
    for (row, start, end), (_, first, last), name in zip(
        windows.usages.tolist(), windows.calls.tolist(), windows.names, strict=True
    ):
        usage = TOKENIZER.decode(windows.ids[row, start:end]).strip()
        assert any(usage.startswith(text) and not usage[len(text) :].strip(")\n") for text in texts)
        assert TOKENIZER.decode(windows.ids[row, first:last]) == name
        assert windows.ids[row, last] in windows.opening
        assert start >= 1


def test_labels_leave_out_padding_and_usage_labels_all_but_usages():
    windows = call_windows(FUNCTIONS[:1], TOKENIZER, length=60, context=30)
    assert ((windows.labels == -100) == (windows.ids == TOKENIZER.eos_token_id)).all()
    usage = windows.usage_labels()
    counted = {(row, place) for row, start, end in windows.usages.tolist() for place in range(start, end)}
    assert {tuple(place) for place in (usage >= 0).nonzero().tolist()} == counted
    assert (usage[usage >= 0] == windows.ids[usage >= 0]).all()


def test_first_keeps_the_calls_of_its_windows():
    windows = call_windows(FUNCTIONS, TOKENIZER, length=40, context=10)
    short = windows.first(2)
    assert len(short) == 2
    assert short.calls[:, 0].max() < 2
    assert len(short.names) == len(short.calls) == len(short.usages) < len(windows.names)


def test_the_seed_sets_the_order_alone():
    one, two = (call_windows(FUNCTIONS, TOKENIZER, length=40, context=10, seed=seed).ids for seed in (0, 1))
    assert not torch.equal(one, two)
    assert sorted(one.tolist()) == sorted(two.tolist())


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="functions"):
        call_windows([], TOKENIZER)
    with pytest.raises(ValueError, match="context"):
        call_windows(FUNCTIONS, TOKENIZER, length=10, context=10)
    with pytest.raises(ValueError, match="functions must have a call site that fits"):
        call_windows(FUNCTIONS, TOKENIZER, length=4, context=3)
    with pytest.raises(ValueError, match="most"):
        call_windows(FUNCTIONS, TOKENIZER).first(0)


@pytest.mark.parametrize(("length", "context"), [(length, context) for length in range(12, 30) for context in (1, 4)])
def test_windows_are_those_of_a_plain_loop(length: int, context: int):
    source = "import os\ndef f(x): os.mkdir(x); os.rmdir(x, x); return os.stat(os.path.join(x, x, x), x)"
    (function,), _ = api_functions(source, {"files": ["os"]})
    coded = TOKENIZER(function.text, return_offsets_mapping=True, add_special_tokens=False)
    covers = [
        [n for n, (a, b) in enumerate(coded["offset_mapping"]) if a < call.end and b > call.start]
        for call in function.calls
    ]
    left = sorted((c[0], c[-1] + 1) for c in covers if len(c) <= length - context)
    expected = []
    while left:
        low = max(0, left[0][0] - context)
        inside = [site for site in left if site[1] <= low + length]
        left = [site for site in left if site[1] > low + length]
        expected.append((coded["input_ids"][low : low + length], [(a - low, b - low) for a, b in inside]))
    windows = call_windows([function], TOKENIZER, length=length, context=context)
    found = [
        (ids[:count], [(a, b) for row, a, b in windows.usages.tolist() if row == number])
        for number, (ids, count) in enumerate(
            zip(windows.ids.tolist(), (windows.labels >= 0).sum(1).tolist(), strict=True)
        )
    ]
    assert sorted(found) == sorted(expected)


def test_a_usage_at_the_start_of_the_text_has_nothing_before_it_and_is_left_out():
    call = CallSite("os.stat", start=0, name_start=3, name_end=7, end=10)
    later = CallSite("os.stat", start=11, name_start=14, name_end=18, end=21)
    function = ApiFunction("a.py", "os.stat(x)\nos.stat(x)", (call, later), "files")
    assert call_windows([function], TOKENIZER).usages[:, 1].min() > 0
    assert len(call_windows([function], TOKENIZER).names) == 1


FILES = [ApiFunction(f"{i // 3}.py", function.text, function.calls, "files") for i, function in enumerate(FUNCTIONS)]


def site_texts(windows):
    """Each site as text: file, usage and name, as its tokens say."""
    return [
        (windows.files[row], TOKENIZER.decode(windows.ids[row, start:end]), TOKENIZER.decode(windows.ids[r, a:b]), name)
        for (row, start, end), (r, a, b), name in zip(
            windows.usages.tolist(), windows.calls.tolist(), windows.names, strict=True
        )
    ]


def test_a_draw_takes_at_most_so_many_windows_of_a_file_and_none_twice():
    windows = call_windows(FILES, TOKENIZER, length=24, context=8)
    counts = {file: windows.files.count(file) for file in set(windows.files)}
    assert set(counts) == {"0.py", "1.py"}
    assert min(counts.values()) > 2
    assert sorted(windows.draw(100, per_file=2, seed=1).files) == ["0.py", "0.py", "1.py", "1.py"]
    everything = windows.draw(100, seed=1)
    assert sorted(everything.ids.tolist()) == sorted(windows.ids.tolist())
    assert sorted(site_texts(everything)) == sorted(site_texts(windows))
    assert site_texts(windows.draw(3, seed=1)) == site_texts(everything.first(3))
    assert not torch.equal(windows.draw(100, seed=2).ids, everything.ids)


def test_windows_at_numbers_keep_their_calls_in_their_order():
    windows = call_windows(FILES, TOKENIZER, length=40, context=10)
    numbers = [4, 0, 2]
    some = windows.at(numbers)
    assert torch.equal(some.ids, windows.ids[numbers])
    assert torch.equal(some.labels, windows.labels[numbers])
    assert torch.equal(some.inputs, windows.ids[numbers])
    assert some.files == [windows.files[number] for number in numbers]
    of_each = [[text for text, (row, *_) in zip(site_texts(windows), windows.usages.tolist(), strict=True) if row == n]
               for n in numbers]  # fmt: skip
    assert site_texts(some) == [text for texts in of_each for text in texts]
    assert some.calls[:, 0].tolist() == some.usages[:, 0].tolist() == sorted(some.calls[:, 0].tolist())


def test_a_usage_in_a_row_of_its_own_is_the_same_usage():
    windows = call_windows(FILES, TOKENIZER, length=40, context=10)
    most = 6
    lengths = (windows.usages[:, 2] - windows.usages[:, 1]).tolist()
    assert min(lengths) <= most < max(lengths)
    states = torch.stack([windows.ids.float(), torch.arange(40.0).expand_as(windows.ids)], 2)
    rows = replace(windows, inputs=states).usage_rows(most)
    expected = [text for text, length in zip(site_texts(windows), lengths, strict=True) if length <= most]
    assert site_texts(rows) == expected
    assert rows.ids.shape == (len(expected), most + 1)
    assert torch.equal(rows.ids.float(), rows.inputs[..., 0])
    starts = [start for (_, start, _), length in zip(windows.usages.tolist(), lengths, strict=True) if length <= most]
    assert rows.inputs[:, 0, 1].tolist() == [start - 1 for start in starts]
    assert (rows.usages[:, 1] == 1).all()
    assert torch.equal(rows.labels, rows.usage_labels())
    before = [ids[-1] for ids, length in zip(windows.before_names(), lengths, strict=True) if length <= most]
    assert [ids[-1] for ids in rows.before_names()] == before


def test_a_smaller_vocabulary_says_the_same():
    windows = call_windows(FILES, TOKENIZER, length=40, context=10)
    tokens = torch.cat([windows.ids.flatten(), windows.opening]).unique().flip(0)
    small = windows.with_tokens(tokens)
    assert torch.equal(tokens[small.ids], windows.ids)
    assert torch.equal(tokens[small.opening], windows.opening)
    assert torch.equal(small.labels < 0, windows.labels < 0)
    assert torch.equal(tokens[small.labels[small.labels >= 0]], windows.labels[windows.labels >= 0])
    assert torch.equal(small.inputs, small.ids)
    states = torch.zeros(*windows.ids.shape, 2)
    assert replace(windows, inputs=states).with_tokens(tokens).inputs is states
    with pytest.raises(ValueError, match="tokens"):
        windows.with_tokens(tokens[1:])


def test_bad_draws_and_numbers_are_refused_by_name():
    windows = call_windows(FILES, TOKENIZER, length=40, context=10)
    with pytest.raises(ValueError, match="inputs"):
        replace(windows, inputs=windows.ids[1:])
    with pytest.raises(ValueError, match="per_file"):
        windows.draw(1, per_file=0)
    with pytest.raises(ValueError, match="most"):
        windows.draw(0)
    for bad in ([], [len(windows)], [-1], [1, 1]):
        with pytest.raises(ValueError, match="windows"):
            windows.at(bad)
    with pytest.raises(ValueError, match="most"):
        windows.usage_rows(0)
    with pytest.raises(ValueError, match="most"):
        windows.usage_rows(1)
