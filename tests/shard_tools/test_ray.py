"""Packing on a Ray cluster of several nodes, one of which dies in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from make_audio import contents, table_dataset
from shared_data import REPOSITORY

pytest.importorskip("ray", reason="ray is not installed (pip install -e '.[ray]')")

# In a process of its own: the cluster's threads, warnings and signal handlers are not ours.
CLUSTER = """
import subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

out = Path(sys.argv[1])
cluster = Cluster()
cluster.add_node(num_cpus=0, object_store_memory=80_000_000)
nodes = [cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
packing = subprocess.Popen([*sys.argv[2:], "--engine", "ray", "--address", cluster.address])
while len(list(out.glob("*.tar"))) < 3 and packing.poll() is None:
    time.sleep(0.01)
assert packing.poll() is None, "it was over before a node could die"
cluster.remove_node(nodes[0], allow_graceful=False)
print("killed a node at", len(list(out.glob("*.tar"))), "shards")
code = packing.wait(timeout=120)
cluster.shutdown()
sys.exit(code)
"""


def test_a_node_that_dies_changes_no_byte(tmp_path: Path) -> None:
    settings = table_dataset(tmp_path, 240, clips_per_shard=3)
    command = [sys.executable, "-m", "shard_tools", "pack", "--config", str(settings)]
    command += ["--data", str(tmp_path / "data"), "--out"]
    alone = [*command, str(tmp_path / "alone"), "--workers", "1"]
    subprocess.run(alone, cwd=REPOSITORY, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(tmp_path / "out"), *command, str(tmp_path / "out")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed a node" in done.stdout and "packed and verified" in done.stdout
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
