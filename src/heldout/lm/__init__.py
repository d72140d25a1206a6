"""How a language model is used: interfaces, small models that are made here, and their cache."""

from heldout.language_model import LM, ChoiceExample, Completion, Prompt
from heldout.lm.models.bases import CodeBase, LlamaBase, code_gpt2, stdlib_llama
from heldout.lm.models.encoding import context_of, ids_of_prompt
from heldout.lm.models.endpoint import BudgetError, EndpointError, EndpointLM
from heldout.lm.models.generation import end_tokens, generate_ids
from heldout.lm.models.kept_answers import CachedLM
from heldout.lm.models.local import TransformersLM
from heldout.lm.models.pretrained import cut_vocabulary, smollm
from heldout.lm.models.sampling import SamplingLM
from heldout.lm.models.scripted import ScriptedLM
from heldout.lm.models.stopping import stop_at
from heldout.lm.models.text_features import minilm, text_features, word_vectors
from heldout.lm.models.tiny import (
    character_tokenizer,
    code_tokenizer,
    encode_examples,
    tiny_bart,
    tiny_llama,
    train_tiny,
    word_tokenizer,
)
from heldout.lm.models.trained_once import base_folder, cached_base
from heldout.lm.models.usage import Usage, usage_of
from heldout.lm.programs.sandbox import Isolation, IsolationError, PythonResult, run_python, run_tests
from heldout.lm.strategies.agreement import (
    AGREEMENT_TEMPLATE,
    Agreement,
    PathVote,
    agreement_template,
    character_ngrams,
    last_sentences,
    sample_paths,
    self_agreement,
    self_consistency,
    semantic_vote,
)
from heldout.lm.strategies.answers import (
    Judge,
    after_marker,
    code_blocks,
    judge_exact,
    judge_llm,
    judge_number,
    judge_python,
    last_number,
    numbers_in,
)
from heldout.lm.strategies.choices import right_choices, score_choices
from heldout.lm.strategies.model_pool import ModelPool, PoolModel, Reply
from heldout.lm.strategies.option_scores import option_scores, option_similarities
from heldout.lm.strategies.prompting import (
    INTERNAL_NOTE,
    SKILLS_HEADER,
    ChainOfThought,
    Composition,
    FewShot,
    LeastToMost,
    Skill,
    SkillPrompt,
    Solved,
    Strategy,
    accuracy_by_group,
    run_strategy,
    within_budget,
)
from heldout.lm.strategies.routing import (
    ROUTING_PROMPT,
    ROUTING_STOPS,
    RoutingAgent,
    RoutingEpisode,
    Trace,
    final_answer,
    format_ok,
    routing_prompt,
    search_request,
)
from heldout.lm.strategies.skills import SkillUse, distill_skills, internal_activation_rate, skill_usage
from heldout.lm.strategies.small_models import cosine_chooser, likelihood_chooser, small_models

__all__ = [
    "AGREEMENT_TEMPLATE",
    "INTERNAL_NOTE",
    "LM",
    "ROUTING_PROMPT",
    "ROUTING_STOPS",
    "SKILLS_HEADER",
    "Agreement",
    "BudgetError",
    "CachedLM",
    "ChainOfThought",
    "ChoiceExample",
    "CodeBase",
    "Completion",
    "Composition",
    "EndpointError",
    "EndpointLM",
    "FewShot",
    "Isolation",
    "IsolationError",
    "Judge",
    "LeastToMost",
    "LlamaBase",
    "ModelPool",
    "PathVote",
    "PoolModel",
    "Prompt",
    "PythonResult",
    "Reply",
    "RoutingAgent",
    "RoutingEpisode",
    "SamplingLM",
    "ScriptedLM",
    "Skill",
    "SkillPrompt",
    "SkillUse",
    "Solved",
    "Strategy",
    "Trace",
    "TransformersLM",
    "Usage",
    "accuracy_by_group",
    "after_marker",
    "agreement_template",
    "base_folder",
    "cached_base",
    "character_ngrams",
    "character_tokenizer",
    "code_blocks",
    "code_gpt2",
    "code_tokenizer",
    "context_of",
    "cosine_chooser",
    "cut_vocabulary",
    "distill_skills",
    "encode_examples",
    "end_tokens",
    "final_answer",
    "format_ok",
    "generate_ids",
    "ids_of_prompt",
    "internal_activation_rate",
    "judge_exact",
    "judge_llm",
    "judge_number",
    "judge_python",
    "last_number",
    "last_sentences",
    "likelihood_chooser",
    "minilm",
    "numbers_in",
    "option_scores",
    "option_similarities",
    "right_choices",
    "routing_prompt",
    "run_python",
    "run_strategy",
    "run_tests",
    "sample_paths",
    "score_choices",
    "search_request",
    "self_agreement",
    "self_consistency",
    "semantic_vote",
    "skill_usage",
    "small_models",
    "smollm",
    "stdlib_llama",
    "stop_at",
    "text_features",
    "tiny_bart",
    "tiny_llama",
    "train_tiny",
    "usage_of",
    "within_budget",
    "word_tokenizer",
    "word_vectors",
]
