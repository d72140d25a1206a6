"""Tiny random networks for the tests of this room."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
            if inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(ResidualBlock(4, 4), ResidualBlock(4, 4))
        self.layer2 = nn.Sequential(ResidualBlock(4, 8), ResidualBlock(8, 8), ResidualBlock(8, 8))
        self.layer3 = nn.Sequential(ResidualBlock(8, 8))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))).mean(dim=(2, 3)))


def transformer(kind: str) -> nn.Module:
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    width = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    tokens = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        match kind:
            case "vit":
                config = transformers.ViTConfig(**width, image_size=8, patch_size=4)
                return transformers.ViTForImageClassification(config)
            case "bert":
                return transformers.BertForSequenceClassification(transformers.BertConfig(**width, **tokens))
            case "gpt2":
                return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, **tokens))
            case "llama":
                return transformers.LlamaForCausalLM(transformers.LlamaConfig(**width, **tokens))
            case "t5":
                config = transformers.T5Config(
                    d_model=16, num_layers=3, num_decoder_layers=2, num_heads=2, d_kv=8, d_ff=32, **tokens
                )
                return transformers.T5ForConditionalGeneration(config)
            case "clip":
                text = width | tokens | {"projection_dim": 8}
                vision = width | {"num_hidden_layers": 2, "image_size": 8, "patch_size": 4, "projection_dim": 8}
                return transformers.CLIPModel(
                    transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
                )
    raise ValueError(kind)


def finetuned(model: nn.Module, seed: int = 1, size: float = 0.1) -> nn.Module:
    """Returns a copy of the model with noise on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=size)
    return other


def stack(depth: int = 3, value: float = 0.0, seed: int | None = None, dtype: torch.dtype = torch.float32) -> dict:
    """Returns the state dict of a stack of blocks between an embedding and a norm."""
    generator = torch.Generator().manual_seed(0 if seed is None else seed)

    def entry(*shape: int) -> Tensor:
        drawn = torch.full(shape, value) if seed is None else torch.randn(shape, generator=generator)
        return drawn.to(dtype)

    state = {"embed.weight": entry(5, 4)}
    for i in range(depth):
        state |= {f"h.{i}.attn.weight": entry(4, 4), f"h.{i}.mlp.weight": entry(4, 4), f"h.{i}.mlp.bias": entry(4)}
    return state | {"norm.weight": entry(4)}
