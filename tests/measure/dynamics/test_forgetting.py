"""Forget gaps, ratios and the matrix of tasks forgotten and evaluated: closed forms."""

import numpy as np
import pytest
import torch

from heldout.measure import ForgetMatrix, forget_gap, forget_matrix, forget_ratio, forgetting_order


def matrix(after, before=0.9, **options):
    """A matrix of two examples a task, with the accuracies after forgetting that are given."""
    after = np.asarray(after, dtype=float)
    tasks = [f"e{j}" for j in range(after.shape[1])]
    rows = {f"f{i}": {task: [value] * 2 for task, value in zip(tasks, row, strict=True)} for i, row in enumerate(after)}
    return ForgetMatrix({task: [before] * 2 for task in tasks}, rows, **options)


def test_the_ratio_is_one_for_chance_and_zero_for_no_change():
    assert forget_ratio(0.9, 0.5) == 1
    assert forget_ratio(0.9, 0.9) == 0
    assert forget_ratio(0.8, 0.95) == pytest.approx(-0.5)
    assert forget_ratio(0.7, 0.4, chance=0.25) == pytest.approx(0.3 / 0.45)


def test_flipped_answers_are_measured_to_the_mirror_image():
    assert forget_ratio(0.9, 0.1, mode="flip") == pytest.approx(1)
    assert forget_ratio(0.9, 0.5, mode="flip") == pytest.approx(0.5)
    assert forget_ratio(0.7, 0.6, mode="flip") == pytest.approx(0.1 / 0.4)


def test_the_gap_is_what_is_left_above_chance():
    assert forget_gap(0.69) == pytest.approx(0.19)
    assert forget_gap(0.2, chance=0.25) == pytest.approx(-0.05)


@pytest.mark.parametrize("before", [0.5, 0.3])
def test_what_was_not_above_chance_cannot_be_forgotten(before):
    with pytest.raises(ValueError, match="acc_before"):
        forget_ratio(before, 0.4)
    with pytest.raises(ValueError, match="e0 was at"):
        _ = matrix([[0.4]], before).values


def test_ratios_and_accuracies_stand_forgotten_by_evaluated():
    found = matrix([[0.5, 0.9, 0.7], [0.9, 0.8, 0.5]])
    assert found.forgotten == ("f0", "f1")
    assert found.evaluated == ("e0", "e1", "e2")
    np.testing.assert_allclose(found.values, [[1, 0, 0.5], [0, 0.25, 1]])
    np.testing.assert_allclose(found.accuracy_after, [[0.5, 0.9, 0.7], [0.9, 0.8, 0.5]])
    np.testing.assert_allclose(found.accuracy_before, [0.9] * 3)
    np.testing.assert_allclose(matrix([[0.1, 0.5]], mode="flip").values, [[1, 0.5]])


def test_a_matrix_of_columns_is_explained_by_the_evaluated_task_alone():
    columns = np.tile([0.5, 0.6, 0.9], (4, 1))
    assert matrix(columns).variance_explained() == pytest.approx({"forgotten": 0, "evaluated": 1, "residual": 0})
    assert matrix(columns.T).variance_explained() == pytest.approx({"forgotten": 1, "evaluated": 0, "residual": 0})


def test_an_interaction_is_explained_by_neither_and_shares_add_up():
    found = matrix([[0.5, 0.9], [0.9, 0.5]]).variance_explained()
    assert found == pytest.approx({"forgotten": 0, "evaluated": 0, "residual": 1})
    values = 0.5 + 0.4 * np.random.default_rng(0).random((3, 5))
    shares = matrix(values).variance_explained()
    ratios = (0.9 - values) / 0.4
    fitted = ratios.mean(1, keepdims=True) + ratios.mean(0) - ratios.mean()
    assert shares["residual"] == pytest.approx(((ratios - fitted) ** 2).sum() / ((ratios - ratios.mean()) ** 2).sum())
    rows = sum(5 * (row.mean() - ratios.mean()) ** 2 for row in ratios) / ((ratios - ratios.mean()) ** 2).sum()
    assert shares["forgotten"] == pytest.approx(rows)
    assert sum(shares.values()) == pytest.approx(1)


def test_ratios_that_do_not_differ_have_no_variance_to_explain():
    with pytest.raises(ValueError, match="differ"):
        matrix([[0.7, 0.7], [0.7, 0.7]]).variance_explained()
    with pytest.raises(ValueError, match="at least 2 tasks"):
        matrix([[0.5, 0.9]]).variance_explained()


