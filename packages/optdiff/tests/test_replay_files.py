# SPDX-License-Identifier: Apache-2.0
"""Carries in files: gone afterwards, missed with a clear error; a killed pass goes on."""

import errno
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import optdiff

STEPS = 40


def step(carry, i, phi):
    w, v = carry
    v = 0.9 * v + (w * phi).sin() * torch.rand(3)
    return w - 0.1 * v, v


def start_and_last(body=None, **options):
    torch.manual_seed(0)
    w, phi = torch.linspace(1, 2, 3), torch.tensor(0.7)
    w.requires_grad_(), phi.requires_grad_()
    init = w, torch.zeros(3)
    last, _ = optdiff.replay(body or step, init, STEPS, phi, offload="disk", **options)
    return [w, phi], last


def loop(**options):
    at, last = start_and_last(**options)
    return at, last.pow(3).sum()


def expected():
    torch.manual_seed(0)
    w, phi = torch.linspace(1, 2, 3), torch.tensor(0.7)
    w.requires_grad_(), phi.requires_grad_()
    last, _ = optdiff.unroll(step, (w, torch.zeros(3)), STEPS, phi)
    return torch.autograd.grad(last.pow(3).sum(), [w, phi])


def files(directory):
    """All but the lock."""
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "optdiff.lock")


def test_a_temporary_directory_is_cleaned_up(tmp_path, monkeypatch):
    wanted = expected()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    at, value = loop(checkpoint=3)
    assert len(files(tmp_path)) == 3
    found = torch.autograd.grad(value, at)
    assert list(tmp_path.iterdir()) == []
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_a_loop_without_a_backward_pass_is_cleaned_up(tmp_path):
    at, value = loop(directory=tmp_path)
    assert files(tmp_path)
    assert (tmp_path / "optdiff.lock").exists()
    del at, value
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_as_before_when_the_pass_is_over(tmp_path):
    for directory in (tmp_path / "new" / "newer", tmp_path):
        (tmp_path / "mine.txt").write_text("keep")
        at, value = loop(directory=directory)
        torch.testing.assert_close(torch.autograd.grad(value, at), expected(), rtol=1e-12, atol=0)
    assert [path.name for path in files(tmp_path)] == ["mine.txt"]


