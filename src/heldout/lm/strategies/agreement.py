"""Answers from several reasoning paths: asking the model what they agree on, counting parsed answers, or embeddings.

Self-agreement replaces the parser and the count of self-consistency by one more call: the model reads the paths and
says which answer most of them give. It costs n + 1 calls, the last with a prompt about n times as long as a path.

Source: Lin, Fu et al., "Just ask one more time!" (arXiv:2311.08154) for self-agreement; Wang et al.
(arXiv:2203.11171) for self-consistency. The wording of the last prompt is ours.
"""

from __future__ import annotations

import math
import random
import re
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heldout.errors import (
    check_at_least,
    check_fields,
    check_fraction,
    check_nonempty,
    check_nonnegative,
    check_positive,
    checked,
)
from heldout.language_model import LM, Completion, Prompt
from heldout.lm.models.encoding import context_of, ids_of_prompt
from heldout.lm.models.scripted import text_of_prompt
from heldout.lm.models.usage import Usage, usage_of

AgreementTemplate = Callable[[str, Sequence[str]], Prompt]
Demonstration = tuple[str, Sequence[str], str]

AGREEMENT_TEMPLATE = (
    "{question}\n\n{paths}\n\n"
    "Above are several independent attempts at the question. Which answer do most of them reach? "
    "Write that answer and nothing else.\nAnswer:"
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Agreement:
    """What the paths agree on, as the model says.

    Attributes:
        answer: what the last call wrote.
        paths: as the last prompt shows them: in its order, and cut if they were.
        usage: of the calls that were made; paths that were given cost nothing.
        cut: sentences that a path keeps at its end, where the paths were cut to fit; None where they are whole.
        dropped: paths that had no room.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> (found,) = self_agreement(ScriptedLM(["7"]), ["What is 3 + 4?"], paths=[["It is 7.", "So seven."]])
        >>> found.answer, found.usage.calls, found.cut, found.dropped
        ('7', 1, None, 0)
    """

    answer: str
    paths: tuple[str, ...]
    usage: Usage
    cut: int | None = None
    dropped: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class PathVote:
    """The count of the paths' answers.

    Attributes:
        answer: the one with most votes; None where nothing could be parsed.
        votes: of each answer, in the order in which they were seen.
        unparsed: paths without answer.

    Example:
        >>> vote = PathVote(7.0, votes={7.0: 3.0, 8.0: 1.0}, unparsed=2)
        >>> vote.votes[vote.answer] / sum(vote.votes.values())
        0.75
    """

    answer: Any
    votes: dict[Any, float]
    unparsed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


@checked
def sample_paths(
    lm: LM,
    prompts: Sequence[Prompt],
    n: int = 10,
    *,
    temperature: float = 0.7,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    max_tokens: int = 256,
    seed: int = 0,
) -> list[list[Completion]]:
    """Returns ``n`` sampled completions of each prompt: reasoning paths for votes of whatever kind.

    Args:
        lm: any language model.
        prompts: with worked examples where the type of the question is known, else with "think step by step".
        n: paths of each.
        temperature, top_p, stop, max_tokens, seed: as for ``LM.generate``.

    Raises:
        ValueError: fewer than 2 paths, or a model that gives fewer than it was asked for.

    Warns:
        UserWarning: temperature 0, where all paths are the same.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> ((one, two),) = sample_paths(ScriptedLM(["7", "seven"]), ["3 + 4 ="], 2)
        >>> one.text, two.text
        ('7', 'seven')
    """
    check_at_least(1, max_tokens=max_tokens)
    check_nonnegative(temperature=temperature)
    check_fraction(top_p=top_p)
    if n < 2:
        raise ValueError(f"paths can agree from 2 on, got n={n}")
    if temperature == 0:
        warnings.warn("temperature 0 gives the same path n times", UserWarning, stacklevel=2)
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "stop": stop}
    found = lm.generate(prompts, n, max_tokens=max_tokens, seed=seed, **options)
    for number, paths in enumerate(found):
        if len(paths) != n:
            raise ValueError(f"the model gave {len(paths)} of {n} paths for prompt {number}; does it ignore n?")
    return found


