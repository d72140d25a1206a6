"""A search on several machines: two raylets, each with one processor."""

import json
import os
import subprocess
import sys

import pytest

from heldout.improve import improve
from tests.improve.test_search import FILE

SEARCH = """
import json, os, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address
try:
    from heldout.improve import improve
    found = improve(sys.argv[1], budget=300, seeds=3, methods=["centre"], workers=2, on="ray", out=sys.argv[2])
    print(json.dumps(found))
finally:
    cluster.shutdown()
"""


PLACE = """
def model():
    import pathlib, ray
    if ray.is_initialized():
        (pathlib.Path(__file__).parent / ("at-" + ray.get_runtime_context().get_node_id())).touch()
"""


def test_a_search_on_two_machines_finds_what_one_finds(tmp_path, ray_lock):
    pytest.importorskip("ray")
    path = tmp_path / "offset.py"
    path.write_text(FILE.replace("\ndef model():\n", PLACE))
    with ray_lock:
        done = subprocess.run(
            [sys.executable, "-c", SEARCH, str(path), str(tmp_path / "two")],
            capture_output=True, text=True, check=False, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.glob("at-*"))) == 2
    two = json.loads(done.stdout.splitlines()[-1])
    one = improve(path, budget=300, seeds=3, methods=["centre"], out=tmp_path / "one")
    assert two["winner"] == one["winner"] == "centre"
    assert two["baseline"] == one["baseline"]
    assert [each["tests"] for each in two["finalists"]] == [each["tests"] for each in one["finalists"]]
