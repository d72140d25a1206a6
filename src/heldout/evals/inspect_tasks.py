"""heldout's evaluations as tasks of inspect-ai: ``inspect eval heldout/scylla --model openai/...``.

inspect finds them by entry point. A sample is one list task, or one set of output words: its inputs are drawn or probed
while it runs, so they can depend on the model. The same protocol runs here as in ``heldout eval``; only the model is
inspect's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import anyio
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, GenerateConfig, ModelOutput, get_model
from inspect_ai.model import ChatMessageAssistant as Assistant
from inspect_ai.model import ChatMessageSystem as System
from inspect_ai.model import ChatMessageUser as User
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, grouped, mean, metric, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from heldout.evals.protocol import options_from, plain_parameters
from heldout.evals.scylla import ScyllaOptions, scylla_task, scylla_tasks
from heldout.evals.verbalizer import VerbalizerOptions, verbalizer_task
from heldout.language_model import Completion, Prompt
from heldout.measure import VerbalizerReport

_ROLES = {"system": System, "user": User, "assistant": Assistant}


class InspectLM:
    """inspect's model of a running task as an ``LM``, used from a worker thread of its event loop.

    Samples of one prompt are separate requests with seeds of their own, because providers differ in what they make of a
    number of choices.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.identity = f"inspect {model}"

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        max_tokens: int = 256,
        seed: int = 0,
    ) -> list[list[Completion]]:
        """Returns ``n`` completions of each prompt; inspect limits the connections, repeats and caches."""
        found: dict[tuple[int, int], Completion] = {}

        async def complete(i: int, k: int) -> None:
            config = GenerateConfig(
                temperature=temperature,
                top_p=top_p if temperature > 0 else None,
                stop_seqs=list(stop) or None,
                max_tokens=max_tokens,
                seed=seed + k,
            )
            found[i, k] = _completion(await self.model.generate(_messages(prompts[i]), config=config))

        async def all_of_them() -> None:
            async with anyio.create_task_group() as group:
                for i in range(len(prompts)):
                    for k in range(n):
                        group.start_soon(complete, i, k)

        anyio.from_thread.run(all_of_them)
        return [[found[i, k] for k in range(n)] for i in range(len(prompts))]

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Raises ValueError: inspect's models give no likelihoods of a text."""
        raise ValueError("inspect's models give no likelihoods of texts: use mode='generate', or heldout eval")


def derived(record: type) -> Callable[[Callable[[Any], Task]], Callable[..., Task]]:
    """Gives a task the fields of a protocol's record as parameters, in place of the record."""

    def wrap(build: Callable[[Any], Task]) -> Callable[..., Task]:
        @wraps(build)
        def built(**given: Any) -> Task:
            return build(options_from(record, given))

        built.__signature__ = plain_parameters(record)  # type: ignore[attr-defined]
        return built

    return wrap


@task
@derived(ScyllaOptions)
def scylla(options: ScyllaOptions) -> Task:
    """Accuracy on inputs that the model proposes, and on matched unfamiliar ones, by level of complexity."""
    chosen = scylla_tasks(options.tasks)
    samples = [Sample(t.statement, id=t.name, metadata={"level": f"level {t.level}"}) for t in chosen]

    def measured(lm: InspectLM, name: str) -> dict[str, float]:
        row = scylla_task(lm, scylla_tasks([name])[0], options)
        return {
            "accuracy_id": row.accuracy_id,
            "accuracy_ood": row.accuracy_ood,
            "gap": row.gap,
            "parsed": (row.parsed_id + row.parsed_ood) / 2,
        }

    return Task(dataset=MemoryDataset(samples, name="scylla"), solver=_runs(measured), scorer=scylla_scorer())


@task
@derived(VerbalizerOptions)
def verbalizer(options: VerbalizerOptions) -> Task:
    """Accuracy with natural, neutral and unnatural output words, on the same texts."""
    manipulation = verbalizer_task(options)
    by_name = {one.name: one for one in manipulation.verbalizers}
    samples = [
        Sample(manipulation.prompts(one)[0], id=one.name, metadata={"kind": one.kind}) for one in by_name.values()
    ]

    def measured(lm: InspectLM, name: str) -> dict[str, float]:
        row = manipulation.run_one(lm, by_name[name])
        report = VerbalizerReport((row,), len(manipulation.descriptions), tuple(manipulation.labels))
        kind: Any = row.verbalizer.kind
        return {
            "accuracy": row.accuracy.estimate,
            "normalised": report.normalised(kind),
            "off_format": row.off_format,
        }

    return Task(dataset=MemoryDataset(samples, name="verbalizer"), solver=_runs(measured), scorer=verbalizer_scorer())


@solver
def _runs(measure: Any) -> Solver:
    """Runs heldout's own protocol of a sample in a thread, and keeps what it measured."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        lm = InspectLM(get_model())
        try:
            measured: Mapping[str, float] = await anyio.to_thread.run_sync(measure, lm, str(state.sample_id))
        except ValueError as error:  # such as too few inputs that the model proposes: this one is not tested
            state.output = ModelOutput.from_content(str(state.model), f"not tested: {error}")
            return state
        state.store.set("heldout", dict(measured))
        state.output = ModelOutput.from_content(str(state.model), json.dumps(measured))
        return state

    return solve


@metric
def critical_complexity() -> Metric:
    """The level whose tasks have the largest mean gap; of equal ones the lowest. A metric of the score "gap"."""

    def compute(scores: list[SampleScore]) -> float:
        gaps: dict[int, list[float]] = {}
        for one in scores:
            level = int(str((one.sample_metadata or {})["level"]).removeprefix("level "))
            gaps.setdefault(level, []).append(one.score.as_float())
        means = {level: sum(values) / len(values) for level, values in gaps.items()}
        return float(max(sorted(means), key=lambda level: means[level])) if means else float("nan")

    return compute


@scorer(
    metrics={
        "gap": [grouped(mean(), "level"), critical_complexity(), stderr()],
        "accuracy_id": [mean()],
        "accuracy_ood": [mean()],
        "parsed": [mean()],
    }
)
def scylla_scorer() -> Scorer:
    """Scores what the solver measured."""
    return _kept


@scorer(
    metrics={
        "accuracy": [grouped(mean(), "kind"), stderr()],
        "normalised": [grouped(mean(), "kind")],
        "off_format": [mean()],
    }
)
def verbalizer_scorer() -> Scorer:
    """Scores what the solver measured."""
    return _kept


async def _kept(state: TaskState, target: Target) -> Score | None:
    if state.store.get("heldout") is None:
        return None
    return Score(value=state.store.get("heldout"), answer=state.output.completion)


def _messages(prompt: Prompt) -> list[ChatMessage]:
    if isinstance(prompt, str):
        return [User(content=prompt)]
    return [_ROLES[message["role"]](content=message["content"]) for message in prompt]


def _completion(output: ModelOutput) -> Completion:
    usage = output.usage
    return Completion(
        output.completion,
        tokens=usage.output_tokens if usage else 0,
        prompt_tokens=usage.input_tokens if usage else 0,
        finish_reason="length" if output.stop_reason in ("max_tokens", "model_length") else "stop",
    )
