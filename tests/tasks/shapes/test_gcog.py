import pytest
import torch
from torch.utils.data import TensorDataset

from heldout.data import gather
from heldout.tasks import BOOLEAN_QUESTIONS, GCOG, QUESTION_OPERATORS, GCOGTrials, SceneAnswer, rule_tokens

SMALL = GCOG(grid=5, colors=5, shapes=5)


def brute_force(question, scene):
    """The class of an answer, from the list of objects, by the specification alone; also how many fit each question."""
    objects = [
        (row, column, color - 1, shape - 1)
        for row, line in enumerate(scene.tolist())
        for column, (color, shape) in enumerate(line)
        if color
    ]

    def fitting(asked):
        return [o for o in objects if asked.color in (None, o[2]) and asked.shape in (None, o[3])]

    if question.branches:
        test, then, otherwise = question.branches
        for branch in (then, otherwise):
            brute_force(branch, scene)  # both have an answer
        return brute_force(then if brute_force(test, scene) else otherwise, scene)
    found = [fitting(asked) for asked in question.objects]
    if question.operator == "Exist":
        assert len(found[0]) <= 1
        return len(found[0])
    assert [len(each) for each in found] == [1] * len(question.objects)
    row, column, color, shape = found[0][0]
    size = len(scene)
    if question.operator == "Go":
        return 2 + size * row + column
    if question.operator == "GetShape":
        return 2 + size**2 + shape
    if question.operator == "GetColor":
        return 2 + size**2 + SHAPES[size] + color
    total = 0 if "Sum" in question.operator else 1
    for each in found:
        for coordinate in each[0][:2]:
            total = total + coordinate if "Sum" in question.operator else total * coordinate
    return int(total % 2 == (1 if "Odd" in question.operator else 0))


SHAPES = {5: 5, 10: 10}


@pytest.mark.parametrize(
    ("world", "depth", "distractors", "count"),
    [
        (GCOG(), 1, (0, 5), 300),
        (GCOG(), 3, 40, 150),
        (GCOG(parity_objects=2), 5, 3, 150),
        (SMALL, 3, (0, 3), 300),
        (SMALL, 5, 3, 100),
    ],
)
def test_answers_are_those_of_a_brute_force_reference_and_every_question_has_one(world, depth, distractors, count):
    trials = world.trials(count, depth, distractors, seed=1000)
    for index in range(count):
        tree = trials.question(index)
        assert tree.depth == depth
        assert brute_force(tree, trials.scenes[index]) == int(trials.answers[index])
        assert rule_tokens(tree).equal(trials.rule_tokens[index])


def test_objects_are_those_asked_for_and_the_distractors_on_cells_of_their_own():
    trials = SMALL.trials(500, 3, (0, 6), seed=1001)
    shown = (trials.scenes[..., 0] > 0).sum((1, 2))
    assert shown.equal(3 + trials.factors["distractors"])  # an absent object has a stand-in: numbers tell nothing
    assert ((trials.scenes[..., 0] > 0) == (trials.scenes[..., 1] > 0)).all()
    objects = trials.factors["objects"][:, :, 0]
    codes = objects[..., 0] * 5 + objects[..., 1]
    assert all(len(set(row)) == 3 for row in codes.tolist())


@pytest.mark.parametrize("pairs", [1, 2])
def test_each_boolean_operator_is_true_half_of_the_time(pairs):
    trials = GCOG(parity_objects=pairs).trials(20_000, distractors=2, seed=1002)
    for number, name in enumerate(QUESTION_OPERATORS):
        answers = trials.answers[trials.factors["answered"] == number].double()
        assert abs(len(answers) - 2500) < 3 * (20_000 * 7 / 64) ** 0.5
        if name in BOOLEAN_QUESTIONS:
            assert abs(float(answers.mean()) - 0.5) < 3 * (0.25 / len(answers)) ** 0.5, name


@pytest.mark.parametrize(("grid", "pairs", "depth"), [(3, 1, 3), (2, 1, 3), (3, 2, 1), (4, 1, 5)])
def test_parities_are_true_half_of_the_time_also_where_few_cells_fit(grid, pairs, depth):
    """On 3 x 3 cells one has an odd product: a question that asks for two of them is not asked, whatever is true."""
    world = GCOG(grid=grid, colors=4, shapes=4, parity_objects=pairs)
    trials = world.trials(12_000, depth, seed=1010)
    for number in range(1, len(BOOLEAN_QUESTIONS)):
        answers = trials.answers[trials.factors["answered"] == number].double()
        if len(answers):
            assert abs(float(answers.mean()) - 0.5) < 3.5 * (0.25 / len(answers)) ** 0.5, QUESTION_OPERATORS[number]
    products = torch.isin(trials.factors["operators"], torch.tensor([3, 4])).sum(1)
    assert int(products.max()) == {(3, 1): 1, (2, 1): 1, (3, 2): 0, (4, 1): 4}[grid, pairs]
    with pytest.raises(ValueError, match="operators must have questions"):
        GCOG(grid=3, operators=("ProductOdd",)).trials(2, depth=3)


def test_tests_of_deeper_trees_are_true_half_of_the_time():
    trials = SMALL.trials(4000, 3, seed=1003)
    is_test_true = torch.tensor(
        [trials.factors["answered"][i] == trials.factors["operators"][i, 1] for i in range(len(trials))]
    )
    differ = trials.factors["operators"][:, 1] != trials.factors["operators"][:, 2]
    assert abs(float(is_test_true[differ].double().mean()) - 0.5) < 3 * (0.25 / int(differ.sum())) ** 0.5


