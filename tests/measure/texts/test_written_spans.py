"""Spans that a causal model writes."""

import pytest
import torch

from heldout.lm import tiny_llama, word_tokenizer
from heldout.measure import span_accuracy, usage_scores, writes_among, writes_spans
from heldout.tasks import CallWindows

MODEL = tiny_llama(word_tokenizer(["a b c d e f"]), dim=16, layers=2, seed=1)
VOCAB = MODEL.config.vocab_size


def written(context: list[int], count: int) -> list[int]:
    """What is written greedily, one token after the other, without a cache."""
    ids = list(context)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(MODEL(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(context) :]


def test_a_span_is_right_where_decoding_step_by_step_writes_it():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCAB, (12, 8), generator=generator)
    for row in range(0, 12, 2):  # half of them as the model would go on
        ids[row, 3:] = torch.tensor(written(ids[row, :3].tolist(), 5))
    spans = torch.tensor([[row, start, end] for row in range(12) for start in (1, 3, 5) for end in (start + 1, 8)])
    expected = [written(ids[r, :s].tolist(), e - s) == ids[r, s:e].tolist() for r, s, e in spans.tolist()]
    found = writes_spans(MODEL, ids, ids, spans, batch_size=5)
    assert found.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_a_closing_token_must_follow_even_behind_the_row():
    ids = torch.tensor([[4, *written([4], 3)]])
    (after,) = written(ids[0].tolist(), 1)
    span = torch.tensor([[0, 1, 4]])
    assert writes_spans(MODEL, ids, ids, span, closing=torch.tensor([after])).tolist() == [True]
    others = torch.tensor([token for token in range(VOCAB) if token != after])
    assert writes_spans(MODEL, ids, ids, span, closing=others).tolist() == [False]


def test_one_beam_is_greedy():
    contexts = ([first, second] for first in range(4, VOCAB) for second in range(4, VOCAB))
    context, word, end = next((c, *w) for c in contexts if len({*(w := written(c, 2))}) == 2 and min(w) > 0)
    other = next(token for token in range(4, VOCAB) if token not in (word, end))
    assert word != end
    call = {"closing": [end], "pad": 0}
    assert writes_among(MODEL, [context, [4, *context]], [[word], [word]], k=1, **call)[0]
    assert writes_among(MODEL, [context, context], [[word], [other]], k=1, batch_size=1, **call).tolist() == [
        True,
        False,
    ]


def test_bad_input_is_refused_by_name():
    ids = torch.tensor([[4, 5, 6]])
    for span in ([1, 1, 2], [0, 0, 2], [0, 2, 2], [0, 1, 4]):
        with pytest.raises(ValueError, match="spans"):
            writes_spans(MODEL, ids, ids, torch.tensor([span]))
    with pytest.raises(ValueError, match="inputs"):
        writes_spans(MODEL, ids.repeat(2, 1), ids, torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="continuations"):
        writes_among(MODEL, [[4]], [], closing=[2], pad=0)
    with pytest.raises(ValueError, match="token"):
        writes_among(MODEL, [[4]], [[]], closing=[2], pad=0)
    with pytest.raises(ValueError, match="closing"):
        writes_among(MODEL, [[4]], [[5]], closing=[], pad=0)


class Counting(torch.nn.Module):
    """The next token is one more."""

    def forward(self, ids):
        return torch.nn.functional.one_hot(ids + 1, 12).float()


def test_the_closing_token_is_the_one_behind_the_span():
    ids = torch.arange(2, 8)[None]
    spans = torch.tensor([[0, 1, 3], [0, 2, 6]])
    found = [writes_spans(Counting(), ids, ids, spans, closing=torch.tensor([token])).tolist() for token in range(12)]
    assert found == [[token == 5, token == 8] for token in range(12)]


