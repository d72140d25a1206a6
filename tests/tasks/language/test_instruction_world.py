"""The instruction world against an interpreter that reads the definitions."""

import re
from collections import Counter

import pytest

from heldout.tasks import CATEGORIES, InstructionWorld, Program, lexicon, list_facts, run_program
from heldout.tasks.language.instruction_world import SOURCES
from heldout.tasks.language.list_programs import ATTRIBUTES, CONSTRAINTS, apply_operation

WORLD = InstructionWorld(60, seed=1000, n_instances=40)
WORDS = WORLD.words


def has(word, value):
    return value in WORDS.get(word, {}).values()


def followed(definition, items):
    """All right outputs, from the words of the definition alone: a second interpreter, by regular expressions."""
    for part in definition.split(" , then "):
        outputs = None
        for pattern, function in RULES:
            if match := re.fullmatch(pattern, part):
                outputs = function(items, *match.groups())
                break
        assert outputs is not None, part
        items = outputs[0].split() if outputs else []
    return outputs


def joined(items):
    return [" ".join(items)]


def pick(items, value):
    return [item for item in items if has(item, value)]


def changed(items, place, word):
    return joined(word if i == place % len(items) else item for i, item in enumerate(items))


def unlike(items, place):
    return [item for item in items if item != items[place]]


def values_but(items, attribute, place):
    return [value for value in ATTRIBUTES[attribute] if not has(items[place], value)]


RULES = [
    ("reverse the list|write the items from last to first|turn the list around", lambda x: joined(reversed(x))),
    (r"put the (\w+) items before the others|write (\w+) items before all that are not|"
     r"move every (\w+) item to the front",
     lambda x, *v: joined(sorted(x, key=lambda item: not has(item, next(filter(None, v)))))),
    (r"keep only the (\w+) items|write just the items that are (\w+)|drop all that is not (\w+)",
     lambda x, *v: joined(pick(x, next(filter(None, v))))),
    (r"remove the (\w+) items|leave out every item that is (\w+)|write the list without (\w+) items",
     lambda x, *v: joined(item for item in x if not has(item, next(filter(None, v))))),
    (r"replace each (\w+) item by (\w+)|turn all (\w+) items into (\w+)",
     lambda x, a, b, c, d: joined((b or d) if has(item, a or c) else item for item in x)),
    (r"write (\w+) in place of every (\w+) item", lambda x, w, v: joined(w if has(item, v) else item for item in x)),
    ("drop the first item|start at the second item|write all items after the first", lambda x: joined(x[1:])),
    ("drop the last item|stop before the last item|write all items but the last", lambda x: joined(x[:-1])),
    ("swap the first and the last item|let the two ends change places|exchange both end items",
     lambda x: joined([x[-1], *x[1:-1], *x[:1]][: len(x)])),
    (r"name the first item|which item comes first \?|give the item at the start", lambda x: x[:1]),
    (r"name the second item|which item comes after the first \?|give the item at place two", lambda x: x[1:2]),
    (r"name the last item|which item comes last \?|give the item at the end", lambda x: x[-1:]),
    (r"count the (\w+) items|how many items are (\w+) \?|give the number of (\w+) items",
     lambda x, *v: [str(len(pick(x, next(filter(None, v)))))]),
    (r"name the first (\w+) item|which (\w+) item comes first \?|give the first item that is (\w+)",
     lambda x, *v: pick(x, next(filter(None, v)))[:1]),
    (r"name the last (\w+) item|which (\w+) item comes last \?|give the last item that is (\w+)",
     lambda x, *v: pick(x, next(filter(None, v)))[-1:]),
    (r"say yes if an item is (\w+) , else no|is any item (\w+) \?|does the list have a (\w+) item \?",
     lambda x, *v: ["yes" if pick(x, next(filter(None, v))) else "no"]),
    (r"(?:say which is more common :|are more items|choose the majority :) (\w+) or (\w+)(?: \?)?",
     lambda x, a, b: [max((a, b), key=lambda value: len(pick(x, value)))]),
    (r"classify the first item by (\w+)|which (\w+) has the first item \?|give the (\w+) of the first item",
     lambda x, *v: [WORDS[x[0]][next(filter(None, v))]]),
    (r"classify the last item by (\w+)|which (\w+) has the last item \?|give the (\w+) of the last item",
     lambda x, *v: [WORDS[x[-1]][next(filter(None, v))]]),
    (r"name an item that is not the (first|second)", lambda x, v: unlike(x, ["first", "second"].index(v))),
    (r".*: which item (?:comes first|is at the start) \?", lambda x: unlike(x, 0)),
    (r".*: which item (?:comes second|is at place two) \?", lambda x: unlike(x, 1)),
    (r"name an item that is not (\w+)|.*: which item is (\w+) \?",
     lambda x, *v: [item for item in x if not has(item, next(filter(None, v)))]),
    (r"name a (\w+) that the first item has not|answer falsely : which (\w+) has the first item \?|"
     r"give a wrong answer to : what is the (\w+) of the first item \?",
     lambda x, *v: values_but(x, next(filter(None, v)), 0)),
    (r"name a (\w+) that the last item has not|answer falsely : which (\w+) has the last item \?|"
     r"give a wrong answer to : what is the (\w+) of the last item \?",
     lambda x, *v: values_but(x, next(filter(None, v)), -1)),
    (r"change the first item to (\w+)|write (\w+) for the first item and keep the others|"
     r"edit one item : the first becomes (\w+)", lambda x, *v: changed(x, 0, next(filter(None, v)))),
    (r"change the last item to (\w+)|write (\w+) for the last item and keep the others|"
     r"edit one item : the last becomes (\w+)", lambda x, *v: changed(x, len(x) - 1, next(filter(None, v)))),
    (r"(?:change|edit one item :) the first (\w+) (?:item to|becomes) (\w+)",
     lambda x, v, w: changed(x, x.index(pick(x, v)[0]), w)),
    (r"write (\w+) for the first (\w+) item and keep the others",
     lambda x, w, v: changed(x, x.index(pick(x, v)[0]), w)),
]  # fmt: skip


