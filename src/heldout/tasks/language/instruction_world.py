"""The instruction world: procedural tasks on lists of words, with instructions, true outputs and a known composition.

Words have a colour, a size and a material. A task is one or two operations, worded in one of three ways each, and
sometimes a constraint that only its "things to avoid" or "emphasis" line states. Its six categories mirror those of
Natural Instructions (arXiv:2104.08773): "transform" for question generation, "answer", "classify", "wrong" for
incorrect answers, "modify" for minimal modification, and "verify".
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property, lru_cache

from heldout.errors import check_at_least, check_between, check_nonempty, checked
from heldout.tasks.language.instructions import Instance, InstructionExample, InstructionTask
from heldout.tasks.language.list_programs import ATTRIBUTES, CONSTRAINTS, Operation, Program, lexicon, run_program

CATEGORIES = ("transform", "answer", "classify", "wrong", "modify", "verify")
_LENGTHS = {"short": (3, 4), "long": (5, 6), "repeats": (4, 5)}
SOURCES = tuple(_LENGTHS)
_VALUES = tuple(value for values in ATTRIBUTES.values() for value in values)

# three wordings of each operation in instructions, and one in facts
_WORDINGS: dict[str, tuple[str, str, str, str]] = {
    "reverse": ("reverse the list", "write the items from last to first", "turn the list around", "backwards"),
    "sort": ("put the {0} items before the others", "write {0} items before all that are not",
             "move every {0} item to the front", "with {0} in front"),
    "keep": ("keep only the {0} items", "write just the items that are {0}", "drop all that is not {0}", "only {0}"),
    "remove": ("remove the {0} items", "leave out every item that is {0}", "write the list without {0} items",
               "without {0}"),
    "replace": ("replace each {0} item by {1}", "write {1} in place of every {0} item", "turn all {0} items into {1}",
                "with {1} for {0}"),
    "drop_first": ("drop the first item", "start at the second item", "write all items after the first",
                   "after the first"),
    "drop_last": ("drop the last item", "stop before the last item", "write all items but the last", "up to the last"),
    "swap": ("swap the first and the last item", "let the two ends change places", "exchange both end items",
             "with ends swapped"),
    "first": ("name the first item", "which item comes first ?", "give the item at the start", "its first"),
    "second": ("name the second item", "which item comes after the first ?", "give the item at place two",
               "its second"),
    "last": ("name the last item", "which item comes last ?", "give the item at the end", "its last"),
    "count": ("count the {0} items", "how many items are {0} ?", "give the number of {0} items", "its number of {0}"),
    "first_of": ("name the first {0} item", "which {0} item comes first ?", "give the first item that is {0}",
                 "its first {0}"),
    "last_of": ("name the last {0} item", "which {0} item comes last ?", "give the last item that is {0}",
                "its last {0}"),
    "has": ("say yes if an item is {0} , else no", "is any item {0} ?", "does the list have a {0} item ?", "any {0}"),
    "more": ("say which is more common : {0} or {1}", "are more items {0} or {1} ?", "choose the majority : {0} or {1}",
             "more {0} or {1}"),
    "first_is": ("classify the first item by {0}", "which {0} has the first item ?", "give the {0} of the first item",
                 "{0} of its first"),
    "last_is": ("classify the last item by {0}", "which {0} has the last item ?", "give the {0} of the last item",
                "{0} of its last"),
    "not_of": ("name an item that is not {0}", "answer falsely : which item is {0} ?",
               "give a wrong answer to : which item is {0} ?", "one not {0}"),
    "not_first": ("name an item that is not the first", "answer falsely : which item comes first ?",
                  "give a wrong answer to : which item is at the start ?", "one not its first"),
    "not_second": ("name an item that is not the second", "answer falsely : which item comes second ?",
                   "give a wrong answer to : which item is at place two ?", "one not its second"),
    "wrong_first": ("name a {0} that the first item has not", "answer falsely : which {0} has the first item ?",
                    "give a wrong answer to : what is the {0} of the first item ?", "a wrong {0} of its first"),
    "wrong_last": ("name a {0} that the last item has not", "answer falsely : which {0} has the last item ?",
                   "give a wrong answer to : what is the {0} of the last item ?", "a wrong {0} of its last"),
    "change_of": ("change the first {0} item to {1}", "write {1} for the first {0} item and keep the others",
                  "edit one item : the first {0} becomes {1}", "with {1} for its first {0}"),
    "change_first": ("change the first item to {0}", "write {0} for the first item and keep the others",
                     "edit one item : the first becomes {0}", "with {0} for its first"),
    "change_last": ("change the last item to {0}", "write {0} for the last item and keep the others",
                    "edit one item : the last becomes {0}", "with {0} for its last"),
}  # fmt: skip
_CHECKS = ("check the second list : {0}", "say yes if the part after gives is right for : {0}",
           "is what follows gives a right output for : {0}")  # fmt: skip
_FAMILIES = {
    "transform": ("reverse", "sort", "keep", "remove", "replace", "drop_first", "drop_last", "swap"),
    "answer": ("first", "second", "last", "count", "first_of", "last_of"),
    "classify": ("has", "more", "first_is", "last_is"),
    "wrong": ("not_of", "not_first", "not_second", "wrong_first", "wrong_last"),
    "modify": ("change_of", "change_first", "change_last"),
}
_PROMPTS = {
    "transform": "write a list",
    "answer": "give the answer",
    "classify": "give the class",
    "wrong": "give a wrong answer",
    "modify": "write the list with one change",
    "verify": "answer yes or no",
}


class InstructionWorld:
    """Procedural instruction tasks, the same for the same arguments.

    Attributes:
        tasks: the tasks. No two have the same program.
        programs: the program of each task, by its name.
        words: the lexicon, which does not depend on the seed.

    Args:
        n_tasks: spread evenly over the categories.
        categories: some of ``CATEGORIES``.
        vocab: number of words in the lexicon.
        seed: of programs, wordings and instances.
        n_instances: of each task.
        sources: some of ``SOURCES``, of which each task has one: lists of 3 or 4 words ("short"), of 5 or 6 ("long"),
            or of 4 or 5 of which one stands twice ("repeats").

    Raises:
        ValueError: an unknown category or source; fewer tasks than categories; more tasks than there are programs.

    Example:
        >>> world = InstructionWorld(12, n_instances=5)
        >>> task = world.tasks[0]
        >>> instance = task.instances[0]
        >>> tuple(run_program(world.programs[task.name], instance.input, world.words)) == instance.outputs
        True
    """

    @checked
    def __init__(
        self,
        n_tasks: int = 180,
        categories: Sequence[str] = CATEGORIES,
        vocab: int = 120,
        seed: int = 0,
        *,
        n_instances: int = 100,
        sources: Sequence[str] = SOURCES,
    ) -> None:
        check_at_least(1, n_tasks=n_tasks)
        check_between(32, 1000, vocab=vocab)
        if not sources or not set(sources) <= set(SOURCES):
            raise ValueError(f"sources must be among {', '.join(SOURCES)}, got {sources!r}")
        if unknown := [category for category in categories if category not in CATEGORIES]:
            raise ValueError(f"categories must be among {', '.join(CATEGORIES)}, got {unknown[0]!r}")
        if not 0 < len(categories) <= n_tasks:
            raise ValueError(f"every category needs a task, got {n_tasks} tasks for {len(categories)} categories")
        if n_instances < 1:
            raise ValueError(f"a task needs at least one instance, got n_instances={n_instances}")
        self.words = lexicon(vocab)
        self.programs: dict[str, Program] = {}
        self.tasks: list[InstructionTask] = []
        rng = random.Random(f"{seed} {n_tasks} {vocab}")
        seen: set[tuple[str, tuple[Operation, ...]]] = set()
        for number in range(n_tasks):
            category, source = categories[number % len(categories)], rng.choice(sources)
            name = f"{category}-{number:03d}"
            for _ in range(1000):
                program = _draw_program(category, source, vocab, rng)
                if (category, program.steps) not in seen and (
                    task := _draw_task(name, program, source, vocab, n_instances, rng)
                ):
                    break
            else:
                raise ValueError(f"there are not {n_tasks} different tasks: no new one of category {category!r} found")
            seen.add((category, program.steps))
            self.programs[name] = program
            self.tasks.append(task)

    @cached_property
    def texts(self) -> list[str]:
        """Returns every wording with every argument, all words and labels: what a word tokenizer has to know."""
        wordings = [text.replace("{0}", "").replace("{1}", "") for group in _WORDINGS.values() for text in group]
        checks = [text.replace("{0}", "") for text in _CHECKS]
        rest = "yes no true false stop none gives the is answer should be , then for " + " ".join(map(str, range(8)))
        constraints = [text for _, text in CONSTRAINTS.values()]
        return [*wordings, *checks, *constraints, *_PROMPTS.values(), *self.words, *_VALUES, *ATTRIBUTES, rest]


@checked
def list_facts(count: int, *, vocab: int = 120, seed: int = 0, sources: Sequence[str] = SOURCES) -> list[str]:
    """Returns true statements about words and lists, such as "bado kila backwards is kila bado", in no task's format.

    What comes before the last " is " says what comes after it. They teach a base model what instructions will speak of.

    Args:
        count: statements.
        vocab: number of words in the lexicon.
        seed: of the drawing.
        sources: of the lists, see ``InstructionWorld``.

    Example:
        >>> len(list_facts(3))
        3
    """
    check_between(32, 1000, vocab=vocab)
    check_nonempty(sources=sources)
    check_at_least(0, count=count)
    words, rng = lexicon(vocab), random.Random(seed)
    facts: list[str] = []
    while len(facts) < count:
        if rng.random() < 0.1:
            word = rng.choice(list(words))
            facts.append(f"{word} is {' '.join(words[word].values())}")
            continue
        family = rng.choice(list(_FAMILIES))
        program = _draw_program(family, "long", vocab, rng)
        items = " ".join(_draw_items(program, rng.choice(sources), vocab, rng))
        outputs = run_program(Program(family, program.steps), items, words)
        if outputs is None:
            continue
        phrases = " , ".join(_WORDINGS[name][3].format(*arguments) for name, *arguments in program.steps)
        facts.append(f"{items} , {phrases} is {rng.choice(outputs)}")
    return facts


@lru_cache(maxsize=8)
def _words_by_value(vocab: int) -> dict[str, list[str]]:
    words = lexicon(vocab)
    return {value: [word for word, has in words.items() if value in has.values()] for value in _VALUES}


def _draw_program(category: str, source: str, vocab: int, rng: random.Random) -> Program:
    family = rng.choice(("transform", "answer", "modify")) if category == "verify" else category
    steps = [_draw_operation(family, vocab, rng)]
    if rng.random() < 0.5:
        steps.insert(0, _draw_operation("transform", vocab, rng))
    last = steps[-1][0]
    fitting = {
        "transform": "unique" if source == "repeats" else "stop",
        "modify": "stop",
        "answer": "twice",
        "classify": "truth" if last == "has" else "twice",
        "wrong": "not_last" if last.startswith("not") else "twice",
        "verify": "truth",
    }
    return Program(category, tuple(steps), fitting[category] if rng.random() < 1 / 3 else "")


def _draw_operation(family: str, vocab: int, rng: random.Random) -> Operation:
    name = rng.choice(_FAMILIES[family])
    if name == "more":
        return (name, *rng.sample(rng.choice(list(ATTRIBUTES.values())), 2))
    if name in ("first_is", "last_is", "wrong_first", "wrong_last"):
        return name, rng.choice(list(ATTRIBUTES))
    arguments = []
    if name in ("sort", "keep", "remove", "replace", "count", "first_of", "last_of", "has", "not_of", "change_of"):
        arguments.append(rng.choice(_VALUES))
    if name in ("replace", "change_of", "change_first", "change_last"):
        arguments.append(rng.choice(list(lexicon(vocab))))
    return name, *arguments


def _draw_items(program: Program, source: str, vocab: int, rng: random.Random) -> list[str]:
    """Half of the items have an attribute that the program asks for, where it asks for one."""
    by_value = _words_by_value(vocab)
    named = [value for step in program.steps for value in step[1:] if value in by_value]
    length = rng.choice(_LENGTHS[source])
    items: list[str] = []
    while len(items) < length:
        word = rng.choice(by_value[rng.choice(named)] if named and rng.random() < 0.5 else list(lexicon(vocab)))
        if word not in items:
            items.append(word)
    if source == "repeats":
        one, other = rng.sample(range(length), 2)
        items[other] = items[one]
    return items


def _draw_task(
    name: str, program: Program, source: str, vocab: int, count: int, rng: random.Random
) -> InstructionTask | None:
    """None where the program has no outputs, or the same one for all inputs."""
    drawn = []
    for number in range(count + 3):
        instance = _draw_instance(program, source, number % 2, vocab, rng)
        if instance is None:
            return None
        drawn.append(instance)
    if len({instance.outputs for instance in drawn}) == 1 < count:
        return None
    rng.shuffle(drawn)
    *instances, first, second, third = drawn
    wrong = _wrong_output(program, third, vocab, rng)
    lines = {"avoid": "", "emphasis": ""}
    if program.constraint:
        line, text = CONSTRAINTS[program.constraint]
        lines[line] = text
    return InstructionTask(
        name=name,
        category=program.category,
        definition=_wording(program, rng),
        prompt=_PROMPTS[program.category],
        positive=[InstructionExample(e.input, e.outputs[0], _wording(program, rng)) for e in (first, second)],
        negative=[
            InstructionExample(third.input, wrong, _wording(program, rng), f"the output should be {third.outputs[0]}")
        ],
        instances=instances,
        source=source,
        **lines,
    )


def _draw_instance(program: Program, source: str, parity: int, vocab: int, rng: random.Random) -> Instance | None:
    """Rejects inputs without an output; of yes and no, each is drawn for every second instance."""
    words, plain = lexicon(vocab), Program(program.category, program.steps)
    wanted = ("no", "yes")[parity] if program.category == "verify" or program.steps[-1][0] == "has" else None
    for _ in range(200):
        text = " ".join(_draw_items(program, source, vocab, rng))
        if program.category == "verify":
            candidate = _candidate(program, text, wanted == "yes", vocab, rng)
            if candidate is None:
                continue
            text = f"{text} gives {candidate}"
        outputs = run_program(program, text, words)
        if outputs and (wanted is None or run_program(plain, text, words) == [wanted]):
            return Instance(text, tuple(outputs))
    return None


def _candidate(program: Program, text: str, right: bool, vocab: int, rng: random.Random) -> str | None:
    """A right output, or one that another program of the same family has for the same input."""
    words = lexicon(vocab)
    outputs = run_program(Program("", program.steps), text, words)
    if outputs is None or right:
        return outputs[0] if outputs else None
    family = next(family for family, names in _FAMILIES.items() if program.steps[-1][0] in names)
    for _ in range(20):
        steps = (*program.steps[:-1], _draw_operation(family, vocab, rng))
        if len(program.steps) == 2 and rng.random() < 0.5:
            steps = program.steps[-1:]
        other = run_program(Program("", steps), text, words)
        if other and not set(other) & set(outputs):
            return other[0]
    return None


def _wrong_output(program: Program, instance: Instance, vocab: int, rng: random.Random) -> str:
    """What breaks the constraint, or a right answer where a wrong one is asked for, or the output for another input."""
    broken = run_program(Program(program.category, program.steps), instance.input, lexicon(vocab)) or []
    if different := [output for output in broken if output not in instance.outputs]:
        return different[0]
    if program.steps[-1][0].startswith("not"):
        return next(item for item in instance.input.split() if item not in instance.outputs)
    if set(instance.outputs) & {"yes", "no"}:
        return "no" if "yes" in instance.outputs else "yes"
    for _ in range(200):
        other = _draw_instance(program, "short", 0, vocab, rng)
        if other and other.outputs[0] not in instance.outputs:
            return other.outputs[0]
    return "none"


def _wording(program: Program, rng: random.Random) -> str:
    text = " , then ".join(rng.choice(_WORDINGS[name][:3]).format(*arguments) for name, *arguments in program.steps)
    return rng.choice(_CHECKS).format(text) if program.category == "verify" else text
