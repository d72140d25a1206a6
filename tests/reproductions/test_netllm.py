"""What the arms of the study differ in, and what their numbers are units of."""

import pytest
import torch

from heldout.reproductions import netllm
from heldout.tasks import RobustMPC, play_streams

SEED = 1000


def policy(method, monkeypatch=None):
    return netllm.policy_of("bitrate", method, "tiny", SEED, "smoke")


def untrained(monkeypatch, method, task="bitrate"):
    monkeypatch.setattr(netllm, "fit_policy", lambda *_, **__: [])
    return netllm.policy_of(task, method, "tiny", SEED, "smoke")


def base_weights(made):
    return {name: value for name, value in made.lm.state_dict().items() if "lora_" not in name}


def test_frozen_arms_keep_their_backbone_and_others_train_it(monkeypatch):
    with monkeypatch.context() as patch:
        first = {m: base_weights(untrained(patch, m)) for m in ("netllm", "random", "cloning", "scratch", "full")}
    for method, before in first.items():
        after = base_weights(policy(method))
        same = [torch.equal(before[name], after[name]) for name in before]
        assert all(same) == (method in ("netllm", "random", "cloning"))


def test_twins_differ_in_their_backbone_alone(monkeypatch):
    pretrained, random, full, scratch = (untrained(monkeypatch, m) for m in ("netllm", "random", "full", "scratch"))
    own = netllm.pretrained("tiny", "smoke")[0].model.state_dict()
    plain = {name.replace(".base_layer", ""): value for name, value in base_weights(pretrained).items()}
    assert all(torch.equal(own[name], plain[name]) for name in own)
    assert all(torch.equal(own[name], value) for name, value in full.lm.state_dict().items())
    assert any(not torch.equal(own[name], value) for name, value in scratch.lm.state_dict().items())
    assert base_weights(random).keys() == base_weights(pretrained).keys()
    for name, value in pretrained.encoder.state_dict().items():
        assert torch.equal(value, random.encoder.state_dict()[name])


def test_cloning_reads_no_returns_and_netllm_does(monkeypatch):
    pool = netllm.pool_of("bitrate", SEED, "smoke")
    batch = pool.logged.batch(pool.logged.windows(5), pool.returns)
    for method, reads in (("netllm", True), ("cloning", False), ("mlp", True)):
        made = untrained(monkeypatch, method).eval()
        assert torch.equal(made(batch), made(batch._replace(returns=batch.returns + 1))) != reads


def test_the_unit_of_a_setting_is_robust_mpc_on_its_traces():
    found = {name: netllm.run(netllm.ARMS[name], SEED, "smoke") for name in ("mpc", "bba", "pool", "mixture")}
    size = netllm.SIZES["smoke"]
    for setting in netllm.BITRATE_SETTINGS:
        assert found["mpc"][setting] == 1
        mean = sum(found[name][setting] for name in ("mpc", "bba", "mixture")) / 3
        assert found["pool"][setting] == pytest.approx(mean)
    streams, rules = netllm.tested("high", SEED, "smoke")
    assert rules["mpc"] == pytest.approx(float(play_streams(streams, RobustMPC(size.horizon)).rewards.mean()))
    assert found["pool"]["best"] == max(found[name]["broadband"] for name in ("mpc", "bba", "mixture"))


def test_tests_are_on_other_traces_than_the_pool():
    size = netllm.SIZES["smoke"]
    tested = netllm.tested("broadband", SEED, "smoke")[0].traces
    for part in range(3):
        logged = netllm.tasks.bitrate_streams("broadband", size.pool, chunks=size.chunks, part=part, seed=SEED).traces
        assert not (tested[:, None] == logged).any()


def test_text_is_judged_by_what_can_be_read(monkeypatch):
    series = netllm.viewport_traces(2, 14, seed=SEED + 500_000)
    answers = iter(
        [netllm.tasks.series_text(series[0, 10:]), netllm.tasks.series_text(series[1, 10:]).replace(";", ",")]
    )
    monkeypatch.setattr(netllm, "train_tiny", lambda *_, **__: [])
    monkeypatch.setattr(netllm, "generate_ids", lambda *_, **__: [[[0] * 30], [[0] * 20]])
    words = {"decode": lambda self, ids, skip_special_tokens: next(answers), "pad_token": None, "eos_token": "end"}
    tokenizer = type("Words", (), words)()
    model = netllm.pretrained("tiny", "smoke")[0]
    monkeypatch.setattr(netllm, "ids_of_prompt", lambda *_: [0])
    monkeypatch.setattr(netllm, "pretrained", lambda *_: (model, tokenizer))
    found = netllm.text("netllm", "tiny", SEED, "smoke")
    assert (found["valid"], found["salvaged"]) == (0.5, 1.0)
    assert tokenizer.pad_token == "end"
    assert found["passes"] == 25 / 4  # of 25 tokens for 4 samples
    assert found["told_mae"] < 0.005  # what rounding to percents leaves


def test_the_published_forecaster_has_the_source_s_head_and_ours_begins_at_the_last_sample(monkeypatch):
    monkeypatch.setattr(netllm, "fit_forecaster", lambda *_, **__: [])
    ours, published = (netllm.forecaster.__wrapped__(m, "tiny", SEED, "smoke") for m in ("netllm", "published"))
    assert (ours.residual, ours.squash, published.residual, published.squash) == (True, False, False, True)
    past = netllm.viewport_traces(2, 5)
    assert torch.allclose(ours.forecast(past, 3), netllm.FORECASTS["last"](past, 3))
    claimed = {
        claim.arm for claim in netllm.study.claims if claim.arm_names[1:] in (("view velocity",), ("view linear",))
    }
    assert claimed == {"view published"}


def test_jobs_are_logged_in_turns_and_asked_for_in_seconds_not_in_steps():
    pytest.importorskip("torch_geometric")
    pool = netllm.pool_of("jobs", SEED, "smoke")
    assert pool.scale.low == 0
    returns = pool.returns[pool.logged.timesteps == 0]
    totals = torch.stack([pool.logged.select([k]).rewards.sum() for k in range(len(pool.logged))])
    assert torch.equal(returns.argsort(), totals.argsort())
    assert pool.best == returns.max()
    found = {name: netllm.run(netllm.ARMS[f"jobs {name}"], SEED, "smoke") for name in ("pool", *netllm.JOB_RULES)}
    for setting in netllm.GAPS:
        mean = sum(found[name][setting] for name in netllm.JOB_RULES) / 3
        assert found["pool"][setting] == pytest.approx(mean)


def test_arms_without_claims_are_tried_on_one_setting_and_the_real_cell_has_windows_of_its_own():
    found = {method: netllm.bitrate(method, "tiny", SEED, "smoke") for method in ("netllm", "full")}
    assert found["netllm"].keys() == {*netllm.BITRATE_SETTINGS, "sampled", "trained"}
    assert found["full"].keys() == {"broadband", "trained"}
    assert not [claim for claim in netllm.study.claims if "full" in claim.arm_names]
    windows = [netllm.policy_of("bitrate", "netllm", cell, SEED, "smoke").window for cell in ("tiny", "SmolLM2")]
    assert windows == [10, 5]


def test_mpc_is_to_be_beaten_in_every_setting_and_both_readers_of_texts_are_asked():
    beaten = {claim.on for claim in netllm.study.claims if claim.arm_names == ("netllm", "mpc")}
    assert beaten == {*netllm.BITRATE_SETTINGS, "sampled"}
    assert {claim.on for claim in netllm.study.claims if claim.arm_names == ("text netllm",)} == {"valid", "salvaged"}