def test_clusters_put_like_tasks_beside_each_other():
    found = matrix([[0.5, 0.9, 0.51, 0.89], [0.9, 0.5, 0.91, 0.5], [0.52, 0.9, 0.5, 0.9]]).cluster()
    assert {frozenset(found.evaluated[:2]), frozenset(found.evaluated[2:])} == {
        frozenset({"e0", "e2"}),
        frozenset({"e1", "e3"}),
    }
    assert abs(found.forgotten.index("f0") - found.forgotten.index("f2")) == 1
    # Average linkage: the last join is at the mean of the distances between the two clusters
    ratios = (0.9 - np.array([[0.5, 0.9, 0.51, 0.89], [0.9, 0.5, 0.91, 0.5], [0.52, 0.9, 0.5, 0.9]])) / 0.4
    between = [np.linalg.norm(ratios[1] - ratios[k]) for k in (0, 2)]
    assert found.forgotten_linkage[-1, 2] == pytest.approx(np.mean(between))
    assert found.evaluated_linkage.shape == (3, 4)


def test_the_interval_of_a_cell_pairs_the_examples():
    rng = np.random.default_rng(1)
    before = (rng.random(400) < 0.9).astype(float)
    after = np.where(rng.random(400) < 0.5, before, rng.random(400) < 0.5)
    found = ForgetMatrix({"a": before}, {"b": {"a": after}})
    cell = found.interval("b", "a")
    assert cell.estimate == pytest.approx(found.values[0, 0])
    assert cell.low < cell.estimate < cell.high
    assert cell.high - cell.low < 0.4
    unpaired = ForgetMatrix({"a": before}, {"b": {"a": np.random.default_rng(2).permutation(after)}}).interval("b", "a")
    assert unpaired.high - unpaired.low > cell.high - cell.low
    flipped = ForgetMatrix({"a": before}, {"b": {"a": after}}, mode="flip")
    assert flipped.interval("b", "a").estimate == pytest.approx(flipped.values[0, 0])
    same = ForgetMatrix({"a": before}, {"b": {"a": before}}).interval("b", "a")
    assert (same.low, same.estimate, same.high) == (0, 0, 0)


def test_each_task_is_forgotten_by_a_model_of_its_own():
    made, seen = [], []

    def factory():
        made.append({1, 2, 3, 4, 5, 6})
        return made[-1]

    def forget(known, examples):
        known -= set(examples)
        return known

    found = forget_matrix(
        factory,
        {"a": [1], "b": [3, 4]},
        {"a": [1, 2], "b": [3, 4], "c": [5, 6, 6]},
        forget=forget,
        right=lambda known, asked: [x in known for x in asked],
        chance=0.0,
        on_forgotten=lambda name, model: seen.append((name, len(model))),
    )
    np.testing.assert_allclose(found.values, [[0.5, 0, 0], [0, 1, 0]])
    assert len(made) == 3
    assert seen == [("a", 5), ("b", 4)]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="after"):
        ForgetMatrix({"a": [1.0]}, {"a": {"b": [1.0]}})
    with pytest.raises(ValueError, match="after"):
        ForgetMatrix({"a": [1.0]}, {"a": {"a": [1.0, 0.0]}})
    with pytest.raises(ValueError, match="before"):
        ForgetMatrix({"a": [np.nan]}, {"a": {"a": [1.0]}})
    with pytest.raises(ValueError, match="before"):
        ForgetMatrix({"a": [2.0]}, {"a": {"a": [1.0]}})
    with pytest.raises(ValueError, match="chance"):
        forget_ratio(0.9, 0.5, chance=0.25, mode="flip")
    with pytest.raises(ValueError, match="evaluated"):
        matrix([[0.5]]).interval("f0", "other")
    with pytest.raises(ValueError, match="examples of a"):
        forget_matrix(set, {"a": []}, {"a": [1]}, forget=lambda m, e: m, right=lambda m, e: [True])
    with pytest.raises(ValueError, match="right"):
        forget_matrix(set, {"a": [1]}, {"a": [1]}, forget=lambda m, e: m, right=lambda m, e: [True, False])


def test_own_ratios_are_those_of_the_task_that_was_forgotten():
    rows = {"b": {"a": [0.9], "b": [0.5]}, "x": {"a": [0.7], "b": [0.9]}}
    found = ForgetMatrix({"a": [0.9], "b": [0.9]}, rows)
    assert found.own == {"b": 1.0}
    np.testing.assert_allclose(found.others, [0, 0.5, 0])


