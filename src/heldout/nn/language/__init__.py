"""What is a language model made of? The blocks of any transformers decoder, found in its module tree."""