def test_all_answers_of_a_world_occur_and_cells_are_even():
    trials = SMALL.trials(8000, seed=1004)
    assert trials.answers.unique().tolist() == list(range(SMALL.classes))
    cells = trials.answers[(trials.answers >= 2) & (trials.answers < 27)]
    counts = cells.bincount(minlength=27)[2:].double()
    expected = len(cells) / 25
    assert float(((counts - expected) ** 2 / expected).sum()) < 51.2  # chi-square, 24 degrees of freedom, p = 0.001


def test_the_same_seed_gives_the_same_trials_and_a_generator_goes_on():
    first, again = SMALL.trials(50, 3, 2, seed=1005), SMALL.trials(50, 3, 2, seed=1005)
    assert all(a.equal(b) for a, b in zip(first.tensors, again.tensors, strict=True))
    generator = torch.Generator().manual_seed(1005)
    one, two = (SMALL.trials(50, 3, 2, seed=generator) for _ in range(2))
    assert one.scene_tokens.equal(first.scene_tokens)
    assert not two.scene_tokens.equal(first.scene_tokens)


def test_a_filter_and_families_hold():
    allowed = torch.zeros(8, 5, 5, dtype=torch.bool)
    allowed[:, 1:, 2:] = True
    trials = SMALL.trials(
        300, 3, 2, pair_filter=allowed, families=[(["Exist"], ["Go"]), (["SumOdd"], ["GetColor"])], seed=1006
    )
    objects = trials.factors["objects"][:, :, 0]
    assert objects[..., 0].min() == 1
    assert objects[..., 1].min() == 2
    names = {tuple(QUESTION_OPERATORS[i] for i in row) for row in trials.factors["operators"].tolist()}
    assert names == {("Exist", "Go", "Go"), ("SumOdd", "GetColor", "GetColor")}


def test_a_sample_shows_one_trial_in_every_form():
    trial = GCOG(grid=4).sample(3, 2, seed=1007)
    assert trial.image.shape == (3, 32, 32)
    assert trial.text.startswith("if the ")
    assert trial.tree.depth == 3
    assert trial.scene_tokens[-1].tolist() == [0, 0, 1]


def test_trials_are_a_tensor_data_set_and_can_be_joined():
    shallow, deep = SMALL.trials(4, seed=1008), SMALL.trials(3, 3, seed=1009)
    both = shallow.joined([deep])
    assert isinstance(both, TensorDataset)
    assert both.rule_mask.sum(1).tolist() == [2] * 4 + [5] * 3
    assert both.question(1) == shallow.question(1)
    assert both.question(6) == deep.question(2)
    assert both.groups["depth"] == [1] * 4 + [3] * 3
    assert both.factors["operators"][0].tolist()[1:] == [-1, -1]
    (rules, _, scene), answers = gather(both, torch.tensor([6, 0]))
    assert rules[1, :2].equal(shallow.rule_tokens[0])
    assert answers.tolist() == [int(deep.answers[2]), int(shallow.answers[0])]
    assert scene[0].equal(deep.scene_tokens[2])
    assert both.at(torch.tensor([5])).question(0) == deep.question(1)


def test_classes_are_numbered_in_the_order_of_the_paper():
    world = GCOG(shapes=26)
    assert world.classes == 138
    first_and_last = {"truth": (1, 1), "cell": (0, 99), "shape": (0, 25), "color": (0, 9)}
    ends = [world.class_of(SceneAnswer(kind, value)) for kind, values in first_and_last.items() for value in values]
    assert ends == [1, 1, 2, 101, 102, 127, 128, 137]
    with pytest.raises(ValueError, match="answer"):
        world.class_of(SceneAnswer("cell", 100))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SMALL.trials(2, depth=2), "depth must be odd"),
        (lambda: SMALL.trials(2, distractors=25), "distractors must leave a cell"),
        (lambda: SMALL.trials(2, distractors=(3, 2)), "distractors"),
        (lambda: GCOG(colors=11), "colors"),
        (lambda: GCOG(shapes=27), "shapes"),
        (lambda: GCOG(operators=("Fly",)), "operators"),
        (lambda: GCOG(operators=("Go",)).trials(2, depth=3), "families must have a test"),
        (lambda: SMALL.trials(2, families=[(["Go"], ["Go"])]), "families"),
        (lambda: SMALL.trials(2, pair_filter=torch.ones(8, 5, 4, dtype=torch.bool)), "pair_filter"),
        (lambda: SMALL.trials(2, pair_filter=torch.zeros(8, 5, 5, dtype=torch.bool)), "pair_filter"),
        # Two colours of two shapes, all of which four objects ask for: no distractor is left.
        (
            lambda: GCOG(grid=4, colors=2, shapes=2, operators=("SumOdd",), parity_objects=2).trials(1, 3, 1),
            "distractors must leave scenes",
        ),
        (lambda: GCOG(operators=("SumOdd", "GetColor"), shapes=2).trials(
            1, 5, families=[(["SumOdd"], ["GetColor"])]), "distractors must leave scenes"),
        (lambda: SMALL.trials(2).joined([GCOG().trials(2)]), "others"),
        (lambda: SMALL.trials(2).at(torch.tensor([2])), "positions"),
        (lambda: SMALL.trials(2).question(2), "index"),
        (lambda: GCOGTrials(SMALL, SMALL.trials(2).tensors[:3], SMALL.trials(2).factors), "tensors"),
        (lambda: GCOGTrials(SMALL, SMALL.trials(2).tensors, {"depth": torch.ones(2)}), "factors"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
