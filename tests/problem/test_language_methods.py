"""Every Method of the catalog acts on texts as it should, or says why it cannot."""

import itertools
from dataclasses import replace

import pytest
import torch

from heldout.data import gather
from heldout.losses import distill_quant
from heldout.method import Batch, Method, Splits, evaluating
from heldout.methods import available, parse
from heldout.problem import inapplicable, load_problem
from heldout.problem.language_methods import LANGUAGE_METHODS, gem_edge
from heldout.problem.texts import tokens_of
from heldout.weights import TaskVector, fake_quantize
from tests.problem.language_file import ADAPTERS, TEXT

JUDGE = "\njudge = 'exact'\n"
names = itertools.count()


@pytest.fixture
def load(tmp_path):
    def load(text=""):
        file = tmp_path / f"methods_{next(names)}.py"
        file.write_text(TEXT + text)
        return load_problem(file)

    return load


@pytest.mark.parametrize("text", [JUDGE, JUDGE + ADAPTERS], ids=["whole", "adapters"])
def test_every_method_trains_or_says_why_not(load, text):
    problem = load(text)
    applied = set()
    for name in dict.fromkeys([*LANGUAGE_METHODS, *available()]):
        method = parse(name, problem.own_methods)
        reason = inapplicable(problem, method)
        if reason is None:
            with pytest.warns(UserWarning, match="own answers") if name == "s3ft" else evaluating(torch.nn.Identity()):
                fitted = problem.fit(method, seed=0, epochs=1)
            assert problem.score(fitted, problem.splits.val) < 25, name  # of a vocabulary of 20
            applied.add(name)
        else:
            assert "real number" not in reason, name
            assert len(reason) > 20, name
    relative = {"position_offsets"}  # which the positions of a Llama are
    assert {"sam", "rm3", *LANGUAGE_METHODS} - relative - ({"pego"} if ADAPTERS in text else set()) <= applied
    assert ("pego" in applied) is (ADAPTERS not in text)
    assert not {"tent", "t3a", "itta", "adanpc", "drm", "divdis", "dbat", "useful"} & applied


def test_methods_with_arguments_and_compositions_take_the_form_for_texts(load):
    problem = load()
    method = parse("sam(rho=0.02) + ps_kd(alpha_T=0.5) + lines(alpha=0.5)", problem.own_methods)
    assert method.name == "sam(rho=0.02)+ps_kd(alpha_T=0.5)+lines(alpha=0.5)"
    assert inapplicable(problem, method) is None
    assert problem.fit(method, seed=0).run.state["ps_kd"].num_examples == problem.splits.train.tokens
    with pytest.raises(ValueError, match="cannot be combined"):
        parse("ps_kd + label_smoothing", problem.own_methods)


def test_tokens_are_numbered_over_the_whole_training_set(load):
    problem = load()
    texts = problem.splits.train
    seen = []

    def loss(run, batch):
        logits, labels, index = tokens_of(run, batch)
        seen.append((index, labels))
        return torch.nn.functional.cross_entropy(logits, labels)

    fitted = problem.fit(Method("watch", loss=loss), seed=0, epochs=1)
    index, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert index.sort().values.tolist() == list(range(texts.tokens))
    wanted = torch.cat([row["labels"][1:][row["labels"][1:] != -100] for row in texts.encoded])
    assert torch.equal(labels, wanted[index])
    plain = problem.fit(None, seed=0, epochs=1)
    for name, value in plain.module.state_dict().items():
        torch.testing.assert_close(fitted.module.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_label_smoothing_is_that_of_torch_over_tokens(load):
    problem = load()
    run = problem.fit(None, seed=0, epochs=1).run
    inputs, targets = gather(problem.splits.train, torch.arange(4))
    batch = Batch(run.module, inputs, targets, torch.arange(4))
    logits = run.module(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), inputs["wanted"][:, 1:].flatten(), label_smoothing=0.3, ignore_index=-100
    )
    torch.testing.assert_close(LANGUAGE_METHODS["label_smoothing"](0.3).loss(run, batch), expected)


def test_the_start_of_gem_edge_teaches_the_tokens_that_count(load):
    problem = load()
    run = problem.fit(None, seed=0, epochs=1).run
    gem = gem_edge(0.5, 0.2, bits=6, temperature=2.0)
    gem.model(run, run.module)
    teacher = run.state["gem_edge"]
    start = problem.splits.initial_state
    assert all(torch.equal(value, start[name]) for name, value in teacher.state_dict().items())
    inputs, targets = gather(problem.splits.train, torch.arange(4))
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    labels = inputs["wanted"][:, 1:]
    logits, taught = (model(**plain).logits[:, :-1][labels != -100] for model in (run.module, teacher))
    rounded = fake_quantize(logits.detach().view(1, -1), 6, -1).view_as(logits)
    wanted = distill_quant(
        logits, labels[labels != -100], taught, rounded, distillation=0.5, quantisation=0.2, temperature=2.0
    )
    torch.testing.assert_close(gem.loss(run, Batch(run.module, inputs, targets, torch.arange(4))), wanted)


def test_wise_ft_of_whole_weights_is_half_way_from_the_start(load):
    problem = load()
    start, plain = problem.splits.initial_state, problem.fit(None, seed=0)
    half = problem.fit(parse("wise_ft", problem.own_methods), seed=0)
    for name, value in half.module.state_dict().items():
        torch.testing.assert_close(value, (start[name] + plain.module.state_dict()[name]) / 2)


def test_wise_ft_of_adapters_halves_the_change_of_weights(load):
    problem = load(ADAPTERS)
    plain, half = (
        problem.fit(method, seed=0).module.merge_and_unload()
        for method in (None, parse("wise_ft", problem.own_methods))
    )
    start = problem.model(0).merge_and_unload()
    for name, change in TaskVector(start, plain).delta.items():
        torch.testing.assert_close(half.state_dict()[name] - start.state_dict()[name], change / 2, rtol=1e-3, atol=1e-6)