def expected(task, instance):
    text, _, candidate = instance.input.partition(" gives ")
    items = text.split()
    if task.category == "verify":
        inner = re.sub(
            r"^(check the second list|say yes if .* right for|is what follows .* output for) : ", "", task.definition
        )
        outputs = ["yes" if candidate in followed(inner, items) else "no"]
    else:
        outputs = followed(task.definition, items)
    if task.avoid == "do not repeat items":
        outputs = [" ".join(sorted(set(o.split()), key=o.split().index)) for o in outputs]
    if task.avoid == "do not give the last item":
        before = task.definition.split(" , then ")[:-1]
        last = (followed(" , then ".join(before), items)[0].split() if before else items)[-1]
        outputs = [output for output in outputs if output != last]
    if task.emphasis == "write stop at the end":
        outputs = [output + " stop" for output in outputs]
    if task.emphasis == "write the answer twice":
        outputs = [" ".join([output] * 2) for output in outputs]
    if task.emphasis.startswith("write true"):
        outputs = [str(output == "yes").lower() for output in outputs]
    return set(outputs)


@pytest.mark.parametrize("task", WORLD.tasks, ids=lambda task: task.name)
def test_outputs_are_what_a_reader_of_the_instruction_would_write(task):
    for instance in task.instances:
        assert set(instance.outputs) == expected(task, instance), (task.definition, instance)
    for example in task.positive:
        assert example.output in expected(task, example)
    for example in task.negative:
        assert example.output not in expected(task, example)


def test_all_categories_sources_and_constraints_occur():
    tasks = InstructionWorld(180, n_instances=2).tasks
    assert Counter(task.category for task in tasks) == dict.fromkeys(CATEGORIES, 30)
    assert {task.source for task in tasks} == set(SOURCES)
    assert {task.avoid or task.emphasis for task in tasks} == {"", *(text for _, text in CONSTRAINTS.values())}
    assert max(len(task.definition.split()) for task in tasks) <= 30