@checked
def self_agreement(
    lm: LM,
    questions: Sequence[str],
    n: int = 10,
    *,
    paths: Sequence[Sequence[str]] | None = None,
    prompt: Callable[[str], Prompt] | None = None,
    aggregator: LM | None = None,
    template: str | AgreementTemplate = AGREEMENT_TEMPLATE,
    demonstrations: Sequence[Demonstration] = (),
    shuffle: bool = True,
    max_path_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    temperature: float = 0.7,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    max_tokens: int = 256,
    seed: int = 0,
) -> list[Agreement]:
    """Returns, for each question, the answer that a model finds most of its own reasoning paths to agree on.

    No answer is parsed and none is counted. Where the last prompt has no room, each path is first cut to its last two
    sentences, then to its last one, then paths are left out; the result says so.

    Args:
        lm: samples the paths.
        questions: of whatever type.
        n: paths of each question.
        paths: of each question, instead of sampling them.
        prompt: question -> prompt that a path continues; default: the question, and "Let's think step by step."
        aggregator: reads the paths; default: ``lm``, as in the paper.
        template: with the fields ``{question}`` and ``{paths}``, or a function (question, paths) -> prompt.
        demonstrations: (question, paths, answer) before the last prompt, where the type of the question is known;
            with a template whose prompts are texts.
        shuffle: show the paths in random order: models favour the first and the last.
        max_path_tokens: most tokens of a path, which keeps its last sentences, and the last one whatever its length.
        max_prompt_tokens: most tokens of the last prompt; default: what a ``TransformersLM`` can take, else no limit.
            Tokens are those of the aggregator's tokenizer, or words where it has none.
        temperature, top_p, stop, max_tokens, seed: of the paths; ``max_tokens`` and ``stop`` of the last call too,
            which is greedy.

    Raises:
        ValueError: fewer than 2 paths, a path without text, a template without its fields, a prompt that is too long
            even for the last sentences of 2 paths.

    Example:
        >>> from heldout.lm import ScriptedLM
        >>> lm = ScriptedLM(["3 and 4 make 7.", "It is seven.", "It is 8.", "7"])
        >>> (found,) = self_agreement(lm, ["What is 3 + 4?"], n=3)
        >>> found.answer, found.usage.calls
        ('7', 4)
    """
    check_at_least(1, max_tokens=max_tokens)
    check_nonnegative(temperature=temperature)
    check_fraction(top_p=top_p)
    render = agreement_template(template)
    if demonstrations:
        shown = "\n\n".join(f"{_text(render(q, some))} {answer}" for q, some, answer in demonstrations)
        plain = render
        render = lambda question, some: f"{shown}\n\n{_text(plain(question, some))}"  # noqa: E731
    usages = [Usage()] * len(questions)
    if paths is None:
        ask = prompt or (lambda question: f"{question}\nLet's think step by step.")
        sampled = sample_paths(
            lm,
            [ask(question) for question in questions],
            n,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            max_tokens=max_tokens,
            seed=seed,
        )
        usages = [usage_of(row) for row in sampled]
        paths = [[completion.text for completion in row] for row in sampled]
    if len(paths) != len(questions):
        raise ValueError(f"each question needs its paths, got {len(paths)} for {len(questions)} questions")
    reader = aggregator or lm
    count, limit = _counter(reader), max_prompt_tokens
    if limit is None and hasattr(reader, "model"):
        context = context_of(reader.model)
        limit = None if context is None else context - 1
    rng = random.Random(seed)
    chosen, prompts = [], []
    for number, (question, row) in enumerate(zip(questions, paths, strict=True)):
        if len(row) < 2 or not all(path.strip() for path in row):
            raise ValueError(f"question {number} needs at least 2 paths with text, got {list(row)!r:.80}")
        order = rng.sample(range(len(row)), len(row)) if shuffle else range(len(row))
        whole = [row[i] for i in order]
        short = whole if max_path_tokens is None else [_fitted(path, max_path_tokens, count) for path in whole]
        asked, kept, cut = _within(question, short, render, count, limit, number)
        prompts.append(asked)
        chosen.append((kept, cut))
    replies = reader.generate(prompts, 1, stop=stop, max_tokens=max_tokens, seed=seed)
    return [
        Agreement(reply[0].text.strip(), tuple(kept), usage + usage_of(reply), cut, len(row) - len(kept))
        for reply, (kept, cut), usage, row in zip(replies, chosen, usages, paths, strict=True)
    ]


@checked
def agreement_template(template: str | AgreementTemplate) -> AgreementTemplate:
    """Returns a function (question, paths) -> prompt from a text with the fields ``{question}`` and ``{paths}``.

    Raises:
        ValueError: if a field is missing.

    Example:
        >>> agreement_template("{question} {paths} =>")("3 + 4?", ["7", "8"])
        '3 + 4? Reasoning path 1: 7\\nReasoning path 2: 8 =>'
    """
    if callable(template):
        return template
    for field in ("{question}", "{paths}"):
        if field not in template:
            raise ValueError(f"the template needs {field}")

    def render(question: str, paths: Sequence[str]) -> str:
        listed = "\n".join(f"Reasoning path {number}: {path}" for number, path in enumerate(paths, 1))
        parts = {"{question}": question, "{paths}": listed}  # not str.format: a path may hold braces
        return re.sub(r"\{question\}|\{paths\}", lambda match: parts[match.group()], template)

    return render


@checked
def last_sentences(text: str, count: int = 1) -> str:
    """Returns the last sentences of a text; sentences end with ".", "!" or "?" before a space, or with their line.

    Example:
        >>> last_sentences("Tom has 3.5 apples. He eats 1. So 2.5 are left.")
        'So 2.5 are left.'
    """
    check_at_least(1, count=count)
    sentences = [sentence for sentence in _SENTENCE.split(text.strip()) if sentence]
    return " ".join(sentences[-count:])


