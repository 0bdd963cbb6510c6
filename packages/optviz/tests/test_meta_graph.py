# SPDX-License-Identifier: Apache-2.0
"""The example of meta-gradient graphs: its norms against closed forms, its cuts by their lines."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch

for needed in ("optdiff", "matplotlib", "rich", "typer"):
    pytest.importorskip(needed)
EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    meta_graph = importlib.import_module("meta_graph")


@pytest.fixture
def tasks():
    generator = torch.Generator().manual_seed(0)
    return [meta_graph.make_task(scale, generator) for scale in (0.5, 1.5)]


def test_the_two_parts_of_a_meta_gradient_are_those_of_the_chain_rule(tasks):
    torch.manual_seed(1)
    theta = torch.nn.Linear(meta_graph.INPUTS, 1, bias=False, dtype=torch.float64).weight.detach().T
    torch.manual_seed(1)
    drawn = meta_graph.maml(tasks)
    found = meta_graph.parts(drawn.graph, "theta")
    total = torch.zeros_like(theta)
    for (name, row), (x, y, x_val, y_val) in zip(found.items(), tasks, strict=True):
        curvature = 2 * x.T @ x / len(x)
        adapted = theta - meta_graph.INNER_LR * 2 * x.T @ (x @ theta - y) / len(x)
        outer = 2 * x_val.T @ (x_val @ adapted - y_val) / len(x_val) / len(tasks)
        through = meta_graph.INNER_LR * curvature @ outer
        assert row == pytest.approx({"past": outer.norm().item(), "through": through.norm().item()})
        assert name in ("task 1", "task 2")
        total += outer - through
    torch.testing.assert_close(drawn.gradient.T, total)


def test_a_long_loop_is_drawn_by_as_many_boxes_as_a_short_one(tasks):
    short, long = (meta_graph.long_loop(tasks[1], steps) for steps in (6, 12))
    count = [drawn.graph.to_svg().count("<rect") for drawn in (short, long)]
    assert count[0] == count[1]
    assert len(long.graph.nodes) > 1.8 * len(short.graph.nodes)
    assert list(meta_graph.parts(long.graph, "phi")) == [f"step {k}" for k in range(1, 13)]


CUTS = {
    "grad without create_graph": ("create_graph", "torch.autograd.grad"),
    "detach": ("detach", "g.detach()"),
    "no_grad": ("no_grad", "moved = "),
    "writing into .data": ("in_place", "w.data.sub_"),
    ".item()": ("item", ".item()"),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_is_named_with_its_line(tasks, name):
    kind, words = CUTS[name]
    step = meta_graph.STEPS[name]
    found = meta_graph.ask(step, tasks[1])
    assert found.norm is None
    assert found.answer.kind == kind
    line = int(meta_graph.place(found.answer).split(":")[1])
    lines, first = inspect.getsourcelines(step)
    assert words in lines[line - first]


def test_a_parameter_made_of_a_tensor_is_a_new_leaf(tasks):
    found = meta_graph.ask(meta_graph.STEPS["nn.Parameter of a tensor"], tasks[1])
    assert found.norm is None
    assert found.answer.kind == "new_leaf"


def test_nothing_is_wrong_with_the_right_program(tasks):
    found = meta_graph.ask(meta_graph.STEPS["as it should be"], tasks[1])
    assert not found.answer
    assert found.norm > 1e-3


def test_all_programs_are_tested():
    others = {"as it should be", "nn.Parameter of a tensor"}
    assert set(meta_graph.STEPS) == set(CUTS) | others


def unwritable(tmp_path):
    """Places that no file can be written to, with what the system says."""
    (tmp_path / "file").touch()
    yield tmp_path / "file", "File exists"
    if Path("/proc/self").exists():  # a folder that takes no file, whoever asks
        yield Path("/proc"), "No such file or directory"


def test_a_folder_that_takes_no_file_is_refused_before_all_work(tmp_path, capsys):
    for out, told in unwritable(tmp_path):
        with pytest.raises(meta_graph.typer.Exit) as caught:
            meta_graph.main(out=out)
        assert caught.value.exit_code == 2
        wanted = f"meta_graph: expected a folder to write to, got {told!r}, at {out}; change --out"
        assert capsys.readouterr().err == wanted + "\n"
