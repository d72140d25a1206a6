import torch

from heldout.tasks.shapes.gcog_draws import BOOLEANS, SceneDraws, SceneSizes


def draws(operators, slots=1, parity_objects=1, grid=3):
    families = torch.zeros(1, 2, 8, dtype=torch.bool)
    families[0, 0, :BOOLEANS] = families[0, 1, operators] = True
    allowed = torch.ones(8, 4, 4, dtype=torch.bool)
    return SceneDraws(
        SceneSizes(grid, 4, 4, parity_objects), slots, allowed, families, torch.Generator().manual_seed(1000)
    )


def cells_of(found):
    """The cells of the first two objects of each trial, by where they lie in the scene."""
    return [row.nonzero()[:, 0].tolist() for row in found["scene"][:, :-1, 0] > 0]


def test_pairs_of_cells_with_a_parity_are_all_as_likely():
    """A true SumEven, and a false one, on 3 x 3 cells."""
    found = draws([1], parity_objects=2).trials(torch.zeros(6000, dtype=torch.int64))  # SumEven
    pairs = torch.tensor(cells_of(found))
    parity = (pairs // 3 + pairs % 3).sum(1) % 2
    assert parity.equal(1 - found["answers"])
    for wanted in (0, 1):
        counts = (pairs[:, 0] * 9 + pairs[:, 1])[parity == wanted].unique(return_counts=True)[1].double()
        # Five cells have an even sum and four an odd one: 10 + 6 pairs of one kind, 20 of two kinds.
        assert len(counts) == (20 if wanted else 16)
        chi = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert chi < 43.8  # p = 0.001 with 19 degrees of freedom


def test_an_object_is_no_partner_of_its_own_cell():
    """Of the pairs with an even sum on 3 x 3 cells 10 of 16 are two even cells; 25 of 41 were each its own partner."""
    found = draws([1], parity_objects=2).trials(torch.zeros(40_000, dtype=torch.int64))
    first = torch.tensor(cells_of(found))[found["answers"] == 1][:, 0]
    even = ((first // 3 + first % 3) % 2 == 0).double()
    assert abs(float(even.mean()) - 10 / 16) < 3 * (10 / 16 * 6 / 16 / len(even)) ** 0.5


def test_odd_products_get_their_cells_first():
    """On 4 x 4 cells four have an odd product: where others were placed first, they would often be taken."""
    world = draws([4], slots=7, grid=4)
    operators = torch.tensor([[1, 1, 1, 4, 4, 4, 4]]).expand(300, -1)
    _, done = world._attempt(operators, torch.ones(300, 7, dtype=torch.bool), torch.zeros(300, dtype=torch.int64))
    assert done.all()


def test_rules_put_a_test_and_its_if_before_the_two_branches():
    found = draws([7], slots=7, grid=5).trials(torch.zeros(20, dtype=torch.int64))
    numbers = found["rules"][:, :, 0]
    assert ((numbers == 9).int() == torch.tensor([0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0])).all()
    assert (numbers[:, [4, 5, 8, 9]] == 8).all()
    order = found["operators"][:, [0, 1, 3, 4, 2, 5, 6]] + 1
    assert numbers[:, [0, 2, 4, 5, 6, 8, 9]].equal(order)
