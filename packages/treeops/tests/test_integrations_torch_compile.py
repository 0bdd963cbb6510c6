# SPDX-License-Identifier: Apache-2.0
"""Functions on trees inside ``torch.compile(fullgraph=True)`` do what they do outside."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install torch")

import treeops  # noqa: E402
import treeops.dataclasses  # noqa: E402
import treeops.integrations.torch  # noqa: E402

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.12", reason="torch.compile follows trees from torch 2.12 on"
)

SPACE = "test-compile"
Point = namedtuple("Point", "x y")


@treeops.dataclasses.dataclass(namespace=SPACE)
class Layer:
    weight: Any
    bias: Any
    name: str = treeops.dataclasses.field(default="", pytree_node=False)


@treeops.register_pytree_node_class(SPACE)
class Bag:
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __tree_flatten__(self) -> Any:
        return self.items, len(self.items)

    @classmethod
    def __tree_unflatten__(cls, metadata: Any, children: Any) -> Any:
        return cls(*children)


class Pair:
    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right


treeops.register_pytree_node(
    Pair,
    lambda pair: ((pair.left, pair.right), None),
    lambda _, children: Pair(*children),
    namespace=SPACE,
)


def t(*values: float) -> Any:
    return torch.tensor(values)


TREES = {
    "tensor": t(1),
    "list": [t(1), (t(2), [])],
    "dict": {"b": t(1), "a": {"d": t(2), "c": t(3)}},
    "mixed keys": {"b": t(1), 2: t(2), "a": t(3)},
    "ordereddict": OrderedDict(b=t(1), a=t(2)),
    "defaultdict": defaultdict(list, {"b": t(1), "a": [t(2)]}),
    "deque": deque([t(1), t(2)]),
    "namedtuple": Point(t(1), {"k": t(2)}),
    "struct sequence": torch.sort(torch.tensor([2.0, 1.0])),
    "none": [t(1), None, {"a": None}],
    "dataclass": [Layer(t(1), {"b": t(2)}, "n")],
    "class with methods": Bag(t(1), Bag(t(2))),
    "class with functions": Pair(t(1), [t(2)]),
    "parameters": {"0": {"weight": t(1, 2), "bias": None}, "1": {"weight": t(3), "bias": t(4)}},
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend="eager")


def seen(tree: Any) -> Any:
    leaves, spec = treeops.tree_flatten(tree, none_is_leaf=True, namespace=SPACE)
    return [leaf.tolist() if torch.is_tensor(leaf) else leaf for leaf in leaves], spec


def keys(tree: Any) -> list[Any]:
    """Insertion orders of the dicts of a tree."""
    return [list(node) for node in (tree, *(tree.values() if isinstance(tree, dict) else ()))
            if isinstance(node, dict)]  # fmt: skip


def same(function: Any, *arguments: Any) -> None:
    expected, found = function(*arguments), compiled(function)(*arguments)
    assert seen(found) == seen(expected)
    assert keys(found) == keys(expected)


CASES = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)


@CASES
def test_map(tree: Any) -> None:
    same(lambda tree: treeops.tree_map(lambda x: x * 2, tree, namespace=SPACE), tree)


@CASES
def test_map_of_two(tree: Any) -> None:
    def add(tree: Any, other: Any) -> Any:
        return treeops.tree_map(lambda x, y: x + y, tree, other, namespace=SPACE)

    same(add, tree, tree)


@CASES
def test_flatten_and_unflatten(tree: Any) -> None:
    def reverse(tree: Any) -> Any:
        leaves, spec = treeops.tree_flatten(tree, namespace=SPACE)
        return treeops.tree_unflatten(spec, [leaf + 1 for leaf in leaves])

    same(reverse, tree)


@CASES
def test_treespec_comes_out_as_it_is(tree: Any) -> None:
    def parts(tree: Any) -> Any:
        leaves, spec = treeops.tree_flatten(tree, none_is_leaf=True, namespace=SPACE)
        return leaves, spec, treeops.tree_structure(tree, namespace=SPACE)

    leaves, spec, structure = compiled(parts)(tree)
    assert type(spec) is treeops.PyTreeSpec
    assert spec == treeops.tree_structure(tree, none_is_leaf=True, namespace=SPACE)
    assert structure == treeops.tree_structure(tree, namespace=SPACE)
    assert len(leaves) == spec.num_leaves


@CASES
def test_treespec_from_outside(tree: Any) -> None:
    leaves, spec = treeops.tree_flatten(tree, namespace=SPACE)

    def build(leaves: Any, spec: Any) -> Any:
        return treeops.tree_unflatten(spec, [leaf * spec.num_leaves for leaf in leaves])

    same(build, leaves, spec)


@CASES
def test_methods_that_walk(tree: Any) -> None:
    spec = treeops.tree_structure(tree, namespace=SPACE)

    def build(tree: Any) -> Any:
        leaves = treeops.tree_structure(tree, namespace=SPACE).flatten_up_to(tree)
        return spec.unflatten([x + y for x, y in zip(leaves, spec.flatten_up_to(tree))])

    same(build, tree)


@CASES
def test_methods_that_ask(tree: Any) -> None:
    spec = treeops.tree_structure([tree, 0], namespace=SPACE)

    def ask(x: Any) -> Any:
        child, below = spec.child(0), [spec.entry(-1), *spec.entries()]
        sizes = [each.num_leaves for each in spec.children()]
        facts = [child.is_leaf(), child.is_leaf(strict=False), spec.one_level().is_one_level()]
        return x * 2, child.paths(), spec.paths(), below, sizes, facts

    expected, found = ask(t(1)), compiled(ask)(t(1))
    assert found[0].tolist() == expected[0].tolist()
    assert found[1:] == expected[1:]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: treeops.tree_partition(lambda leaf: True, {"a": x, "b": [x]}),
        lambda x: treeops.tree_transpose(
            treeops.tree_structure([0, 0]), treeops.tree_structure((0, 0)), [(x, x), (x, 2 * x)]
        ),
    ],
    ids=["partition", "transpose"],
)
def test_functions_made_of_methods(call: Any) -> None:
    same(call, t(1))


def test_leaves_with_options() -> None:
    def total(tree: Any) -> Any:
        whole = treeops.tree_leaves(tree, lambda node: isinstance(node, tuple))
        every = treeops.tree_leaves(tree, none_is_leaf=True)
        return [leaf[0] if isinstance(leaf, tuple) else leaf for leaf in whole], len(every)

    same(total, [t(1), (t(2), None), {"a": None}])


def test_reductions_trace_through() -> None:
    def total(tree: Any) -> Any:
        return treeops.tree_reduce(lambda x, y: x + y, tree)

    same(total, TREES["dict"])


def test_map_for_effect() -> None:
    def double(tree: Any) -> Any:
        return treeops.tree_map_(lambda x: x.mul_(2), tree)

    tree = {"a": t(1), "b": [t(3)]}
    assert compiled(double)(tree) is not None
    assert seen(tree)[0] == [[2], [6]]


def test_another_treespec_compiles_again() -> None:
    build = compiled(lambda leaves, spec: treeops.tree_unflatten(spec, leaves))
    first, second = treeops.tree_structure([0, 0]), treeops.tree_structure({"a": 0, "b": 0})
    assert type(build([t(1), t(2)], first)) is list
    assert type(build([t(1), t(2)], second)) is dict


def test_no_recompilation_for_the_same_structure() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(
        lambda tree: treeops.tree_map(lambda x: x + 1, tree), fullgraph=True, backend=counter
    )
    for value in range(3):
        step({"a": t(value), "b": [t(value)]})
    assert counter.frame_count == 1


@pytest.mark.skipif(
    not hasattr(torch._dynamo, "allow_c_slot"), reason="this torch cannot compare C objects"
)
def test_treespecs_compare() -> None:
    spec = treeops.tree_structure([0, 0])

    def check(tree: Any) -> Any:
        return tree[0] * 2 if treeops.tree_structure(tree) == spec else tree[0]

    same(check, [t(1), t(2)])
    same(check, (t(1), t(2)))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: treeops.tree_unflatten(treeops.tree_structure([0, 0]), [x]),
        lambda x: treeops.tree_map(lambda a, b: a + b, [x], [x, x]),
        lambda x: treeops.tree_map(lambda a, b: a + b, {"a": x}, {"b": x}),
        lambda x: treeops.tree_map(lambda a, b: a + b, [x], (x,)),
        lambda x: treeops.tree_map(lambda a, b: a + b, [None, x], [x, x]),
        lambda x: treeops.tree_structure([0, 0]).unflatten([x]),
        lambda x: treeops.tree_structure([0, [0]]).flatten_up_to([x, (x,)]),
    ],
)
def test_errors_stop_the_compilation(call: Any) -> None:
    with pytest.raises(ValueError, match=r"tree_\w+: |PyTreeSpec\.\w+: "):
        call(t(1))
    with pytest.raises(Exception, match=r"tree_\w+: |PyTreeSpec\.\w+: |Observed exception"):
        compiled(call)(t(1))


@pytest.mark.parametrize(
    ("tree", "other", "message"),
    [
        ([None], lambda x: [x], "expected None, got <class 'torch.Tensor'>"),
        ([0], lambda x: (x,), "expected <class 'list'>, got <class 'tuple'>"),
        ([0], lambda x: [x, x], "expected 1 children, got 2"),
        ({"a": 0}, lambda x: [x], "expected <class 'dict'>, got <class 'list'>"),
        (
            {"a": 0},
            lambda x: {"b": x},
            "expected <class 'dict'> with the same keys, got one with others",
        ),
        (
            Layer(0, 0, "m"),
            lambda x: Layer(x, x, "n"),
            f"expected {Layer} with the same metadata, got one with other",
        ),
    ],
)
def test_messages_in_compiled_code(tree: Any, other: Any, message: str) -> None:
    spec = treeops.tree_structure(tree, namespace=SPACE)

    def caught(x: Any) -> Any:
        try:
            spec.flatten_up_to(other(x))
        except ValueError as error:
            return str(error)

    assert compiled(caught)(t(1)) == f"PyTreeSpec.flatten_up_to: tree: {message}"


def test_deque_from_a_treespec_keeps_its_length() -> None:
    spec = treeops.tree_structure(deque([0, 0], maxlen=3))
    same(lambda x: treeops.tree_unflatten(spec, [x, x]), t(1))


def test_frozen_dataclass_as_a_value() -> None:
    @treeops.dataclasses.dataclass(namespace=SPACE, frozen=True)
    class State:
        count: Any
        inner: Any

    def update(state: Any) -> Any:
        new = treeops.tree_map(lambda x: x + 1, state, namespace=SPACE)
        return dataclasses.replace(new, inner=new.inner)

    same(update, State(t(1), (t(2),)))
