import pytest
import torch
from torch import nn

from heldout.nn import CrossAttentionFusion, DualStreamFusion, FieldEmbedding, FusionClassifier, RecurrentFusion
from heldout.nn.sequences.seq2seq import SinusoidalPositions
from heldout.tasks import GCOG, QUESTION_OPERATORS

TOKENS = torch.tensor([[[0, 3], [2, 1], [1, 0]], [[2, 2], [0, 0], [1, 3]]])


def made(sizes=(3, 4), d=8, **options):
    torch.manual_seed(1000)
    return FieldEmbedding(sizes, d, **options)


def test_a_token_is_the_sum_of_a_vector_for_each_field_and_its_position():
    embedding = made()
    first, second = (each.weight for each in embedding.vectors)
    wanted = torch.stack([torch.stack([first[i] + second[j] for i, j in row]) for row in TOKENS.tolist()])
    torch.testing.assert_close(embedding(TOKENS), SinusoidalPositions(8)(wanted))
    torch.testing.assert_close(made(positions=False)(TOKENS), wanted)


def test_vectors_start_as_large_as_positions():
    embedding = made((50, 50, 50), 64, positions=False)
    tokens = torch.randint(50, (1, 500, 3), generator=torch.Generator().manual_seed(1001))
    places = SinusoidalPositions(64)(torch.zeros(1, 500, 64))
    assert float(embedding(tokens).detach().square().mean()) == pytest.approx(float(places.square().mean()), rel=0.1)


def test_raw_tokens_pass_one_linear_map():
    embedding = made(raw=True, positions=False)
    torch.testing.assert_close(embedding(TOKENS), TOKENS.float() @ embedding.linear.weight.T + embedding.linear.bias)
    assert len(list(embedding.parameters())) == 2


def test_tokens_may_be_small_whole_numbers_and_fields_larger_than_these():
    large = made((300, 4))
    for kind in (torch.uint8, torch.int16, torch.int32):
        assert large(TOKENS.to(kind)).equal(large(TOKENS))


def classifier(world, fusion, d=16):
    colors, shapes = world.colors + 1, world.shapes + 1
    rules = FieldEmbedding((len(QUESTION_OPERATORS) + 2, shapes, colors, 2, shapes, colors, 2, 2), d)
    return FusionClassifier(rules, FieldEmbedding((colors, shapes, 2), d), fusion, world.classes)


def test_where_an_object_lies_is_learned_in_fifty_steps():
    """With vectors of a mean square of 1 in each field, which bury the positions, it is not."""
    world = GCOG(grid=3, colors=4, shapes=4, operators=("Go",))
    train, test = world.trials(2000, seed=1001), world.trials(200, seed=1002)
    torch.manual_seed(1000)
    model = classifier(world, CrossAttentionFusion(16))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in torch.arange(2000).split(40):
        *inputs, answers = train[batch]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(*inputs), answers).backward()
        optimizer.step()
    with torch.no_grad():
        right = model(*test.tensors[:3]).argmax(1) == test.answers
    assert float(right.double().mean()) > 0.9


def test_every_field_of_a_question_and_of_a_scene_reaches_the_logits():
    world = GCOG(grid=3, colors=3, shapes=3, parity_objects=2, operators=("SumOdd",))
    torch.manual_seed(1000)
    model, trials = classifier(world, CrossAttentionFusion(16)).eval(), world.trials(5, seed=1003)
    usual = model(*trials.tensors[:3])
    for part, place, fields in ((0, 0, 8), (2, 4, 3)):
        for field in range(fields):
            changed = [each.clone() for each in trials.tensors[:3]]
            changed[part][:, place, field] = 1 - changed[part][:, place, field].clamp(max=1)
            assert (model(*changed) - usual).abs().amax(1).min() > 1e-5, (part, field)


def test_fusions_of_another_width_and_questions_of_several_lengths_are_classified():
    world = GCOG(grid=3, colors=3, shapes=3)
    trials = world.trials(4, seed=1003).joined([world.trials(2, 3, seed=1004)])
    torch.manual_seed(1000)
    model = classifier(world, RecurrentFusion(16, length=10, hidden=5))
    logits = model(*trials.tensors[:3])
    assert logits.shape == (6, world.classes)
    alone = world.trials(4, seed=1003)
    torch.testing.assert_close(logits[:4], model(*alone.tensors[:3]))
    torch.testing.assert_close(logits[:4], model(alone.rule_tokens, None, alone.scene_tokens))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FieldEmbedding((), 8), "sizes"),
        (lambda: FieldEmbedding((3, 0), 8), "sizes"),
        (lambda: FieldEmbedding((3,), 7), "dim must be even"),
        (lambda: made()(TOKENS[0]), "tokens"),
        (lambda: made()(TOKENS[:, :, :1]), "tokens must have 2 fields"),
        (lambda: made()(TOKENS + 1), "tokens must lie below"),
        (lambda: made()(TOKENS - 1), "tokens"),
        (lambda: made()(TOKENS.float().fill_(torch.nan)), "tokens"),
        (lambda: FusionClassifier(made(), made(), nn.Linear(2, 2), 3), "fusion must have a width"),
        (lambda: FusionClassifier(made(), made(), DualStreamFusion(8), 1), "classes"),
    ],
)
def test_what_cannot_be_classified_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
