import pytest
import torch
import transformers

from heldout.measure import RoutingRecorder
from tests.measure.mechanisms.decoders import DENSE, LAYERS, SHARED, SPARSE, decoder, token_ids, untouched

FURTHER = {
    "GptOss": SHARED | {"num_key_value_heads": 1, "intermediate_size": 12, "head_dim": 8, "num_local_experts": 5,
                        "num_experts_per_tok": 2},
    "GraniteMoe": SHARED | {"num_key_value_heads": 1, "intermediate_size": 12, "num_local_experts": 5,
                            "num_experts_per_tok": 2},
    "Phimoe": SHARED | {"num_key_value_heads": 1, "intermediate_size": 12, "num_local_experts": 5,
                        "num_experts_per_tok": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", SPARSE)
def test_weights_are_the_softmax_of_router_rows_and_their_top_k_is_the_models(kind):
    model, ids = decoder(kind).eval(), token_ids()
    inputs = []
    handles = [
        block.mlp.gate.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in model.model.layers
    ]
    with RoutingRecorder(model) as routing, torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    assert routing.gates == [f"model.layers.{n}.mlp.gate" for n in range(LAYERS)]
    rows = [block.mlp.gate.weight for block in model.model.layers]
    expected = [(x.reshape(-1, 16) @ w.T).softmax(-1) for x, w in zip(inputs, rows, strict=True)]
    torch.testing.assert_close(routing.weights, torch.stack(expected).detach(), atol=1e-6, rtol=1e-6)
    assert routing.weights.shape == (LAYERS, 18, 5)
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(LAYERS, 18).to(routing.weights))
    assert torch.equal(routing.selected, routing.weights.topk(2, -1).indices)


@pytest.mark.parametrize("kind", SPARSE)
def test_weights_agree_with_the_router_logits_that_transformers_returns(kind):
    model, ids = decoder(kind).eval(), token_ids()
    with RoutingRecorder(model) as routing, torch.no_grad():
        logits = model(ids, output_router_logits=True).router_logits
    expected = torch.stack([each.reshape(-1, 5) for each in logits])
    torch.testing.assert_close(routing.weights.double(), expected.double().softmax(-1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", SPARSE)
def test_recording_changes_nothing(kind):
    model, ids = decoder(kind).eval(), token_ids()
    plain = model(ids).logits
    before = untouched(model)
    with RoutingRecorder(model) as routing:
        recorded = model(ids).logits
        assert not routing.weights.requires_grad
    assert torch.equal(plain, recorded)
    assert untouched(model) == before
    with pytest.raises(ZeroDivisionError), RoutingRecorder(model):
        model(1 / 0)
    assert untouched(model) == before


def test_passes_are_joined_until_they_are_cleared():
    model = decoder("Olmoe").eval()
    with RoutingRecorder(model) as routing, torch.no_grad():
        model(token_ids(2, 4))
        first = routing.weights
        model(token_ids(1, 3, seed=1))
        assert routing.weights.shape == (LAYERS, 11, 5)
        assert torch.equal(routing.weights[:, :8], first)
        routing.clear()
        model(token_ids(1, 3, seed=1))
    assert routing.weights.shape == (LAYERS, 3, 5)


@pytest.mark.parametrize("kind", FURTHER)
def test_routers_are_found_by_the_module_tree_whatever_they_are_called(kind):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**FURTHER[kind])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with RoutingRecorder(model) as routing, torch.no_grad():
        model(token_ids(2, 4))
    assert len(routing.gates) == LAYERS
    assert routing.weights.shape == (LAYERS, 8, 5)
    assert routing.selected.shape == (LAYERS, 8, 2)
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(LAYERS, 8))


def test_a_layer_without_experts_has_no_router():
    config = transformers.Qwen3MoeConfig(
        **SHARED, num_key_value_heads=1, intermediate_size=12, moe_intermediate_size=8, num_experts=5, head_dim=8,
        num_experts_per_tok=2, mlp_only_layers=[1],
    )  # fmt: skip
    assert RoutingRecorder(transformers.Qwen3MoeForCausalLM(config)).gates == [
        "model.layers.0.mlp.gate",
        "model.layers.2.mlp.gate",
    ]


def test_gates_of_any_module_may_be_named_and_give_logits_or_probabilities():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.choose, self.soft = torch.nn.Linear(4, 3), torch.nn.Softmax(-1)

        def forward(self, x):
            return self.soft(self.choose(x))

    layer, x = Layer(), torch.randn(2, 5, 4)
    with RoutingRecorder(layer, gates=["choose", "soft"]) as routing:
        layer(x)
    expected = layer(x).detach().flatten(0, 1)
    torch.testing.assert_close(routing.weights, torch.stack([expected, expected]))
    assert torch.equal(routing.selected[..., 0], routing.weights.argmax(-1))


@pytest.mark.parametrize("kind", DENSE)
def test_a_dense_model_is_refused(kind):
    with pytest.raises(ValueError, match="model is dense"):
        RoutingRecorder(decoder(kind))


def test_bad_input_is_refused_by_name():
    model = decoder("Olmoe")
    with pytest.raises(ValueError, match="gates must be names"):
        RoutingRecorder(model, gates=["nowhere"])
    with pytest.raises(ValueError, match="nothing was recorded at model"):
        _ = RoutingRecorder(model).weights