def test_the_order_of_forgetting_is_that_of_the_first_looks_beyond_the_threshold():
    learning = torch.tensor([[0.5, 0.7, 0.5, 0.5], [0.5, 0.5, 0.61, 0.5], [0.7, 0.9, 0.9, 0.6]])  # the last: never
    forgetting = torch.tensor([[0.9, 0.9, 0.59, 0.1], [0.2, 0.9, 0.9, 0.9], [0.9, 0.5, 0.9, 0.9]])
    # learned at looks 2, 0, 1 and forgotten at 1, 2, 0
    assert forgetting_order(forgetting, learning) == pytest.approx(-0.5)
    assert forgetting_order(1 - learning, learning, threshold=0.5) == pytest.approx(1)
    assert forgetting_order(forgetting[:, :2], learning[:, :2]) is None
    with pytest.raises(ValueError, match="learning must be of 4 examples"):
        forgetting_order(forgetting, learning[:, :3])
    with pytest.raises(ValueError, match="forgetting"):
        forgetting_order(forgetting * torch.nan, learning)


def test_the_figure_has_every_cell_in_the_order_of_the_clusters():
    found = matrix([[0.5, 0.9, 0.51], [0.9, 0.5, 0.91]])
    drawn = found.figure()
    cells = {(row["forgotten"], row["evaluated"]): row["ratio"] for row in drawn["data"]["values"]}
    assert cells["f1", "e1"] == pytest.approx(1)
    assert len(cells) == 6
    assert drawn["encoding"]["x"]["sort"] == list(found.cluster().evaluated)
    assert len(matrix([[0.5, 0.9]]).figure()["data"]["values"]) == 2


def test_tasks_that_the_model_could_not_do_are_left_out():
    found = ForgetMatrix({"a": [0.9], "b": [0.5], "c": [0.6]}, {"x": {"a": [0.7], "b": [0.4], "c": [0.5]}}).able(0.6)
    assert found.evaluated == ("a", "c")
    np.testing.assert_allclose(found.values, [[0.5, 1]])
    with pytest.raises(ValueError, match="least"):
        found.able(0.95)


def test_what_is_left_is_that_after_its_own_training_or_the_mean_where_not_all_were_forgotten():
    rows = {"b": {"a": [0.9], "b": [0.5]}, "a": {"a": [0.7], "b": [0.8]}}
    before = {"a": [0.9], "b": [0.9]}
    assert ForgetMatrix(before, rows).left == {"a": 0.7, "b": 0.5}
    rows["x"] = rows.pop("a")
    assert ForgetMatrix(before, rows).left == pytest.approx({"a": 0.8, "b": 0.65})


def test_the_correlation_is_spearmans_of_a_number_of_each_task_with_what_is_left():
    after = [0.5, 0.8, 0.6, 0.7]
    found = matrix([after, after])
    assert found.correlation({"e3": 0.05, "e0": 0.01, "e1": 0.09, "e2": 0.02}) == pytest.approx(1)
    assert found.correlation({"e0": 1, "e1": 2, "e2": 3, "e3": 4}) == pytest.approx(0.4)
    assert found.correlation(dict.fromkeys(("e0", "e1", "e2", "e3"), 1.0)) == 0
    with pytest.raises(ValueError, match="none for e3"):
        found.correlation({"e0": 1, "e1": 2, "e2": 3})
    with pytest.raises(ValueError, match="told"):
        found.correlation({"e0": 1, "e1": 2, "e2": 3, "e3": np.nan})


def test_the_summary_has_what_the_matrix_can_tell():
    rows = {"b": {"a": [0.8], "b": [0.5]}, "a": {"a": [0.7], "b": [0.9]}}
    found = ForgetMatrix({"a": [0.9], "b": [0.9]}, rows)
    told, shares = found.summary(), found.variance_explained()
    assert told["own_ratio"] == pytest.approx(0.75)
    assert told["span"] == pytest.approx(0.5)
    assert told["others_ratio"] == pytest.approx(0.125)
    assert told["able"] == 2
    assert told["least_before"] == pytest.approx(0.9)
    assert (told["by_evaluated"], told["by_forgotten"]) == (shares["evaluated"], shares["forgotten"])
    assert shares["evaluated"] != pytest.approx(shares["forgotten"])
    assert told["evaluated_excess"] == pytest.approx(shares["evaluated"] - 2 * shares["forgotten"])
    one = ForgetMatrix({"a": [0.9]}, {"x": {"a": [0.7]}}).summary()
    assert set(one) == {"able", "least_before", "others_ratio"}
    assert "by_evaluated" not in matrix([[0.7, 0.7], [0.7, 0.7]]).summary()
