# SPDX-License-Identifier: Apache-2.0
"""Set-up: the guard against CUDA downloads, where wheel folders come from, where abseil is seen."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PLAN = "Would install 3 packages\n + numpy==2.4.6\n + torch==2.13.0{local}\n + typer==0.29.2\n"
CUDA_LINES = [" + nvidia-cublas==13.1", " + triton==3.7.0", " + cuda-bindings==13.4.4"]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, whatever else is called ``setup``."""
    folder = Path(__file__).resolve().parents[1]
    monkeypatch.syspath_prepend(folder)
    spec = importlib.util.spec_from_file_location("workspace_setup", folder / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("line", CUDA_LINES)
def test_a_plan_with_cuda_is_refused_with_the_way_out(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(setup, "logged", lambda *_: PLAN.format(local="") + line + "\n")
    with pytest.raises(
        setup.ToolError, match=r"expected torch from .*wheels, got .*1 CUDA"
    ) as error:
        setup.refuse_cuda(["uv", "sync"], {"UV_FIND_LINKS": "wheels"})
    assert "PIP_FIND_LINKS" in str(error.value)


def test_a_plan_without_cuda_passes(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "logged", lambda *_: PLAN.format(local="+cpu"))
    setup.refuse_cuda(["uv", "sync"], {"UV_FIND_LINKS": "wheels"})


def test_find_links_become_comma_separated(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "a  b")
    monkeypatch.setenv("UV_FIND_LINKS", "b,c")
    assert setup.uv_environment("first")["UV_FIND_LINKS"] == "first,b,c,a"


def test_without_find_links_uv_gets_none(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    assert "UV_FIND_LINKS" not in setup.uv_environment()


def test_abseil_is_seen_under_a_prefix(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "lib" / "some-arch" / setup.ABSEIL_CONFIG
    config.parent.mkdir(parents=True)
    config.touch()
    monkeypatch.setenv("CMAKE_PREFIX_PATH", str(tmp_path))
    assert setup.abseil_is_installed()


def test_a_failing_command_shows_its_output(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "LOG", tmp_path / "log")
    command = [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"]
    with pytest.raises(setup.ToolError, match=r"(?s)the reason.*expected exit status 0, got 3"):
        setup.logged("a step", command, {})
    assert "the reason" in (tmp_path / "log").read_text()
