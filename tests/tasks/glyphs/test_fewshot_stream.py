import pytest
import torch

from heldout.tasks import fewshot_stream

Y = torch.arange(8).repeat(10)  # ten examples of each


def dealt(**changes):
    options = {
        "base": [6, 0],
        "tasks": [[3, 1], [5, 2, 7]],
        "held_out": [4],
        "shots": 3,
        "tests": 4,
        "seed": 1,
    } | changes
    return fewshot_stream(Y, **options)


def test_no_example_is_in_two_parts_and_classes_are_where_they_belong():
    stream = dealt()
    parts = [stream.base, *stream.support, *stream.test, stream.held_out]
    together = torch.cat(parts)
    assert len(together.unique()) == len(together)
    assert set(Y[stream.base].tolist()) == {0, 6}
    assert len(stream.base) == 20
    assert Y[stream.support[0]].tolist() == [3, 3, 3, 1, 1, 1]
    assert Y[stream.test[1]].bincount().tolist() == [0, 0, 4, 0, 0, 4, 0, 4]
    assert (Y[stream.held_out] == 4).all()


def test_few_shots_are_among_more_and_the_order_of_tasks_changes_no_draw():
    many, one, turned = dealt(), dealt(shots=1), dealt(tasks=[[5, 2, 7], [3, 1]])
    assert torch.isin(torch.cat(one.support), torch.cat(many.support)).all()
    assert torch.equal(turned.support[1], many.support[0])
    assert torch.equal(turned.test[0], many.test[1])
    assert not torch.equal(dealt(seed=2).support[0], many.support[0])


def test_what_is_shown_and_what_is_asked_may_be_kept_apart():
    pool, query = torch.arange(0, 80, 2), torch.arange(1, 80, 2)
    torch.arange(4).repeat_interleave(20)
    stream = fewshot_stream(
        torch.arange(4).repeat_interleave(20),
        base=[],
        tasks=[[2]],
        held_out=[],
        shots=5,
        tests=5,
        pool=pool,
        query=query,
    )
    assert (stream.support[0] % 2 == 0).all()
    assert (stream.test[0] % 2 == 1).all()
    assert len(stream.base) == len(stream.held_out) == 0


def test_bad_input_is_refused():
    for changes, named in (
        ({"base": [3]}, "tasks"),
        ({"held_out": [1]}, "held_out"),
        ({"tasks": [[3, 3]]}, "class 3"),
        ({"tasks": [[3], []]}, "tasks"),
        ({"tasks": []}, "tasks"),
        ({"base": [99]}, "base must hold classes of y"),
        ({"shots": 0}, "shots"),
        ({"tests": 0}, "tests"),
        ({"shots": 7}, "class 3 of tasks must have 7"),
        ({"pool": torch.tensor([99])}, "pool"),
        ({"pool": torch.tensor([0, 1])}, "class 3"),
    ):
        with pytest.raises(ValueError, match=named):
            dealt(**changes)


def test_every_class_has_a_draw_of_its_own():
    places = dealt(tasks=[[1, 2, 3, 5]]).support[0].view(4, 3) // 8  # of the ten examples of a class
    assert len({tuple(own) for own in places.tolist()}) > 1
