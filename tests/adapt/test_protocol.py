"""What every test-time adapter promises, checked on all of them."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from heldout.adapt import (
    DRM,
    ITTA,
    T3A,
    AdaNPC,
    AdaNPCBN,
    ITTAState,
    PseudoLabel,
    SteerConfig,
    Stream,
    Tent,
    flattened,
    load_state,
    save_state,
)
from heldout.adapt.protocol import TestTimeAdapter as Protocol  # pytest takes Test* names for tests
from heldout.nn import MultiHead, small_cnn, split_head

CLASSES = 3


def images(n, seed=0):
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def classifier():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_cnn(1, CLASSES, (4, 6))
        for _ in range(20):
            model(images(32))
    return model.eval()


def source():
    return [(images(40, seed=5), torch.arange(40) % CLASSES)]


def domain_heads(model):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return MultiHead.from_classifier(model, images(2), num_heads=2).eval()


ADAPTERS = {
    "tent": lambda m: Tent(m, lr=1e-2),
    "pseudo-label": lambda m: PseudoLabel(*split_head(m, images(2)), lr=1e-2, threshold=0.0),
    "t3a": lambda m: T3A(*split_head(m, images(2)), filter_k=5),
    "t3a-all": lambda m: T3A(*split_head(m, images(2)), filter_k=None),
    "adanpc": lambda m: AdaNPC(split_head(m, images(2))[0], source(), CLASSES, k=5, beta=0.3),
    "adanpc-bn": lambda m: AdaNPCBN(split_head(m, images(2))[0], source(), CLASSES, k=5, beta=0.3, lr=1e-2),
    "itta": lambda m: ITTA(ITTAState.of(m, images(2)), lr=1e-2),
    "itta-channel": lambda m: ITTA(ITTAState.of(m, images(2)), lr=1e-2, size="channel", steps=2),
    "itta-backbone": lambda m: ITTA(ITTAState.of(m, images(2)), lr=1e-2, parameters="backbone"),
    "drm": lambda m: DRM(domain_heads(m)),
    "drm-steered": lambda m: DRM(domain_heads(m), steer=SteerConfig(confidence=0.0, lr=1e-2)),
    "drm-encoder": lambda m: DRM(domain_heads(m), steer=SteerConfig(confidence=0.0, lr=1e-2, encoder=True)),
}
STATELESS = {"drm"}


def stream(n=4, size=8):
    return list(images(n * size, seed=1).split(size))


@pytest.fixture(params=ADAPTERS)
def kind(request):
    return request.param


@pytest.fixture
def make(kind):
    model = classifier()
    return lambda: ADAPTERS[kind](model)


def test_one_line_wraps_a_trained_classifier(make):
    adapter = make()
    assert isinstance(adapter, Protocol)
    out = adapter(stream()[0])
    assert out.shape == (8, CLASSES)
    assert not out.requires_grad
    torch.testing.assert_close(out.exp().sum(1), torch.ones(8))
    torch.testing.assert_close(make().probabilities(stream()[0]), out.exp())


def test_it_works_inside_no_grad(make):
    with torch.no_grad():
        inside = make()(stream()[0])
    assert torch.equal(inside, make()(stream()[0]))


def test_it_says_what_each_batch_changed(make):
    adapter = make()
    assert adapter.last_change == {}
    seen = []
    for x in stream():
        adapter(x)
        assert adapter.last_change
        seen.append(adapter.last_change)
    assert seen[0] is not seen[1]
    assert all(set(change) == set(seen[0]) for change in seen)


def test_a_stream_changes_what_it_learns_and_reset_forgets_it_exactly(make, kind):
    adapter = make()
    first = [adapter(x) for x in stream()]
    if kind not in STATELESS:
        assert not torch.equal(adapter(stream()[0]), first[0])
    adapter.reset()
    assert adapter.last_change == {}
    assert all(torch.equal(adapter(x), y) for x, y in zip(stream(), first, strict=True))


def test_the_given_model_never_changes(kind):
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    adapter = ADAPTERS[kind](model)
    for x in stream():
        adapter(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_saved_state_continues_the_stream_exactly(make, tmp_path):
    adapter = make()
    for x in stream()[:2]:
        adapter(x)
    in_memory = adapter.state_dict()
    file = io.BytesIO()
    torch.save(in_memory, file)
    save_state(Stream(adapter, 8), tmp_path / "state.safetensors")
    expected = [adapter(x) for x in stream()[2:]]
    file.seek(0)
    for restore in (
        lambda other: other.load_state_dict(in_memory),
        lambda other: other.load_state_dict(torch.load(file, weights_only=True)),
        lambda other: load_state(other, tmp_path / "state.safetensors"),
    ):
        other = make()
        other(stream()[3])
        restore(other)
        assert all(torch.equal(other(x), y) for x, y in zip(stream()[2:], expected, strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_single_example_is_answered_or_refused_clearly(make, kind):
    single = images(1)
    if kind.startswith("itta"):
        with pytest.raises(ValueError, match="at least 2 examples in a batch, got 1"):
            make()(single)
    else:
        assert make()(single).isfinite().all()


def test_a_state_of_another_kind_or_file_is_refused(make, kind, tmp_path):
    class Other(nn.Module):
        def state_dict(self):
            return {"parameters": [torch.ones(2)]}

    save_state(Other(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds the state of Other, not of a"):
        load_state(make(), tmp_path / "other.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="pickle"):
        load_state(make(), tmp_path / "pickle.safetensors")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_state(make(), tmp_path / "state.pt")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_example_spoils_itself_only_and_never_what_was_learnt(make, bad):
    adapter, clean = make(), make()
    x = stream()[0].clone()
    x[3, 0, 2, 2] = bad
    good = torch.arange(8) != 3
    with pytest.warns(UserWarning, match="1 of 8 examples hold NaN or infinity"):
        out = adapter(x)
    assert out[3].isnan().all()
    assert torch.equal(out[good], clean(x[good]))
    for name, value in clean.last_change.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(adapter.last_change[name][good], value)
            assert len(adapter.last_change[name]) == 8
    assert torch.equal(adapter(stream()[1]), clean(stream()[1]))
    with pytest.raises(ValueError, match="every example of the batch of 2 holds NaN or infinity"):
        adapter(torch.full((2, 1, 6, 6), bad))
    assert torch.equal(adapter(stream()[2]), clean(stream()[2]))


@pytest.mark.parametrize("kind_of_inputs", [dict, tuple])
def test_an_example_is_bad_where_any_of_its_inputs_is(kind_of_inputs):
    from heldout.adapt.protocol import sparing

    class Sums:
        def __init__(self):
            self.last_change = {}

        @sparing
        def __call__(self, inputs):
            a, b, ids = inputs.values() if isinstance(inputs, dict) else inputs
            self.last_change = {"ids": ids}
            return torch.stack([a, b], 1)

    values = {
        "a": torch.tensor([1.0, torch.nan, 3.0]),
        "b": torch.tensor([1.0, 2.0, torch.inf]),
        "ids": torch.arange(3),
    }
    adapter = Sums()
    with pytest.warns(UserWarning, match="2 of 3 examples"):
        out = adapter(values if kind_of_inputs is dict else tuple(values.values()))
    assert out.isnan().all(1).tolist() == [False, True, True]
    assert adapter.last_change["ids"].tolist() == [0, -1, -1]


@pytest.mark.parametrize("name", ADAPTERS)
def test_inside_inference_mode_an_adapter_learns_as_outside(name):
    outside, inside = (ADAPTERS[name](classifier()) for _ in range(2))
    expected = [outside(images(8, seed)) for seed in range(3)]
    with torch.inference_mode():
        found = [inside(images(8, seed)) for seed in range(3)]
        inside.reset()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(inside(images(8, 0)), expected[0])


@pytest.mark.parametrize("name", ["t3a", "pseudo-label"])
def test_one_class_is_refused(name):
    make = {"t3a": T3A, "pseudo-label": PseudoLabel}[name]
    with pytest.raises(ValueError, match="2 or more classes"):
        make(nn.Flatten(), nn.Linear(36, 1))(images(8))


COLLIDING = [{"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}, {1: torch.ones(1), "1": torch.zeros(1)}]


@pytest.mark.parametrize("value", COLLIDING)
def test_names_that_would_collide_are_refused(value):
    with pytest.raises(ValueError, match="is there twice"):
        flattened(value, "state", {})
