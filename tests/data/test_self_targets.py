import copy
import warnings

import pytest
import torch

from heldout.data import RESTATE, SelfTargets, self_targets
from heldout.lm import ScriptedLM, TransformersLM, judge_exact, judge_number, tiny_bart, tiny_llama, word_tokenizer
from heldout.train import sft

PAIRS = [("two plus two is", "so 4"), ("one plus two plus two is", "so 5"), ("one is", "so 1"), ("two is", "2 so 2")]
TEXTS = [*(text for pair in PAIRS for text in pair), "word restate : 3 7"]
SHORT = "restate {prompt} : {reference}"


def always(verdict):
    return lambda prompt, response, reference: verdict


def llama():
    tokenizer = word_tokenizer(TEXTS)
    return tiny_llama(tokenizer, dim=16, layers=1, context=64), tokenizer


def rows(targets):
    return [(row["response"], row["source"]) for row in targets]


def gold_lm():
    return ScriptedLM(dict(PAIRS))


def test_own_answers_come_first_then_paraphrases_then_the_gold():
    answers = dict(zip((prompt for prompt, _ in PAIRS), ("4", "7", "1", "3"), strict=True))
    restated = {SHORT.format(prompt=p, reference=r): said for (p, r), said in zip(PAIRS, "4527", strict=True)}
    targets = self_targets(ScriptedLM(answers | restated), PAIRS, judge_number(), SHORT)
    assert rows(targets) == [("4", "self"), ("5", "paraphrase"), ("1", "self"), ("2 so 2", "gold")]
    assert targets.counts() == {"self": 2, "paraphrase": 1, "gold": 1}
    assert [row["prompt"] for row in targets] == [prompt for prompt, _ in PAIRS]


def test_with_a_judge_that_accepts_everything_each_target_is_the_own_answer():
    model, tokenizer = llama()
    lm = TransformersLM(model, tokenizer)
    with pytest.warns(UserWarning, match="cut off at max_new_tokens=5"):
        targets = self_targets(lm, PAIRS, always(True), max_new_tokens=5)
    own = [row[0].text for row in lm.generate([prompt for prompt, _ in PAIRS], max_tokens=5)]
    assert rows(targets) == [(text, "self") for text in own]


def test_with_a_judge_that_rejects_everything_the_targets_are_the_gold_and_a_warning_says_so():
    with pytest.warns(UserWarning, match="none of 4 own answers was accepted: the targets are 0 paraphrases and 4"):
        targets = self_targets(ScriptedLM(lambda prompt, k: "no"), PAIRS, always(False))
    assert rows(targets) == [(gold, "gold") for _, gold in PAIRS]
    assert targets.counts() == {"self": 0, "paraphrase": 0, "gold": 4}


def test_without_a_paraphrase_nothing_is_restated():
    lm = ScriptedLM(lambda prompt, k: "3")
    with pytest.warns(UserWarning, match="0 paraphrases and 4 gold"):
        self_targets(lm, PAIRS, judge_number(), paraphrase=None)
    assert sorted(lm.calls) == sorted(prompt for prompt, _ in PAIRS)


def test_only_rejected_answers_are_restated_and_each_pair_is_asked_once():
    lm = ScriptedLM(lambda prompt, k: "so 4")
    self_targets(lm, PAIRS, judge_exact())
    assert len(lm.calls) == 4 + 3
    assert all(RESTATE.split("{", maxsplit=1)[0] in prompt for prompt in lm.calls[4:])


def test_a_model_that_answers_with_the_gold_is_tuned_as_on_the_gold():
    tuned = []
    for data in (PAIRS, self_targets(gold_lm(), PAIRS, judge_exact())):
        model, tokenizer = llama()
        tuned.append(sft(model, tokenizer, data, steps=3, batch_size=2, lr=1e-2, seed=0).model.state_dict())
    assert all(torch.equal(tuned[0][name], tuned[1][name]) for name in tuned[0])


def test_prompts_are_asked_in_batches_of_growing_length():
    batches = []

    class Counting(ScriptedLM):
        def generate(self, prompts, n=1, **options):
            batches.append(list(prompts))
            assert options["temperature"] == 0
            return super().generate(prompts, n, **options)

    self_targets(Counting(dict(PAIRS)), PAIRS, judge_exact(), batch_size=3)
    assert batches == [["one is", "two is", "two plus two is"], ["one plus two plus two is"]]


def test_the_same_call_gives_the_same_targets_whatever_the_batches():
    model, tokenizer = llama()
    found = []
    for size in (1, 3, 16):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(self_targets(TransformersLM(model, tokenizer), PAIRS, always(True), None, 5, size))
    assert rows(found[0]) == rows(found[1]) == rows(found[2])


def test_end_tokens_and_stop_strings_are_no_part_of_a_target():
    lm = ScriptedLM(lambda prompt, k: "so 4 </s> </s>")
    lm.tokenizer = word_tokenizer(TEXTS)
    assert {row["response"] for row in self_targets(lm, PAIRS, always(True))} == {"so 4"}
    targets = self_targets(ScriptedLM(lambda prompt, k: "so 4<end> word"), PAIRS, always(True), stop=["<end>"])
    assert {row["response"] for row in targets} == {"so 4"}