def test_s3ft_trains_on_own_answers_that_are_right(load):
    problem = load("\ndef judge(prompt, answer, example):\n    return 1.0 if 'cat' in prompt else 0.0\n")
    fitted = problem.fit(parse("s3ft", problem.own_methods), seed=0)
    assert fitted.run.state["s3ft"] == {"self": 8, "paraphrase": 0, "gold": 16}
    assert fitted.run.train_set.rows[0]["source"] == "self"


def test_what_a_method_lacks_is_told_in_the_users_words(load):
    assert "define judge" in inapplicable(load(), parse("s3ft", load().own_methods))
    drawn = load(
        "\ndef model():\n    return tiny_llama(tokenizer, dim=16, layers=2, seed=int(torch.randint(99, ())))\n"
    )
    for name in ("lines", "wise_ft", "bang"):
        assert "weights before fine-tuning" in inapplicable(drawn, parse(name, drawn.own_methods))
    weighted = load("\nplain = rows\ndef rows(*a): return [{**row, 'weight': 2.0} for row in plain(*a)]\n")
    assert "weights of tokens" in inapplicable(weighted, parse("ps_kd", weighted.own_methods))
    assert inapplicable(weighted, parse("sam", weighted.own_methods)) is None


def test_position_offsets_train_positions_that_no_text_reaches(load):
    problem = load(
        "\noptimizer = functools.partial(torch.optim.SGD, lr=0.1)\n"
        "def model():\n    from transformers import GPT2Config, GPT2LMHeadModel\n    torch.manual_seed(0)\n"
        "    sizes = {'n_embd': 16, 'n_layer': 1, 'n_head': 2, 'n_positions': 64, 'vocab_size': len(tokenizer)}\n"
        "    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))\n"
    )
    start, moved = problem.splits.initial_state["transformer.wpe.weight"], {}
    for name in ("wise_ft(alpha=1.0)", "position_offsets"):
        method = parse(name, problem.own_methods)
        assert inapplicable(problem, method) is None
        trained = problem.fit(method, seed=0, epochs=1).module.state_dict()["transformer.wpe.weight"]
        moved[name] = int(((trained - start).abs().amax(1) > 1e-6).sum())
    assert moved["position_offsets"] > 40
    assert moved["wise_ft(alpha=1.0)"] < 15
    assert "relative" in inapplicable(load(), parse("position_offsets", problem.own_methods))


def test_bad_settings_are_refused():
    for name, setting in (("wise_ft", {"alpha": 2}), ("label_smoothing", {"smoothing": 1}), ("ps_kd", {"alpha_T": 3})):
        with pytest.raises(ValueError, match=next(iter(setting))):
            LANGUAGE_METHODS[name](**setting)


def test_pego_changes_query_and_value_alone_and_leaves_a_plain_model(load):
    problem = load()
    fitted = problem.fit(parse("pego(lam=0.01, rank=2, size=2)", problem.own_methods), seed=0, epochs=1)
    start = problem.splits.initial_state
    found = fitted.module.state_dict()
    assert found.keys() == start.keys()
    changed = {name for name, value in found.items() if not torch.equal(value, start[name])}
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)
    groups, _ = fitted.run.state["pego"]
    assert {(group.rank, group.size) for group in groups} == {(2, 2)}
    assert all(parameter.requires_grad for parameter in fitted.module.parameters())


def test_pego_says_what_it_lacks(load):
    whole, adapters = load(), load(ADAPTERS)
    pego = LANGUAGE_METHODS["pego"]
    assert "adapters already" in inapplicable(adapters, pego())
    assert "rank must be at most 16," in inapplicable(whole, pego(rank=17))
    assert inapplicable(whole, pego(rank=16)) is None
    other = {name: value + 1 for name, value in whole.splits.initial_state.items()}
    with torch.no_grad():
        module = whole.make_model()
    reason = pego().check(module, replace(whole.splits, initial_state=other))
    assert "does not start from the given state: model.layers.0.self_attn.q_proj.weight differs" in reason
    assert pego().check(module, replace(whole.splits, initial_state=module.state_dict())) is None


def test_pego_s_penalty_keeps_the_change_orthogonal_to_the_pretrained_weights(load):
    problem, found = load(), []
    start = problem.splits.initial_state
    for lam in (0.0, 5.0):
        fitted = problem.fit(parse(f"pego(lam={lam}, rank=2, size=2)", problem.own_methods), seed=0, epochs=2)
        state = fitted.module.state_dict()
        found.append(
            sum(float((start[name] @ (state[name] - start[name]).T).abs().sum()) for name in start if "q_proj" in name)
        )
    assert 0 < found[1] < 0.8 * found[0]


def test_pego_leaves_frozen_what_was_frozen(load):
    frozen = "whole = model\ndef model():\n    made = whole()\n    made.model.embed_tokens.requires_grad_(False)\n"
    problem = load(frozen + "    return made\n")
    module = problem.fit(parse("pego(rank=2, size=2)", problem.own_methods), seed=0, epochs=1).module
    assert not module.model.embed_tokens.weight.requires_grad
    assert module.model.layers[0].self_attn.q_proj.weight.requires_grad


def test_pego_reads_the_weights_of_torch_s_own_attention():
    module = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(8, 2)})
    splits = Splits(train=[0], initial_state=module.state_dict())
    assert LANGUAGE_METHODS["pego"](rank=2).check(module, splits) is None
    assert "rank must be at most 8" in LANGUAGE_METHODS["pego"](rank=9).check(module, splits)