class Beams(torch.nn.Module):
    """Writes given beams, two for each context."""

    def __init__(self, beams: list[list[int]]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.beams = torch.tensor(beams)

    def generate(self, ids, **options):
        return torch.cat([ids.repeat_interleave(2, 0), self.beams], 1)


def test_any_beam_of_the_context_may_be_right_and_must_be_closed_there():
    model = Beams([[5, 6, 2], [5, 2, 0], [7, 2, 0], [6, 6, 2]])
    call = {"closing": [2], "pad": 0, "k": 2}
    assert writes_among(model, [[4], [4, 4]], [[5], [7]], **call).tolist() == [True, True]
    assert writes_among(model, [[4], [4, 4]], [[7], [5]], **call).tolist() == [False, False]
    assert writes_among(model, [[4], [4, 4]], [[5, 6], [6]], **call).tolist() == [True, False]


def test_the_accuracy_of_a_span_is_the_share_of_tokens_that_are_the_most_likely():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, VOCAB, (8, 7), generator=generator)
    for row in range(0, 8, 2):
        ids[row, 2:5] = torch.tensor(written(ids[row, :2].tolist(), 3))
    spans = torch.tensor([[row, start, end] for row in range(8) for start, end in ((1, 7), (2, 5), (4, 5))])
    with torch.no_grad():
        most_likely = MODEL(ids).logits.argmax(-1)
    expected = [(most_likely[r, s - 1 : e - 1] == ids[r, s:e]).double().mean().item() for r, s, e in spans.tolist()]
    found = span_accuracy(MODEL, ids, ids, spans, batch_size=3)
    assert found.tolist() == pytest.approx(expected)
    assert len(set(expected)) > 3
    assert (found == 1).tolist() == writes_spans(MODEL, ids, ids, spans).tolist()
    with pytest.raises(ValueError, match="spans"):
        span_accuracy(MODEL, ids, ids, torch.tensor([[0, 0, 2]]))


class Knows(torch.nn.Module):
    """Says what comes next in rows that it was given, and writes the beams that it was given."""

    def __init__(self, rows, beams=()):
        super().__init__()
        self.rows, self.beams = rows, torch.tensor(beams)

    def forward(self, ids):
        rows = self.rows[: len(ids), : ids.shape[1]]
        return torch.nn.functional.one_hot(rows.roll(-1, 1), 12).float()

    def generate(self, ids, **options):
        return torch.cat([ids.repeat_interleave(5, 0), self.beams.repeat_interleave(5, 0)], 1)


def call_sites(contexts):
    """One site a row: its context, then a name of one token, 7, and its bracket, 9, which ends the usage."""
    length = max(map(len, contexts)) + 2
    ids = torch.tensor([[*c, 7, 9, *[0] * (length - len(c) - 2)] for c in contexts])
    calls = torch.tensor([[row, len(c), len(c) + 1] for row, c in enumerate(contexts)])
    usages = torch.tensor([[row, 1, len(c) + 2] for row, c in enumerate(contexts)])
    return CallWindows(ids, ids, calls, usages, ["f"] * len(ids), torch.tensor([9]), ["a.py"] * len(ids))


def test_whole_usages_short_ones_tokens_and_beams_are_told_apart():
    part = call_sites([[1, 2], [1, 2, 3, 4, 5, 6, 7, 8, 3, 2]])
    wrong = part.ids.clone()
    wrong[1, 4] = 11
    found = usage_scores(Knows(wrong, [[7, 9], [7, 8]]), [part], beams=2)
    assert found["usage"] == 0.5
    assert found["usage_short"] == 1.0
    assert found["usage_tokens"] == pytest.approx((1 + 10 / 11) / 2)
    assert found["call_at_5"] == 0.5
    long = call_sites([[1, 2, 3, 4, 5, 6, 7, 8, 3, 2]])
    two = usage_scores(Knows(wrong[:1]), [call_sites([[1, 2]]), call_sites([[1, 3]])])
    assert two == pytest.approx({"usage": 0.5, "usage_short": 0.5, "usage_tokens": (1 + 2 / 3) / 2})
    with pytest.raises(ValueError, match="short"):
        usage_scores(Knows(long.ids), [long])
    with pytest.raises(ValueError, match="parts"):
        usage_scores(Knows(long.ids), [])
