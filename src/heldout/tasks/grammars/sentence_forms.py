"""Core: Sentences and their logical forms, as in COGS, from a small grammar with nested phrases and clauses.

Source: arXiv:2010.05465 (Kim and Linzen): the form of the logical forms, and what is embedded in what.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from heldout.data import SequencePair, as_tokens
from heldout.errors import check_at_least, check_fields, check_fraction, check_nonempty, checked

Tokens = tuple[str, ...]

_INTRANSITIVE = {"slept": "sleep", "ran": "run", "smiled": "smile", "danced": "dance"}
_TRANSITIVE = {"saw": "see", "ate": "eat", "liked": "like", "found": "find", "painted": "paint", "held": "hold"}
_PARTICIPLES = {"seen": "see", "eaten": "eat", "liked": "like", "found": "find", "painted": "paint", "held": "hold"}
_DATIVE = {"gave": "give", "sent": "send", "sold": "sell"}
_CLAUSAL = {"said": "say", "thought": "think", "hoped": "hope"}
_PREPOSITIONS = ("on", "in", "beside")
_DETERMINERS = ("a", "the")
_FUNCTION_WORDS = ("was", "by", "to", "that")
_KINDS = ("intransitive", "transitive", "passive", "dative", "double", "clausal")


class _Noun(NamedTuple):
    """A noun with its determiner ("" for a name), and the phrase that says where it is."""

    word: str
    determiner: str
    where: tuple[str, _Noun] | None = None  # type: ignore[misc]  # mypy has no recursive NamedTuple


class _Clause(NamedTuple):
    kind: str
    verb: str
    nouns: tuple[_Noun, ...]
    inner: _Clause | None = None  # type: ignore[misc]


_TRIES = 20  # draws for each pair that is asked for


@dataclass(frozen=True)
class SentenceForms:
    """Sentences in the past tense with their logical forms: facts about words, told apart by their positions.

    A fact is ``cat ( x_1 )``, ``* cat ( x_1 )`` for "the cat", ``eat . agent ( x_2 , x_1 )``, or
    ``cat . nmod . on ( x_1 , x_4 )``; facts stand in the order of their words, with "AND" between them. Names stand
    for themselves.

    Args:
        nouns: common nouns.
        names: nouns that take no determiner.
        depth: how deep phrases ("on the mat") and clauses ("said that ...") may be nested, in all.
        nesting: the probability that a noun or clause is nested where it may be.

    Raises:
        ValueError: no nouns or names, words that the grammar has already, a depth below 0, or no probability.

    Source: arXiv:2010.05465, section 3.

    Deviation: one form of each verb, no relative clauses and no infinitives; definite nouns stay in their place.

    Example:
        >>> forms = SentenceForms()
        >>> " ".join(forms.interpret("Emma saw a cat"))
        'see . agent ( x_1 , Emma ) AND see . theme ( x_1 , x_3 ) AND cat ( x_3 )'
        >>> source, target = forms.sample(1, seed=0)[0]
        >>> forms.interpret(source) == target
        True
    """

    nouns: Sequence[str] = ("cat", "dog", "cake", "box", "girl", "boy", "rose", "table", "book", "cup")
    names: Sequence[str] = ("Emma", "Liam", "Ava", "Noah")
    depth: int = 2
    nesting: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self)
        check_nonempty(nouns=self.nouns, names=self.names)
        check_at_least(0, depth=self.depth)
        check_fraction(nesting=self.nesting)
        verbs = (*_INTRANSITIVE, *_TRANSITIVE, *_PARTICIPLES, *_DATIVE, *_CLAUSAL)
        taken = {*verbs, *_PREPOSITIONS, *_DETERMINERS, *_FUNCTION_WORDS}
        words = [*self.nouns, *self.names]
        for word in words:
            if word in taken or word != "".join(word.split()) or not word or words.count(word) > 1:
                raise ValueError(f"nouns and names must be different single words of no other use, got {word!r}")

    @checked
    def sample(self, n: int, *, seed: int = 0) -> list[SequencePair]:
        """Returns n different sentences with their logical forms.

        Raises:
            ValueError: so many different sentences are not found in 20 draws for each, where words are few.
        """
        check_at_least(1, n=n)
        check_at_least(0, seed=seed)
        rng = random.Random(seed)
        found: dict[Tokens, Tokens] = {}
        for _ in range(_TRIES * n + 1000):
            source, target = _written(self._clause(self.depth, rng))
            found.setdefault(source, target)
            if len(found) == n:
                return list(found.items())
        raise ValueError(f"n must be at most about {len(found)} for so few words, got {n}")

    @checked
    def primitive(self, word: str) -> SequencePair:
        """Returns a noun or name alone with its form, as COGS shows words that its test composes.

        Raises:
            ValueError: the grammar has no such noun or name.

        Example:
            >>> SentenceForms().primitive("cat")
            (('cat',), ('LAMBDA', 'a', '.', 'cat', '(', 'a', ')'))
        """
        if word not in (*self.nouns, *self.names):
            raise ValueError(f"word must be a noun or name of this grammar, got {word!r}")
        return (word,), ((word,) if word in self.names else ("LAMBDA", "a", ".", word, "(", "a", ")"))

    def interpret(self, source: str | Sequence[str]) -> tuple[str, ...]:
        """Returns the logical form of a sentence, or of a noun or name alone, read from its words alone.

        Raises:
            ValueError: it is no sentence of this grammar.
        """
        words = as_tokens(source, "source")
        if len(words) == 1 and words[0] in (*self.nouns, *self.names):
            return self.primitive(words[0])[1]
        return _Reader(words, self).form()

    def _noun(self, depth: int, rng: random.Random) -> _Noun:
        if rng.random() < 0.25:
            return _Noun(rng.choice(self.names), "")
        where = None
        if depth > 0 and rng.random() < self.nesting:
            inner = self._noun(depth - 1, rng)
            while not inner.determiner:  # nothing is on Emma
                inner = self._noun(depth - 1, rng)
            where = (rng.choice(_PREPOSITIONS), inner)
        return _Noun(rng.choice(self.nouns), rng.choice(_DETERMINERS), where)

    def _clause(self, depth: int, rng: random.Random) -> _Clause:
        if depth > 0 and rng.random() < self.nesting:
            verb = rng.choice(list(_CLAUSAL))
            return _Clause("clausal", verb, (self._noun(0, rng),), self._clause(depth - 1, rng))
        kind = rng.choice(_KINDS[:-1])
        words = {"intransitive": _INTRANSITIVE, "transitive": _TRANSITIVE, "passive": _PARTICIPLES}.get(kind, _DATIVE)
        count = {"intransitive": 1, "transitive": 2, "passive": 2}.get(kind, 3)
        return _Clause(kind, rng.choice(list(words)), tuple(self._noun(depth, rng) for _ in range(count)))


def _written(clause: _Clause) -> SequencePair:
    """A clause as a sentence and its logical form, both written from its tree."""
    words: list[str] = []
    facts: list[tuple[int, int, Tokens]] = []  # position of the word that it is about, order of roles, the fact

    def write_noun(noun: _Noun) -> str:
        if not noun.determiner:
            words.append(noun.word)
            return noun.word
        words.extend((noun.determiner, noun.word))
        at = len(words) - 1
        star = ("*",) if noun.determiner == "the" else ()
        facts.append((at, 0, (*star, noun.word, "(", f"x_{at}", ")")))
        if noun.where:
            words.append(noun.where[0])
            inner = write_noun(noun.where[1])
            facts.append((at, 1, (noun.word, ".", "nmod", ".", noun.where[0], "(", f"x_{at}", ",", inner, ")")))
        return f"x_{at}"

    def write_clause(clause: _Clause) -> int:
        roles: list[tuple[str, str]] = []
        first = write_noun(clause.nouns[0])
        if clause.kind == "passive":
            words.append("was")
        words.append(clause.verb)
        at = len(words) - 1
        if clause.kind == "clausal":
            words.append("that")
            roles = [("agent", first), ("ccomp", f"x_{write_clause(clause.inner)}")]  # type: ignore[arg-type]
        elif clause.kind == "intransitive":
            roles = [("agent", first)]
        elif clause.kind == "transitive":
            roles = [("agent", first), ("theme", write_noun(clause.nouns[1]))]
        elif clause.kind == "passive":
            words.append("by")
            roles = [("agent", write_noun(clause.nouns[1])), ("theme", first)]
        elif clause.kind == "dative":
            theme = write_noun(clause.nouns[1])
            words.append("to")
            roles = [("agent", first), ("theme", theme), ("recipient", write_noun(clause.nouns[2]))]
        else:
            recipient = write_noun(clause.nouns[1])
            roles = [("agent", first), ("theme", write_noun(clause.nouns[2])), ("recipient", recipient)]
        lemma = {**_INTRANSITIVE, **_TRANSITIVE, **_PARTICIPLES, **_DATIVE, **_CLAUSAL}[clause.verb]
        for order, (role, filler) in enumerate(roles):
            facts.append((at, order, (lemma, ".", role, "(", f"x_{at}", ",", filler, ")")))
        return at

    write_clause(clause)
    form = [token for _, _, fact in sorted(facts) for token in ("AND", *fact)]
    return tuple(words), tuple(form[1:])


class _Reader:
    """Reads a sentence from left to right, without the tree that it was made from."""

    def __init__(self, words: Tokens, grammar: SentenceForms) -> None:
        self.words, self.grammar, self.at = words, grammar, 0
        self.about: dict[int, list[Tokens]] = {}

    def form(self) -> Tokens:
        self._clause()
        if self.at < len(self.words):
            self._refuse()
        form: list[str] = []
        for at in sorted(self.about):
            for fact in self.about[at]:
                form += ["AND", *fact] if form else fact
        return tuple(form)

    def _refuse(self) -> None:
        raise ValueError(f"source must be a sentence of this grammar, got {' '.join(self.words)!r}")

    @property
    def _next(self) -> str:
        return self.words[self.at] if self.at < len(self.words) else ""

    def _take(self, *allowed: str) -> str:
        if self._next not in allowed:
            self._refuse()
        self.at += 1
        return self.words[self.at - 1]

    def _noun(self) -> str:
        if self._next in self.grammar.names:
            return self._take(*self.grammar.names)
        determiner = self._take(*_DETERMINERS)
        at, noun = self.at, self._take(*self.grammar.nouns)
        facts = self.about.setdefault(at, [])
        facts.append((*(["*"] if determiner == "the" else []), noun, "(", f"x_{at}", ")"))
        if self._next in _PREPOSITIONS:
            preposition = self._take(*_PREPOSITIONS)
            if self._next in self.grammar.names:
                self._refuse()
            place = self._noun()
            facts.append((noun, ".", "nmod", ".", preposition, "(", f"x_{at}", ",", place, ")"))
        return f"x_{at}"

    def _clause(self) -> int:
        subject = self._noun()
        if self._next == "was":
            self.at += 1
            at, lemma = self.at, _PARTICIPLES[self._take(*_PARTICIPLES)]
            self._take("by")
            self._tell(at, lemma, agent=self._noun(), theme=subject)
            return at
        at, verb = self.at, self._take(*_INTRANSITIVE, *_TRANSITIVE, *_DATIVE, *_CLAUSAL)
        if verb in _CLAUSAL:
            self._take("that")
            self._tell(at, _CLAUSAL[verb], agent=subject, ccomp=f"x_{self._clause()}")
        elif verb in _INTRANSITIVE:
            self._tell(at, _INTRANSITIVE[verb], agent=subject)
        elif verb in _TRANSITIVE:
            self._tell(at, _TRANSITIVE[verb], agent=subject, theme=self._noun())
        else:
            first = self._noun()
            if self._next == "to":
                self.at += 1
                self._tell(at, _DATIVE[verb], agent=subject, theme=first, recipient=self._noun())
            else:
                self._tell(at, _DATIVE[verb], agent=subject, theme=self._noun(), recipient=first)
        return at

    def _tell(self, at: int, lemma: str, **roles: str) -> None:
        self.about[at] = [(lemma, ".", role, "(", f"x_{at}", ",", filler, ")") for role, filler in roles.items()]
