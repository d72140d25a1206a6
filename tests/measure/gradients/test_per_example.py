import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from heldout.measure import gradient_features, gradient_sums, per_example_grads
from heldout.nn import tiny_vit


class Tokens(nn.Module):
    """Embedding and norms on tokens, an in-place activation, and a linear layer used twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.rms = nn.RMSNorm(6)
        self.twice = nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)

    def forward(self, ids):
        x = self.act(self.twice(self.norm(self.embed(ids))))
        return self.head(self.rms(self.twice(x)).mean(1))


class Tied(nn.Module):
    """A head that uses the embedding's weight itself."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.mix = nn.Linear(4, 4)

    def forward(self, ids):
        return F.linear(self.mix(self.embed(ids)), self.embed.weight)[:, -1]


def conv_net(*, inplace=True):
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(6, 6, (3, 1), groups=3, padding="same", padding_mode="reflect", bias=False),
        nn.GroupNorm(2, 6),
        nn.Conv2d(6, 4, 2, dilation=2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def made(kind):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (5,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "mlp":
            model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(5, 4)
        elif kind == "conv2d":
            model, x = conv_net(), torch.randn(5, 2, 9, 9)
            model(x)
            model.eval()
        elif kind == "conv1d":
            model, x = nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.Flatten(), nn.Linear(12, 3)), torch.randn(5, 2, 8)
        elif kind == "conv3d":
            layers = nn.Conv3d(1, 2, (2, 3, 2), stride=(1, 2, 1), padding=1), nn.Flatten(), nn.LazyLinear(3)
            model, x = nn.Sequential(*layers), torch.randn(5, 1, 4, 5, 4)
            model(x)
        elif kind == "tokens":
            model, x = Tokens(), torch.randint(0, 7, (5, 4))
        elif kind == "tied":
            model, x = Tied(), torch.randint(0, 5, (5, 4))
        else:
            model, x = tiny_vit(8, 4, dim=8, depth=1, heads=2, num_classes=3), torch.rand(5, 3, 8, 8)
    return model.double(), x.double() if x.is_floating_point() else x, labels


BY_LAYERS = ["mlp", "conv2d", "conv1d", "conv3d", "tokens"]


@pytest.mark.parametrize("kind", [*BY_LAYERS, "tied", "vit"])
def test_the_fast_path_gives_what_a_loop_over_examples_gives(kind):
    model, x, y = made(kind)
    fast, loop = (per_example_grads(model, x, y, path=path) for path in ("auto", "loop"))
    assert list(fast) == list(loop) == [name for name, _ in model.named_parameters()]
    for name, grad in fast.items():
        torch.testing.assert_close(grad, loop[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", BY_LAYERS)
def test_common_layers_need_no_loop_and_no_vmap(kind):
    model, x, y = made(kind)
    assert set(per_example_grads(model, x, y, path="layers")) == {name for name, _ in model.named_parameters()}


def test_a_weight_used_outside_of_its_layer_is_not_taken_layer_by_layer():
    model, x, y = made("tied")
    with pytest.raises(ValueError, match=r"\(5, 4\) is used outside of its layer"):
        per_example_grads(model, x, y, path="layers")


@pytest.mark.parametrize("kind", [*BY_LAYERS, "tied"])
def test_sums_are_those_of_the_examples(kind):
    model, x, y = made(kind)
    grads = per_example_grads(model, x, y, path="loop")
    sums = gradient_sums(model, (x, y), batch_size=2)
    assert sums.examples == 5
    for name, grad in grads.items():
        torch.testing.assert_close(sums.gradient[name].double(), grad.sum(0), rtol=1e-5, atol=1e-6)
        assert sums.squared[name] == pytest.approx(float(grad.square().sum()), rel=1e-6, abs=1e-12)


def test_the_model_its_modes_and_its_hooks_are_left_alone():
    model, x, y = made("conv2d")
    model[0].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    per_example_grads(model, x, y)
    assert model[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_causal_language_model_leaves_out_label_minus_100():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).double().eval()
    ids = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(6) < torch.tensor([[1], [2], [4]]), -100)
    grads = per_example_grads(model, {"input_ids": ids}, labels, path="layers")
    for row in range(3):
        loss = model(input_ids=ids[row : row + 1], labels=labels[row : row + 1]).loss
        expected = torch.autograd.grad(loss, list(model.parameters()))
        for (name, grad), value in zip(grads.items(), expected, strict=True):
            torch.testing.assert_close(grad[row], value, msg=lambda text, name=name: f"{name}: {text}")


def test_a_llama_is_taken_layer_by_layer():
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(vocab_size=11, num_key_value_heads=1, **shape)
        model = transformers.LlamaForCausalLM(config).double().eval()
    ids = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))
    fast, loop = (per_example_grads(model, {"input_ids": ids}, ids, path=path) for path in ("layers", "loop"))
    for name, grad in fast.items():
        torch.testing.assert_close(grad, loop[name], msg=lambda text, name=name: f"{name}: {text}")


def test_parameters_without_a_part_in_the_loss_have_zero_gradients():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    for path in ("layers", "vmap", "loop"):
        grads = per_example_grads(Unused(), torch.ones(3, 2), torch.tensor([0, 1, 0]), path=path)
        assert not grads["unused.weight"].any()
        assert grads["used.weight"].any()


def test_a_loader_and_a_data_set_give_the_same_features():
    model, x, y = made("mlp")
    options = {"dim": 16, "projection": "countsketch"}
    from_set = gradient_features(model, TensorDataset(x, y), **options)
    torch.testing.assert_close(gradient_features(model, DataLoader(TensorDataset(x, y), 2), **options), from_set)
    torch.testing.assert_close(from_set.norm(dim=1), torch.ones(5))


def test_bad_input_is_told():
    model, x, y = made("mlp")
    cases = [
        (lambda: per_example_grads(nn.Sequential(model, nn.BatchNorm1d(3)), x.float(), y), "BatchNorm1d that uses"),
        (lambda: per_example_grads(model, x, y, F.cross_entropy), r"returns the shape \(\): .*reduction='none'"),
        (lambda: per_example_grads(model, x[:0], y[:0]), r"no example|inputs must not be empty"),
        (lambda: gradient_features(model, (x[:0], y[:0])), r"no example|inputs must not be empty"),
        (lambda: per_example_grads(model, x, y, params=lambda name: False), "no parameter is selected"),
        (lambda: per_example_grads(model, x, y, path="fast"), "path must be"),
        (lambda: gradient_features(model, (x, y), dim=0), "dim must be at least 1"),
        (lambda: gradient_features(model, (x, y), projection="svd"), "projection must be"),
        (lambda: gradient_features(model, (x, y), lambda o, t: o.sum(1) * (t != y[3])), "of example"),
        (
            lambda: gradient_features(model, (x * torch.tensor([1, 1, float("nan"), 1, 1])[:, None], y)),
            "example 2 is not",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
