"""What the study reads off a run: by hand, for a smoke run is too short to have any correlation."""

import pytest
import torch

from heldout.reproductions.moe_grokking import GAUGES, OTHERS, correlations, domains, probe, right, watched


def records(accuracy, **gauges):
    return [
        dict.fromkeys((*GAUGES, *OTHERS), 1.0)
        | {"step": 10.0 * n, "test_accuracy": value}
        | {name: values[n] for name, values in gauges.items()}
        for n, value in enumerate(accuracy)
    ]


def run(memorised, falls_by_sample=None):
    """Eight checkpoints: until ``memorised`` the distance rises with accuracy, then it falls as accuracy rises."""
    distance = [float(n) if n < memorised else 20.0 - n for n in range(8)]
    loss = [5.0 - n / 10 if n < memorised else 0.2 - n / 100 for n in range(8)]
    accuracy = [n / 10 for n in range(8)]
    gauges = {"pathway_distance": distance, "pathway_consistency": [n**2 for n in range(8)], "loss": loss}
    losses = torch.tensor(loss)[:, None].repeat(1, 3)
    for sample in (0, 1) if falls_by_sample is not None else ():
        losses[:, sample] = torch.tensor([5.0] * falls_by_sample + [0.1] * (8 - falls_by_sample))
    return watched(records(accuracy, **gauges), losses, torch.ones(8, 4, dtype=torch.bool))


def test_only_what_follows_memorisation_is_correlated():
    found = correlations(run(3))
    assert found["checkpoints"] == 5
    assert found["start_accuracy"] == pytest.approx(0.3)
    assert found["rho_pathway_distance"] == found["step_rho_pathway_distance"] == pytest.approx(-1)
    assert found["rho_pathway_consistency"] == pytest.approx(1)
    assert found["rho_loss"] == pytest.approx(-1)
    assert found["rho_routing_entropy"] == 0  # does not move
    assert found["lead"] == pytest.approx(0)
    assert found["abs_rho"] == found["abs_step_rho"] == pytest.approx(1)
    assert found["distance_drop"] == pytest.approx(1 - 13 / 17)
    assert found["short"] == 0


def test_too_few_checkpoints_speak_against_every_claim():
    found = correlations(run(4))
    assert found["short"] == 1
    assert found["checkpoints"] == 4
    assert found["rho_pathway_distance"] == found["rho_pathway_consistency"] == found["lead"] == 0
    assert found["abs_rho"] == found["abs_step_rho"] == 1


def test_the_median_sample_is_another_start():
    seen = run(3, falls_by_sample=1)
    found = correlations(seen)
    assert seen.memorised.tolist() == [1, 1, 3]
    assert seen.start == 3
    assert found["sample_rho_pathway_distance"] > found["rho_pathway_distance"] == pytest.approx(-1)
    assert correlations(run(3, falls_by_sample=6))["sample_rho_pathway_consistency"] == 0  # of two checkpoints


def test_what_was_never_learned_counts_as_the_last_checkpoint():
    losses, answers = torch.ones(8, 3), torch.zeros(8, 4, dtype=torch.bool)
    seen = watched(records([0.0] * 8), losses, answers)
    assert seen.start == 7
    assert seen.memorised.tolist() == [7] * 3
    assert seen.generalised.tolist() == [7] * 4
    assert seen.times == (70, 70)


@pytest.mark.parametrize("kind", ["sums", "shuffled"])
def test_held_out_sums_are_in_neither_order_and_only_shuffled_ones_are_wrong(kind):
    p = 7
    train, test, asked = domains(kind, 1000, "smoke")["addition"]
    seen, held_out = ({(row[0], row[2]) for row in rows.tolist()} for rows in (train, test))
    assert not seen & held_out
    assert len(seen | held_out) == len(train) + len(test) == p * p
    assert all((b, a) in seen for a, b in seen)
    assert asked == 1
    assert torch.equal(test[:, 4], (test[:, 0] + test[:, 2]) % p)
    share = ((train[:, 0] + train[:, 2]) % p == train[:, 4]).double().mean()
    assert share == 1 if kind == "sums" else share < 0.5
    assert torch.equal(train[:, 4].sort().values, domains("sums", 1000, "smoke")["addition"].train[:, 4].sort().values)


def test_copies_are_copies_and_code_comes_from_other_modules():
    train, test, asked = domains("sums", 1000, "smoke")["copying"]
    assert torch.equal(train[:, :2], train[:, 3:])
    assert not {tuple(row) for row in train.tolist()} & {tuple(row) for row in test.tolist()}
    assert asked == 2
    code = domains("code", 1000, "smoke")["code"]
    assert not torch.equal(code.train[: len(code.test)], code.test)


def test_what_is_asked_is_the_last_tokens_and_the_last_is_not_routed():
    rows = torch.tensor([[1, 2, 3, 4, 5]])
    batch = probe(rows, 2)
    assert batch["labels"].tolist() == [[-100, -100, -100, 4, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0]]

    class Successor(torch.nn.Module):
        def forward(self, ids):
            self.logits = torch.nn.functional.one_hot(ids + 1, 9).float()
            return self

    assert right(Successor(), torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 5, 6]]), 2).tolist() == [True, True, False, True]
