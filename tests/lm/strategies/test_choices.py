"""Choice examples, and scoring and choosing their options by likelihood."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from heldout.lm import ChoiceExample, right_choices, score_choices, tiny_llama, word_tokenizer

TOKENIZER = word_tokenizer(["is ice fire cold hot ? yes no not at all"])
ASKED = [
    ChoiceExample("is ice cold ?", [" yes", " not at all"], 0),
    ChoiceExample("is fire", [" hot", " not hot ?"], 0),
    ChoiceExample("is ice fire at all ?", [" no", " yes"], 1),
]


def llama():
    return tiny_llama(TOKENIZER, dim=16, layers=2, seed=4)


def gpt2():
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(TOKENIZER), n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.3
    )
    return GPT2LMHeadModel(config)


def naive(model, example, option):
    """One forward pass for one option, token by token."""
    read, written = (TOKENIZER(text)["input_ids"] for text in (example.prompt, option))
    with torch.no_grad():
        logs = model.eval()(torch.tensor([read + written])).logits[0].double().log_softmax(-1)
    return sum(logs[len(read) + k - 1, token].item() for k, token in enumerate(written))


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_are_those_of_one_forward_pass_for_each_option(make, batch_size):
    model = make()
    scores = score_choices(model, TOKENIZER, ASKED, batch_size=batch_size)
    expected = torch.tensor([[naive(model, e, option) for option in e.options] for e in ASKED])
    torch.testing.assert_close(scores, expected.float(), atol=1e-4, rtol=1e-4)


def test_per_token_scores_are_means_over_an_options_tokens():
    scores, means = (score_choices(llama(), TOKENIZER, ASKED, how) for how in ("none", "tokens"))
    lengths = torch.tensor([[1, 3], [1, 3], [1, 1]])
    torch.testing.assert_close(means * lengths, scores)


def test_the_order_of_the_options_and_the_padding_side_do_not_matter():
    model = gpt2()
    turned = [ChoiceExample(e.prompt, e.options[::-1], 1 - e.answer) for e in ASKED]
    scores = score_choices(model, TOKENIZER, ASKED)
    torch.testing.assert_close(score_choices(model, TOKENIZER, turned).flip(1), scores)
    assert torch.equal(right_choices(model, TOKENIZER, turned), right_choices(model, TOKENIZER, ASKED))
    other = word_tokenizer(["is ice fire cold hot ? yes no not at all"])
    other.padding_side = "left"
    torch.testing.assert_close(score_choices(model, other, ASKED), scores)


def test_the_end_token_pads_where_there_is_no_padding_token():
    bare = word_tokenizer(["is ice fire cold hot ? yes no not at all"])
    bare.pad_token = None
    torch.testing.assert_close(score_choices(llama(), bare, ASKED), score_choices(llama(), TOKENIZER, ASKED))


def test_the_right_choice_is_the_likeliest_option_and_the_mode_stays():
    model = gpt2().train()
    scores = score_choices(model, TOKENIZER, ASKED)
    assert model.training
    expected = [row.argmax().item() == e.answer for row, e in zip(scores, ASKED, strict=True)]
    assert right_choices(model, TOKENIZER, ASKED).tolist() == expected
    assert model.training


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="equally many options, got 2 and 3"):
        score_choices(llama(), TOKENIZER, [ASKED[0], ChoiceExample("is", [" yes", " no", " hot"], 0)])
    with pytest.raises(ValueError, match="examples"):
        score_choices(llama(), TOKENIZER, [])
    with pytest.raises(ValueError, match="options must be at least 2"):
        ChoiceExample("is ice cold ?", [" yes"], 0)
    with pytest.raises(ValueError, match="answer must be from 0 to 1"):
        ChoiceExample("is ice cold ?", [" yes", " no"], 2)
    with pytest.raises(TypeError, match="options"):
        ChoiceExample("is ice cold ?", [" yes", 1], 0)
    with pytest.raises(TypeError, match="options"):
        ChoiceExample("is ice cold ?", "no", 0)
    with pytest.raises(ValueError, match="options"):
        ChoiceExample("is ice cold ?", [" yes", ""], 0)
