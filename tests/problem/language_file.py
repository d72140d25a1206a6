"""A language problem as a user would write it, small enough for tests: one word of an animal tells the last one."""

TEXT = """
import functools, itertools
import torch
import heldout
from heldout.lm import tiny_llama, word_tokenizer

tokenizer = word_tokenizer(["red blue green cat dog bird sees likes the a small mouse hen fox ."])
tokenizer.bos_token, tokenizer.pad_token = "<bos>", None
epochs = 2
batch_size = 8
optimizer = functools.partial(torch.optim.AdamW, lr=3e-3)
LAST = {"cat": "mouse", "dog": "fox", "bird": "hen"}

def rows(colours, verbs, sizes=("", "small ")):
    return [{"prompt": f"the {colour} {animal} {verb} a {size}", "completion": f"{LAST[animal]} ."}
            for colour, animal, verb, size in itertools.product(colours, LAST, verbs, sizes)]

def model():
    return tiny_llama(tokenizer, dim=16, layers=2, seed=0)

def data():
    return heldout.Splits(train=rows(("red", "blue"), ("sees", "likes")), val=rows(("green",), ("sees",)),
                          test={"iid": rows(("green",), ("likes",)), "short": rows(("green",), ("likes",), ("",))})
"""
ADAPTERS = """
whole = model
def model():
    from peft import get_peft_model
    from heldout.train import lora
    return get_peft_model(whole(), lora(4))
"""
