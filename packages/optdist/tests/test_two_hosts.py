# SPDX-License-Identifier: Apache-2.0
"""Two hosts: network namespaces of this machine, joined by a cable that exists in memory only."""

import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parents[1]
ADDRESSES = ("10.231.77.1", "10.231.77.2")


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


@pytest.fixture
def hosts():
    """Names of two namespaces that reach each other, and nothing else."""
    names = [f"optdist{os.getpid()}{end}" for end in "ab"]
    cables = [f"od{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "netns", names[0],
           "type", "veth", "peer", "name", cables[1], "netns", names[1])  # fmt: skip
        for name, cable, address in zip(names, cables, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.SubprocessError) as error:
        remove(names)
        why = getattr(error, "stderr", None) or error
        pytest.skip(f"this machine lets nobody make network namespaces: {why}")
    yield names
    remove(names)


def remove(names):
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def listening(host):
    shown = subprocess.run(
        ["ip", "netns", "exec", host, "ss", "-ltnH"], capture_output=True, text=True, check=True
    )
    return [line.split()[3].rpartition(":")[0] for line in shown.stdout.splitlines()]


@pytest.mark.skipif(
    not (HERE.parent / "optdiff" / "examples").is_dir(), reason="optdiff's examples are not here"
)
@pytest.mark.parametrize("nproc", [1, 2])
def test_the_example_trains_on_two_hosts(hosts, start, tmp_path, nproc):
    started = [
        start(
            HERE / "examples" / "distributed_maml.py",
            *("--iterations", 3, "--test-tasks", 4, "--width", 4, "--meta-batch", 5),
            *("--out", tmp_path),
            starter=(
                *("torch.distributed.run", "--nnodes=2", f"--nproc_per_node={nproc}"),
                *("--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29400"),
                # torch looks at the host's name, which namespaces share, to find who serves
                *("--rdzv-id=two", f"--local-addr={address}", f"--rdzv-conf=is_host={1 - number}"),
            ),
            prefix=("ip", "netns", "exec", host),
        )
        for number, (host, address) in enumerate(zip(hosts, ADDRESSES, strict=True))
    ]
    codes = [one.wait() for one in started]
    told = "".join(one.err for one in started)
    assert codes == [0, 0], told
    (out,) = (one.out for one in started if one.out)
    assert len(re.findall(r"learns \d/3  loss \d\.\d+", out)) == 3
    assert f"with {2 * nproc} workers" in out
    assert "use trusted networks only" in told


def test_the_launcher_starts_on_two_hosts(hosts, start, tmp_path):
    started = [
        start(
            "endless.py",
            tmp_path,
            starter=(
                *("optdist.launch", "--nproc", 1, "--nnodes", 2, "--node-rank", number),
                *("--master-addr", ADDRESSES[0], "--master-port", 29500),
            ),
            prefix=("ip", "netns", "exec", host),
        )
        for number, host in enumerate(hosts)
    ]
    started[0].until((tmp_path / "stepped").exists)
    assert {address for host in hosts for address in listening(host)} == {*ADDRESSES}
    started[0].process.terminate()
    assert [one.wait(60) for one in started] != [0, 0]
    assert [one.group() for one in started] == [[], []]