def test_chat_messages_are_asked_and_restated_as_chats():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{reference} two"}]
    seen = []

    def judge(prompt, response, reference):
        seen.append(prompt)
        return response == "2"

    asked = []
    lm = ScriptedLM(lambda prompt, k: asked.append(prompt) or str(len(asked)))
    with pytest.warns(UserWarning, match="1 paraphrases and 0 gold"):
        targets = self_targets(lm, [{"prompt": chat, "completion": "so 2"}], judge, SHORT)
    assert asked == [chat, [chat[0], {"role": "user", "content": "restate {reference} two : so 2"}]]
    assert targets[0] == {"prompt": chat, "response": "2", "source": "paraphrase"}
    assert seen == ["Be brief.\n{reference} two"] * 2


def naive_nll(model, tokenizer, prompt, response):
    read, end = tokenizer(prompt)["input_ids"], [tokenizer.eos_token_id]
    written = tokenizer(response)["input_ids"] + end
    if model.config.is_encoder_decoder:
        decoder = [model.config.decoder_start_token_id, *written[:-1]]
        logits = model(input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([decoder])).logits[0]
    else:
        logits = model(input_ids=torch.tensor([read + written])).logits[0, len(read) - 1 : -1]
    return -logits.log_softmax(-1)[torch.arange(len(written)), torch.tensor(written)].mean()


@pytest.mark.parametrize("make", [tiny_llama, tiny_bart])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_nll_is_that_of_a_loop_over_examples(make, batch_size):
    tokenizer = word_tokenizer(TEXTS)
    model = make(tokenizer, dim=16, layers=1, context=64, seed=1).train()
    targets = SelfTargets(*zip(*PAIRS, strict=True), ["gold"] * 4)
    found = targets.nll(model, tokenizer, batch_size=batch_size)
    assert model.training
    with torch.no_grad():
        model.eval()
        expected = torch.stack([naive_nll(model, tokenizer, *pair) for pair in PAIRS])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_nll_is_that_of_evaluation_and_leaves_the_mode_alone():
    model, tokenizer = llama()
    targets = SelfTargets(*zip(*PAIRS, strict=True), ["gold"] * len(PAIRS))
    expected = targets.nll(model.eval(), tokenizer)
    mlp = model.model.layers[0].mlp
    mlp.down_proj = torch.nn.Sequential(mlp.down_proj, torch.nn.Dropout(0.5))
    torch.testing.assert_close(targets.nll(model.train(), tokenizer), expected)
    assert model.training
    assert mlp.down_proj[1].training


def test_an_end_token_that_the_tokenizer_adds_to_prompts_is_not_read():
    model, tokenizer = llama()
    targets = SelfTargets(*zip(*PAIRS, strict=True), ["gold"] * len(PAIRS))

    class Ending:
        eos_token_id = tokenizer.eos_token_id

        def __call__(self, text, add_special_tokens=True):
            ids = tokenizer(text)["input_ids"]
            return {"input_ids": [*ids, self.eos_token_id] if add_special_tokens else ids}

    torch.testing.assert_close(targets.nll(model, Ending()), targets.nll(model, tokenizer))


def test_nll_names_the_row_that_is_not_finite_and_needs_an_end_token():
    model, tokenizer = llama()
    targets = SelfTargets(*zip(*PAIRS, strict=True), ["gold"] * 4)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("5")] = float("inf")
    with pytest.raises(ValueError, match="the likelihood of row 0 is not finite"):
        targets.nll(model, tokenizer)
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="needs an end token"):
        targets.nll(model, endless)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "at least one pair"),
        ([("a", "b"), "cd"], r"pair 1 must be \(prompt, gold response\)"),
        ([("a", "b", "c")], "pair 0 must be"),
        ([{"prompt": "a"}], "pair 0 needs a prompt and a gold response"),
        ([("a", 3)], "pair 0 needs a prompt and a gold response"),
    ],
)
def test_pairs_that_are_none_raise(pairs, message):
    with pytest.raises(ValueError, match=message):
        self_targets(gold_lm(), pairs, always(True))


def test_a_judge_must_return_a_bool():
    with pytest.raises(TypeError, match="the judge must return a bool, got float for pair 0"):
        self_targets(gold_lm(), PAIRS, always(1.0))


def test_a_language_model_must_generate_texts():
    with pytest.raises(TypeError, match=r"lm must be an LM .*function"):
        self_targets(lambda prompts: prompts, PAIRS, always(True))
    with pytest.raises(TypeError, match=r"TransformersLM\(model, tokenizer\)"):
        self_targets(llama()[0], PAIRS, always(True))


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"template needs \{reference\}"):
        self_targets(gold_lm(), PAIRS, always(True), "{prompt}")
    with pytest.raises(ValueError, match="at least 1, got 0 and 256"):
        self_targets(gold_lm(), PAIRS, always(True), batch_size=0)
    with pytest.raises(TypeError, match="pairs must be a sequence"):
        self_targets(gold_lm(), dict(PAIRS), always(True))
    with pytest.raises(ValueError, match="got 2 prompts, 1 responses"):
        SelfTargets(["a", "b"], ["c"], ["self", "gold"])
    with pytest.raises(ValueError, match="one of self, paraphrase, gold, got 'own'"):
        SelfTargets(["a"], ["c"], ["own"])
