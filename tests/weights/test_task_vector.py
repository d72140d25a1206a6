import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heldout.weights import TaskVector, interpolate
from tests.weights.networks import ResNet, finetuned, stack, transformer

PRE, ONE, TWO = stack(seed=0), stack(seed=1), stack(seed=2)


def assert_states_equal(a, b, **tolerance):
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=name, **tolerance)


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_task_vectors_form_a_vector_space(a, b):
    one, two = TaskVector(PRE, ONE), TaskVector(PRE, TWO)
    combined = a * one + two * b - one
    for name in PRE:
        expected = a * (ONE[name] - PRE[name]) + b * (TWO[name] - PRE[name]) - (ONE[name] - PRE[name])
        torch.testing.assert_close(combined.delta[name], expected)
    assert_states_equal((-one).delta, (one * -1.0).delta)


def test_applying_a_task_vector_to_its_start_gives_the_finetuned_model():
    assert_states_equal(TaskVector(PRE, ONE).apply_to(PRE), ONE)
    assert_states_equal(TaskVector(PRE, ONE).apply_to(PRE, scale=0), PRE, rtol=0, atol=0)
    model, tuned = transformer("vit"), finetuned(transformer("vit"))
    assert TaskVector(model, tuned).apply_to(model) is model
    assert_states_equal(model.state_dict(), tuned.state_dict())


def test_a_scale_by_name_moves_each_parameter_by_its_own():
    moved = TaskVector(PRE, ONE).apply_to(PRE, scale={name: float(n) for n, name in enumerate(PRE)})
    for n, name in enumerate(PRE):
        torch.testing.assert_close(moved[name], PRE[name] + n * (ONE[name] - PRE[name]))
    with pytest.raises(ValueError, match=r"scales lack embed\.weight, h\.0\.attn\.weight, h\.0\.mlp\.bias and 8 more"):
        TaskVector(PRE, ONE).apply_to(PRE, scale={})


def test_source_and_target_are_left_alone():
    before = {name: value.clone() for name, value in PRE.items()}
    moved = TaskVector(PRE, ONE).apply_to(PRE)
    moved["embed.weight"].zero_()
    interpolate(PRE, ONE, 0.0)["embed.weight"].zero_()
    assert_states_equal(PRE, before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_tied_weights_stay_tied(kind):
    model = transformer(kind)
    tuned = finetuned(model)
    names = {"gpt2": ("transformer.wte.weight", "lm_head.weight"), "t5": ("shared.weight", "lm_head.weight")}[kind]
    for state in (
        interpolate(model, tuned, 0.5),
        TaskVector(model, tuned).apply_to(dict(model.state_dict()), 0.5),
        TaskVector(model, tuned).apply_to(model, 0.5).state_dict(),
    ):
        first, second = (state[name] for name in names)
        assert first.data_ptr() == second.data_ptr()
        start, end = transformer(kind).state_dict()[names[0]], tuned.state_dict()[names[0]]
        torch.testing.assert_close(first, (start + end) / 2)


def test_integer_and_boolean_buffers_are_copied_and_have_no_difference():
    pre, ft = ({**s, "step": torch.tensor(n), "mask": torch.tensor([n > 3])} for n, s in ((3, PRE), (5, ONE)))
    mixed = interpolate(pre, ft, 0.5)
    assert int(mixed["step"]) == 5
    assert bool(mixed["mask"])
    vector = TaskVector(pre, ft)
    assert "step" not in vector.delta
    assert int(vector.apply_to(pre)["step"]) == 3
    network = ResNet()
    TaskVector(network, finetuned(network)).apply_to(network)
    assert int(network.bn1.num_batches_tracked) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    pre, ft = stack(seed=0, dtype=dtype), stack(seed=1, dtype=dtype)
    for state in (interpolate(pre, ft, 0.3), TaskVector(pre, ft).apply_to(pre, 0.3)):
        for name in pre:
            expected = torch.lerp(pre[name].float(), ft[name].float(), 0.3).to(dtype)
            assert state[name].dtype == dtype
            torch.testing.assert_close(state[name], expected)
    assert TaskVector(pre, ft).delta["embed.weight"].dtype == torch.float32


@given(st.sampled_from([0.0, 1.0]), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_interpolation_is_exact_at_its_ends(weight, dtype):
    pre, ft = stack(seed=0, dtype=dtype), stack(seed=1, dtype=dtype)
    assert_states_equal(interpolate(pre, ft, weight), ft if weight else pre, rtol=0, atol=0)


def test_different_names_or_shapes_are_named():
    short = {name: value for name, value in PRE.items() if "mlp" not in name}
    with pytest.raises(
        ValueError, match=r"only in pre: h\.0\.mlp\.bias, h\.0\.mlp\.weight, h\.1\.mlp\.bias and 3 more"
    ):
        TaskVector(PRE, short)
    with pytest.raises(ValueError, match="only in ft"):
        interpolate(short, PRE, 0.5)
    with pytest.raises(ValueError, match=r"different shapes: embed\.weight \(5, 4\) and \(6, 4\)"):
        TaskVector(PRE, PRE | {"embed.weight": torch.zeros(6, 4)})
    with pytest.raises(ValueError, match="task vector 2"):
        TaskVector(PRE, ONE) + TaskVector(short, short)
    with pytest.raises(ValueError, match=r"only in the task vector: h\.0\.mlp\.bias"):
        TaskVector(PRE, ONE).apply_to(short)
    with pytest.raises(TypeError, match=r"pre|ft|target"):
        TaskVector(PRE, [1, 2])
    with pytest.raises(ValueError, match="no parameters"):
        TaskVector({}, {})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    broken = PRE | {"norm.weight": torch.full((4,), bad)}
    for pre, ft in ((PRE, broken), (broken, PRE)):
        with pytest.raises(ValueError, match=r"not finite in 'norm\.weight'"):
            interpolate(pre, ft, 1.0)
        with pytest.raises(ValueError, match=r"not finite in 'norm\.weight'"):
            TaskVector(pre, ft)
    with pytest.raises(ValueError, match=r"weight must be a number|finite"):
        interpolate(PRE, ONE, bad)


@pytest.mark.parametrize("weight", [1.5, -0.1, dict.fromkeys(PRE, 0.5) | {"norm.weight": 1.01}])
def test_interpolation_goes_beyond_the_models_only_when_asked_to(weight):
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\], got .*allow_extrapolation=True"):
        interpolate(PRE, ONE, weight)
    beyond = interpolate(PRE, ONE, weight, allow_extrapolation=True)
    factor = weight["norm.weight"] if isinstance(weight, dict) else weight
    expected = (1 - factor) * PRE["norm.weight"] + factor * ONE["norm.weight"]
    torch.testing.assert_close(beyond["norm.weight"], expected)


def test_infinite_masks_that_did_not_change_are_kept():
    mask = {"mask": torch.tensor([0.0, float("-inf")])}
    assert_states_equal(interpolate(PRE | mask, ONE | mask, 0.5) | mask, interpolate(PRE, ONE, 0.5) | mask)
    assert TaskVector(mask, mask).delta["mask"].tolist() == [0.0, 0.0]
