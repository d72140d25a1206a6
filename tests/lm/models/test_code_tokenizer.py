"""A tokenizer of source code."""

import pytest

from heldout.lm import code_tokenizer

TEXT = "def assertEqual(self, read_text, HTTPServer2):\n    return self.read_text(read_text) + self.assertEqual()\n" * 4


def test_no_token_goes_beyond_a_word_of_an_identifier():
    tokenizer = code_tokenizer([TEXT], 1000)
    assert tokenizer.tokenize("self.assertEqual(") == ["self", ".", "assert", "Equal", "("]
    assert tokenizer.tokenize("read_text()") == ["read", "_", "text", "(", ")"]
    assert tokenizer.tokenize(" HTTPServer2")[1:] == ["Server", "2"]


def test_any_text_comes_back():
    tokenizer = code_tokenizer([TEXT], 300)
    for text in (TEXT, "x = 'é→'\n\n\n\tif  a__b((1)):  # end\n", "a"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="texts"):
        code_tokenizer([])
    with pytest.raises(ValueError, match="vocabulary"):
        code_tokenizer([TEXT], 10)