def test_no_file_is_written_where_nothing_is_differentiated(tmp_path):
    with torch.no_grad():
        loop(directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_passes(tmp_path):
    at, value = loop(directory=tmp_path / "new")
    first = torch.autograd.grad(value, at, retain_graph=True)
    assert list(tmp_path.iterdir()) == []
    torch.testing.assert_close(torch.autograd.grad(value, at), first, rtol=1e-12, atol=0)
    assert list(tmp_path.iterdir()) == []


def test_views_are_written_without_the_rest_of_their_memory(tmp_path):
    large = torch.ones(100_000)

    def narrow(w, i):
        large[:3] = w.detach()
        return w * large[:3].clone().sin(), large[3:6]

    w = torch.ones(3, requires_grad=True)
    last = optdiff.replay(
        lambda c, i: narrow(c[0], i), (w, large[3:6]), 6, offload="disk", directory=tmp_path
    )
    assert max(path.stat().st_size for path in files(tmp_path)) < 10_000
    assert last[0].requires_grad


def test_a_missing_file(tmp_path):
    at, value = loop(directory=tmp_path, checkpoint=3)
    gone = max(files(tmp_path), key=lambda path: int(path.stem.split("-")[-1]))
    gone.unlink()
    number = gone.stem.split("-")[-1]
    message = (
        f"replay: expected the carry before step {number}, got no such file; leave the directory "
        "alone until the backward pass is over, and run again"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        torch.autograd.grad(value, at)


def test_a_damaged_file(tmp_path):
    at, value = loop(directory=tmp_path, checkpoint=1)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    message = r"^replay: expected the carry before step \d+ as it was written, got a damaged file, "
    with pytest.raises(ValueError, match=message):
        torch.autograd.grad(value, at)


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    message = (
        r"replay: expected to write \d\.\d kB, got 'No space left on device'; make room, give "
        "another directory, or take offload='cpu'"
    )
    with pytest.raises(OSError, match=message) as caught:
        loop(directory=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path) == []


@pytest.mark.parametrize("directory", ["file", "file/inside"])
def test_a_directory_that_cannot_be_made(tmp_path, directory):
    (tmp_path / "file").write_text("mine")
    ran = []
    message = (
        r"replay: expected a directory to write to, got '[\w ]+'; give another directory, or take "
        r"offload='cpu'"
    )
    with pytest.raises(OSError, match=message):
        start_and_last(lambda *args: ran.append(0), directory=tmp_path / directory)
    assert not ran


def test_a_temporary_folder_that_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(OSError, match="replay: expected a directory to write to, got 'No such fil"):
        loop()


OCCUPIED = "replay: expected a directory of its own, got one that another loop works in, at "


def test_two_loops_in_one_directory(tmp_path):
    at, value = loop(directory=tmp_path)
    with pytest.raises(ValueError, match="^" + re.escape(OCCUPIED + str(tmp_path))):
        loop(directory=tmp_path)
    again = torch.autograd.grad(value, at, retain_graph=True)  # the first one has lost nothing
    torch.testing.assert_close(again, expected(), rtol=1e-12, atol=0)
    other, second = loop(directory=tmp_path)  # free between passes
    with pytest.raises(ValueError, match="^" + re.escape(OCCUPIED)):
        torch.autograd.grad(value, at, retain_graph=True)
    del other, second
    torch.testing.assert_close(torch.autograd.grad(value, at), expected(), rtol=1e-12, atol=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("calls", [STEPS // 2, STEPS + STEPS // 2])
def test_a_run_that_failed_leaves_the_directory_to_others(tmp_path, calls):
    ran = []

    def broken(*args):
        ran.append(0)
        if len(ran) == calls:
            raise KeyError("lost")
        return step(*args)

    def failing():
        at, last = start_and_last(broken, directory=tmp_path)
        torch.autograd.grad(last.pow(3).sum(), at)

    with pytest.raises(KeyError, match="lost") as caught:  # holds the graph
        failing()
    (tmp_path / "optdiff-backward.pt").unlink(missing_ok=True)
    at, value = loop(directory=tmp_path)
    torch.testing.assert_close(torch.autograd.grad(value, at), expected(), rtol=1e-12, atol=0)
    assert caught.value.args == ("lost",)


PROGRAM = """
import os, signal, sys, torch, optdiff
sys.path.insert(0, sys.argv[3])
import test_replay_files as program

torch.set_default_dtype(torch.float64)
left = int(sys.argv[2])
inner = program.step

def step(carry, i, phi):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(carry, i, phi)

program.step = step
at, value = program.loop(directory=sys.argv[1])
found = torch.autograd.grad(value, at)
print(*(x.hex() for grad in found for x in grad.flatten().tolist()), left)
"""


def start(directory, steps_to_live):
    command = [sys.executable, "-c", PROGRAM, directory, steps_to_live, Path(__file__).parent]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_a_killed_process_goes_on_where_it_was(tmp_path, monkeypatch):
    ran, inner = [], step
    monkeypatch.setitem(globals(), "step", lambda *args: ran.append(0) or inner(*args))
    at, value = loop()
    gradient = torch.cat([grad.flatten() for grad in torch.autograd.grad(value, at)])

    killed = start(tmp_path, len(ran) * 3 // 4)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "optdiff-backward.pt").exists()
    assert any(path.is_dir() for path in tmp_path.iterdir())

    again = start(tmp_path, 10_000)
    *found, left = again.stdout.split()
    assert torch.tensor([float.fromhex(x) for x in found]).equal(gradient), again.stderr
    assert list(tmp_path.iterdir()) == []
    assert 10_000 - int(left) < len(ran) / 2 + STEPS  # forward, and what was left of the way back


@pytest.fixture
def interrupted(tmp_path):
    """A directory that a pass has left behind."""
    at, value = loop(directory=tmp_path)
    keep, unlink = [], Path.unlink

    def note(path, **options):
        if path.name == "optdiff-backward.pt":
            keep.append(path.read_bytes())
        unlink(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", note)
        torch.autograd.grad(value, at)
    (tmp_path / "optdiff-backward.pt").write_bytes(keep[0])
    return tmp_path


def test_the_place_in_another_loop(interrupted):
    message = (
        "replay: expected a directory of this loop, got one of another (init, args, num_steps or "
        f"step differ), at {interrupted / 'optdiff-backward.pt'}; give another directory, or "
        "delete the file to start over"
    )
    w = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        optdiff.replay(lambda w, i: w.sin(), w, 9, offload="disk", directory=interrupted)
    assert (interrupted / "optdiff-backward.pt").exists()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (lambda old: old[:-1] + b"?", "a damaged file"),
        (lambda old: old[:40], "a damaged file"),
        (lambda old: b"mine", "a file of another kind or version"),
        (lambda old: b"optdiff replay 1\n" + old[17:], "a file of another kind or version"),
    ],
)
def test_a_place_that_cannot_be_read(interrupted, content, kind):
    path = interrupted / "optdiff-backward.pt"
    path.write_bytes(content(path.read_bytes()))
    message = f"replay: expected the place in an earlier backward pass, got {kind}, at {path}; del"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        loop(directory=interrupted)


@pytest.mark.parametrize(
    "other",
    [
        lambda last: 2 * last.pow(3).sum(),
        lambda last: -last.pow(3).sum(),
        lambda last: last.flip(0).detach().pow(2) @ last * 3,  # cotangents in another order
    ],
)
def test_the_place_in_a_pass_of_another_loss(interrupted, other):
    at, last = start_and_last(directory=interrupted)
    message = "replay: expected the loss of the backward pass that was interrupted, got another, at"
    with pytest.raises(ValueError, match="^" + message):
        torch.autograd.grad(other(last), at, retain_graph=True)
    (interrupted / "optdiff-backward.pt").unlink()  # as the error says, in the same process
    found = torch.autograd.grad(other(last) * 0 + last.pow(3).sum(), at)
    torch.testing.assert_close(found, expected(), rtol=1e-12, atol=0)


def mirrored(carry, i, phi):
    w, v = step(carry, i, phi)
    return (-w, -v) if i == STEPS - 1 else (w, v)


def turned(carry, i, phi):
    w, v = step(carry, i, phi)
    return (w.flip(0), v) if i == STEPS - 1 else (w, v)


@pytest.mark.parametrize("other", [mirrored, turned])
def test_the_place_in_a_run_that_ended_elsewhere(interrupted, monkeypatch, other):
    """Also where the last carry has the same norm."""
    monkeypatch.setattr(other, "__qualname__", "step")
    message = "replay: expected the last carry of the backward pass that was interrupted, got anot"
    with pytest.raises(ValueError, match="^" + message):
        start_and_last(other, directory=interrupted)


def test_it_goes_on_from_the_place(interrupted):
    at, value = loop(directory=interrupted)
    torch.testing.assert_close(torch.autograd.grad(value, at), expected(), rtol=1e-12, atol=0)
    assert list(interrupted.iterdir()) == []
