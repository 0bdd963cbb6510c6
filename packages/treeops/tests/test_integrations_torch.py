# SPDX-License-Identifier: Apache-2.0
"""Trees of tensors: raveling, containers of modules, torch's treespecs."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install torch")

import optree.integrations.torch  # noqa: E402
from torch.utils import _pytree as torch_pytree  # noqa: E402

import treeops  # noqa: E402
import treeops.integrations.torch as tree_torch  # noqa: E402

Point = namedtuple("Point", "x y")

TREES = [
    {"b": torch.arange(6.0).reshape(2, 3), "a": torch.arange(2.0)},
    {"b": torch.arange(6).reshape(3, 2), "a": [torch.arange(2.0), None]},
    [torch.ones(()), torch.zeros(0, 3), torch.ones(1, 1, 2)],
    (torch.ones(2, dtype=torch.complex64), torch.ones(2)),
    {},
]


@pytest.mark.parametrize("tree", TREES, ids=repr)
def test_ravel_as_optree(tree: Any) -> None:
    flat, unravel = tree_torch.tree_ravel(tree)
    their_flat, their_unravel = optree.integrations.torch.tree_ravel(tree)
    torch.testing.assert_close(flat, their_flat, rtol=0, atol=0)
    ours, theirs = unravel(flat), their_unravel(their_flat)
    assert treeops.tree_structure(ours) == treeops.tree_structure(theirs)
    for mine, other in zip(treeops.tree_leaves(ours), treeops.tree_leaves(theirs)):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_ravel_is_differentiable_both_ways() -> None:
    tree = {"a": torch.ones(2, 2, requires_grad=True), "b": torch.ones(1, requires_grad=True)}
    flat, unravel = tree_torch.ravel_pytree(tree)
    unravel(flat * torch.arange(5.0))["a"].sum().backward()
    assert tree["a"].grad.tolist() == [[0, 1], [2, 3]]
    assert tree["b"].grad.tolist() == [0]


def test_unravel_is_a_value() -> None:
    flat, unravel = tree_torch.tree_ravel(TREES[1])
    assert unravel == tree_torch.tree_ravel(TREES[1])[1]
    assert pickle.loads(pickle.dumps(unravel))(flat)["b"].shape == (3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tree_torch.tree_ravel([1.0]), "tree_ravel: expected tensors, got float"),
        (lambda: tree_torch.tree_ravel(TREES[0])[1]([1.0]), "expected tensors, got list"),
        (lambda: tree_torch.tree_ravel(TREES[0])[1](torch.zeros(7)), r"\(8,\), got \(7,\)"),
        (
            lambda: tree_torch.tree_ravel(TREES[1])[1](torch.zeros(8).double()),
            "expected an array of type torch.float32, got torch.float64",
        ),
        (lambda: tree_torch.tree_ravel({})[1](torch.zeros(1)), r"\(0,\), got \(1,\)"),
    ],
)
def test_ravel_refuses(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ---- modules -----------------------------------------------------------------------------------


def network() -> Any:
    shared = torch.nn.Linear(3, 3, bias=False)
    return torch.nn.Sequential(
        OrderedDict(first=shared, act=torch.nn.ReLU(), norm=torch.nn.BatchNorm1d(3), again=shared)
    )


def test_containers_are_those_of_the_modules() -> None:
    net = network()
    parameters = tree_torch.parameter_containers(net)
    assert {name: list(c) for name, c in parameters.items()} == {
        "first": ["weight", "bias"],
        "norm": ["weight", "bias"],
    }
    assert parameters["first"]["bias"] is None
    assert parameters["norm"] is net.norm._parameters
    assert len(treeops.tree_leaves(parameters)) == len(list(net.parameters()))
    buffers = tree_torch.buffer_containers(net)
    assert set(buffers) == {"norm"}
    assert list(buffers["norm"]) == ["running_mean", "running_var", "num_batches_tracked"]
    assert tree_torch.parameter_containers(net, recurse=False) == {}
    assert list(tree_torch.parameter_containers(net.first, recurse=False)) == [""]


@pytest.mark.parametrize("name", ["parameter_containers", "buffer_containers"])
@pytest.mark.parametrize("recurse", [True, False])
def test_containers_of_something_else(name: str, recurse: bool) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: expected a torch\.nn\.Module, got int$"):
        getattr(tree_torch, name)(3, recurse=recurse)


# ---- treespecs ---------------------------------------------------------------------------------

SAME_IN_BOTH = [
    1,
    [1, (2, 3), []],
    {"a": 1, "b": [2, None]},
    OrderedDict(b=1, a=Point(2, (3,))),
    defaultdict(list, {"a": 1}),
    deque([1, 2], maxlen=3),
]


@pytest.mark.parametrize("tree", SAME_IN_BOTH, ids=repr)
def test_treespecs_go_both_ways(tree: Any) -> None:
    theirs = torch_pytree.tree_structure(tree)
    ours = treeops.tree_structure(tree, none_is_leaf=True)
    assert tree_torch.from_torch_treespec(theirs) == ours
    assert tree_torch.to_torch_treespec(ours) == theirs


def test_order_of_dicts() -> None:
    tree = {"b": 1, "a": 2}
    spec = tree_torch.from_torch_treespec(torch_pytree.tree_structure(tree))
    assert list(spec.unflatten([2, 1])) == ["b", "a"]
    assert spec.unflatten([2, 1]) == tree
    theirs = tree_torch.to_torch_treespec(spec)
    assert torch_pytree.tree_unflatten([1, 2], theirs) == tree


class Known:
    def __init__(self, x: Any) -> None:
        self.x = x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tree_torch.from_torch_treespec(3), TypeError, "a torch TreeSpec, got int"),
        (lambda: tree_torch.to_torch_treespec(3), TypeError, "expected a PyTreeSpec, got int"),
        (
            lambda: tree_torch.to_torch_treespec(treeops.tree_structure([None])),
            ValueError,
            "expected no None nodes, got one, a leaf to torch.utils._pytree",
        ),
        (
            lambda: tree_torch.to_torch_treespec(
                treeops.tree_structure([Known(1)], namespace="test-torch")
            ),
            ValueError,
            "classes that both libraries know, got Known",
        ),
    ],
)
def test_treespecs_refused(call: Any, error: type[Exception], message: str) -> None:
    if treeops.register_pytree_node.get(Known, namespace="test-torch") is None:
        treeops.register_pytree_node(
            Known, lambda k: ((k.x,), None), lambda _, c: Known(*c), namespace="test-torch"
        )
    with pytest.raises(error, match=message):
        call()


class Grown:
    """Two children to treeops, one to torch."""

    def __init__(self, x: Any) -> None:
        self.x = x


def test_treespecs_of_classes_that_the_libraries_see_differently() -> None:
    torch_pytree.register_pytree_node(Grown, lambda g: ([g.x], None), lambda c, _: Grown(*c))
    treeops.register_pytree_node(
        Grown, lambda g: ((g.x, g.x), None), lambda _, c: Grown(c[0]), namespace="test-torch"
    )
    spec = torch_pytree.tree_structure(Grown(1))
    message = "^from_torch_treespec: expected 1 leaves, got 2 in treeops$"
    with pytest.raises(ValueError, match=message):
        tree_torch.from_torch_treespec(spec, namespace="test-torch")


# ---- importing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["import torch._dynamo", "pass"])
def test_importing_does_not_import_the_compiler(first: str) -> None:
    code = (
        f"import sys, torch\n{first}\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "import treeops.integrations.torch as tree_torch\n"
        "print(before == ('torch._dynamo' in sys.modules))\n"
        "import torch._dynamo\n"
        "print('treeops.integrations._torch_compile' in sys.modules)\n"
        "print(any(type(f).__name__ == '_AfterImport' for f in sys.meta_path))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    traces = str(torch.__version__ >= "2.12")
    assert output.stdout.split() == ["True", traces, "False"]
