# SPDX-License-Identifier: Apache-2.0
"""The engine for Ray, on a Ray of this machine."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra optdist[ray] is not installed")
pytestmark = pytest.mark.slow
PROGRAMS = Path(__file__).parent / "programs"
ALONE = ("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")  # no network


@pytest.fixture(scope="module")
def told(program, tmp_path_factory):
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("Ray listens on every interface, and this machine lets nobody be without one")
    folder = tmp_path_factory.mktemp("ray")
    path = os.pathsep.join((str(PROGRAMS), os.environ.get("PYTHONPATH", "")))
    env = {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
    started = program(
        ("optdist.launch", "--nproc", 1), "on_ray.py", [folder], env=env, prefix=ALONE
    )
    try:
        assert started.wait() == 0, started.err
    finally:
        started.end()
    return json.loads((folder / "told.json").read_text())


@pytest.mark.parametrize(
    ("act", "lost"),
    [
        ("none", []),
        ("once", []),  # Ray starts it again, unasked
        ("kill", ["ray1"]),  # and gives up; the caller runs the chunk
    ],
)
def test_the_step_is_right(told, act, lost):
    assert told[act].pop("off") <= 1e-12
    assert told[act] == {"threads": [1, 1], "chunks": 2, "lost": lost}


def test_maml_equals_one_process(told):
    assert max(told["maml"].values()) <= 1e-12


def test_errors(told):
    assert told["raise"] == ["Refusal", "(3, 'no')"]
    assert told["no ray"] == (
        "parallelize(engine='ray'): expected a Ray that runs, got none; call ray.init() before"
    )
    assert told["placed"] == (
        "parallelize(engine='ray'): expected a partitioner that names no workers, got ['worker1']; "
        "Ray places chunks itself"
    )