@checked
def self_consistency(
    paths: Sequence[str],
    parse: Callable[[str], Hashable | None],
    weights: Sequence[float] | None = None,
) -> PathVote:
    """Returns the answer with most votes among the parsed paths; of equals, the one seen first.

    Args:
        paths: of one question.
        parse: path -> answer, or None where it finds none.
        weights: votes of each path; default 1.

    Raises:
        ValueError: no path, or weights that do not fit, are all 0, negative or not finite (log-probabilities are no
            weights: take their exponential).

    Example:
        >>> from heldout.lm import last_number
        >>> self_consistency(["it is 7.", "so 8", "7", "no idea"], last_number)
        PathVote(answer=7.0, votes={7.0: 2.0, 8.0: 1.0}, unparsed=1)
    """
    if not paths:
        raise ValueError("a vote needs at least one path")
    if weights is not None and len(weights) != len(paths):
        raise ValueError(f"weights needs one value for each of {len(paths)} paths, got {len(weights)}")
    for number, weight in enumerate(weights or ()):
        if not 0 <= weight < math.inf:
            raise ValueError(f"weights must be finite and not negative, got {weight} for path {number}")
    check_positive(sum_of_weights=1.0 if weights is None else math.fsum(weights))
    votes: dict[Any, float] = {}
    unparsed = 0
    for number, path in enumerate(paths):
        answer = parse(path)
        if answer is None:
            unparsed += 1
        else:
            votes[answer] = votes.get(answer, 0.0) + (1.0 if weights is None else weights[number])
    return PathVote(max(votes, key=lambda answer: votes[answer]) if votes else None, votes, unparsed)


@checked
def semantic_vote(paths: Sequence[str], encoder: Callable[[Sequence[str]], Any], threshold: float = 0.5) -> str:
    """Returns the path that the most paths are similar to, in the embedding of an encoder; of equals, the nearest.

    Args:
        paths: of one question, such as the last sentences of reasoning paths.
        encoder: texts -> embeddings ``(paths, dim)``, such as ``character_ngrams`` or a sentence encoder.
        threshold: cosine similarity from which a path counts as similar.

    Raises:
        ValueError: no path, or embeddings of another shape.

    Example:
        >>> semantic_vote(["blue", "it is red", "red it is"], character_ngrams)
        'it is red'
    """
    if not paths:
        raise ValueError("a vote needs at least one path")
    vectors = np.asarray(encoder(list(paths)), dtype=float)
    if vectors.ndim != 2 or len(vectors) != len(paths):
        raise ValueError(f"the encoder must give (paths, dim) for {len(paths)} paths, got {vectors.shape}")
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similar = (vectors @ vectors.T).round(9)  # rounded, so that equal texts tie
    support = (similar >= threshold).sum(1) + similar.mean(1) / 2
    return paths[int(support.argmax())]


@checked
def character_ngrams(texts: Sequence[str]) -> np.ndarray:
    """Returns TF-IDF vectors ``(texts, dim)`` of character n-grams of 1 to 3 letters, weighted among these texts.

    An encoder that needs no download; it knows spelling and no meaning.

    Example:
        >>> character_ngrams(["a", "a"]).shape
        (2, 5)
    """
    check_nonempty(texts=texts)
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)).fit_transform(texts).toarray()


def _within(
    question: str,
    paths: Sequence[str],
    render: AgreementTemplate,
    count: Callable[[Prompt], int],
    limit: int | None,
    number: int,
) -> tuple[Prompt, list[str], int | None]:
    """Returns the last prompt, the paths in it, and to how many sentences they were cut, if at all."""
    for cut in (None, 2, 1):
        kept = list(paths) if cut is None else [last_sentences(path, cut) for path in paths]
        asked = render(question, kept)
        if limit is None or count(asked) <= limit:
            return asked, kept, cut
    while len(kept) > 2:
        kept.pop()
        asked = render(question, kept)
        if limit is None or count(asked) <= limit:
            return asked, kept, 1
    raise ValueError(
        f"the last prompt of question {number} has {count(asked)} tokens of at most {limit}, "
        "with two paths of one sentence"
    )


def _fitted(path: str, tokens: int, count: Callable[[Prompt], int]) -> str:
    sentences = [sentence for sentence in _SENTENCE.split(path.strip()) if sentence]
    while len(sentences) > 1 and count(" ".join(sentences)) > tokens:
        sentences.pop(0)
    return " ".join(sentences)


def _counter(lm: Any) -> Callable[[Prompt], int]:
    tokenizer = getattr(lm, "tokenizer", None)
    if tokenizer is None:
        return lambda prompt: len(text_of_prompt(prompt).split())
    return lambda prompt: len(ids_of_prompt(prompt, tokenizer))


def _text(prompt: Prompt) -> str:
    if not isinstance(prompt, str):
        raise ValueError("demonstrations need a template whose prompts are texts")
    return prompt