def test_no_two_tasks_have_the_same_program():
    programs = InstructionWorld(180, n_instances=2).programs.values()
    assert len({(program.category, program.steps) for program in programs}) == 180


def test_labels_of_verification_are_balanced():
    for task in WORLD.tasks:
        if task.category == "verify":
            share = sum(instance.outputs[0] in ("yes", "true") for instance in task.instances) / len(task.instances)
            assert share == pytest.approx(0.5, abs=0.05), task.name


def test_constraints_matter():
    for task in WORLD.tasks:
        program = WORLD.programs[task.name]
        if program.constraint:
            plain = Program(program.category, program.steps)
            outputs = [run_program(plain, instance.input, WORDS) for instance in task.instances]
            assert any(set(o) != set(i.outputs) for o, i in zip(outputs, task.instances, strict=True)), task.name


def test_a_world_is_the_same_again_and_another_with_another_seed():
    assert InstructionWorld(12, seed=3, n_instances=3).tasks == InstructionWorld(12, seed=3, n_instances=3).tasks
    assert InstructionWorld(12, seed=3, n_instances=3).tasks != InstructionWorld(12, seed=4, n_instances=3).tasks


def test_a_tokenizer_of_the_worlds_texts_knows_every_word():
    known = set(" ".join(WORLD.texts).split())
    for task in WORLD.tasks:
        texts = [task.definition, task.prompt, task.avoid, task.emphasis]
        texts += [
            text for e in (*task.positive, *task.negative) for text in (e.input, e.output, e.reason, e.suggestion)
        ]
        texts += [text for instance in task.instances for text in (instance.input, *instance.outputs)]
        assert set(" ".join(texts).split()) <= known
    assert set(" ".join(list_facts(500)).split()) <= known


def test_facts_are_true():
    a = next(iter(WORDS))
    values = " ".join(WORDS[a].values())
    facts = list_facts(3000, seed=1)
    for fact in facts:
        before, _, after = fact.rpartition(" is ")
        if match := re.fullmatch(r"([\w ]+) , backwards", before):
            assert after.split() == match[1].split()[::-1]
        if match := re.fullmatch(r"([\w ]+) , only (\w+)", before):
            assert after.split() == pick(match[1].split(), match[2])
    assert f"{a} is {values}" in facts
    assert list_facts(5, seed=2) == list_facts(5, seed=2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"categories must be among transform, .* got 'poetry'"):
        InstructionWorld(6, ["poetry"])
    with pytest.raises(ValueError, match="got 3 tasks for 6 categories"):
        InstructionWorld(3)
    with pytest.raises(ValueError, match="n_instances=0"):
        InstructionWorld(6, n_instances=0)
    with pytest.raises(ValueError, match=r"32 to 1000 words, got 10|size must be between 32 and 1000"):
        lexicon(10)
    with pytest.raises(ValueError, match=r"operations are reverse, .* got 'rotate'"):
        apply_operation(("rotate",), ["a"], WORDS)


def test_lists_come_from_the_chosen_sources_only():
    world = InstructionWorld(24, n_instances=3, sources=("short",))
    assert {task.source for task in world.tasks} == {"short"}
    inputs = [instance.input.partition(" gives ")[0] for task in world.tasks for instance in task.instances]
    assert {len(text.split()) for text in inputs} == {3, 4}
    long = InstructionWorld(24, n_instances=3, sources=("long",))
    assert {len(i.input.partition(" gives ")[0].split()) for t in long.tasks for i in t.instances} == {5, 6}
    facts = list_facts(200, sources=("short",))
    assert max(len(fact.partition(" , ")[0].split()) for fact in facts if " , " in fact) == 4
    for sources in ((), ("tiny",)):
        with pytest.raises(ValueError, match="sources must be among short, long, repeats"):
            InstructionWorld(12, n_instances=3, sources=sources)
