# SPDX-License-Identifier: Apache-2.0
"""The short names, and the same with a namespace as default."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import optree
import optree.pytree
import pytest

import treeops
import treeops.pytree

NAME = "shop_of_test_reexport"


@pytest.fixture
def shop() -> Iterator[Any]:
    yield treeops.pytree.reexport(namespace="shop", module=f"{NAME}.pytree")
    for name in [name for name in sys.modules if name.startswith(NAME)]:
        del sys.modules[name]


def test_short_names_are_those_of_optree() -> None:
    assert set(optree.pytree.__all__) == set(treeops.pytree.__all__)
    assert treeops.pytree.map is treeops.tree_map
    assert treeops.pytree.register_node is treeops.register_pytree_node
    assert treeops.pytree.__version__ == treeops.__version__


def test_functions_see_the_namespace(shop: Any) -> None:
    @shop.register_node_class
    class Item:
        def __init__(self, *prices: Any) -> None:
            self.prices = prices

        def __tree_flatten__(self) -> Any:
            return self.prices, None

        @classmethod
        def __tree_unflatten__(cls, metadata: Any, children: Any) -> Any:
            return cls(*children)

    tree = {"a": Item(1, 2), "b": 3}
    assert shop.leaves(tree) == [1, 2, 3]
    assert len(shop.leaves(tree, namespace="")) == 2
    assert shop.map(lambda x: -x, tree)["a"].prices == (-1, -2)
    assert shop.functools.reduce(lambda x, y: x * y, tree) == 6
    assert shop.structure(tree).namespace == "shop"
    assert shop.replace_nones(0, [None, Item(None)])[1].prices == (0,)
    assert shop.register_node.get(Item) is not None
    assert treeops.register_pytree_node.get(Item) is None


def test_dataclasses_are_registered_there(shop: Any) -> None:
    @shop.dataclasses.dataclass
    class Order:
        number: int
        note: str = shop.dataclasses.field(default="", pytree_node=False)

    assert shop.leaves(Order(3)) == [3]
    assert treeops.tree_leaves(Order(3)) == [Order(3)]


def test_it_is_a_module(shop: Any) -> None:
    assert importlib.import_module(f"{NAME}.pytree") is shop
    assert importlib.import_module(f"{NAME}.pytree.dataclasses") is shop.dataclasses
    theirs = optree.pytree.reexport(namespace="shop", module=f"{NAME}.theirs")
    assert shop.__all__ == theirs.__all__
    assert set(theirs.__dir__()) <= set(dir(shop))
    assert shop.PyTreeSpec is treeops.PyTreeSpec
    assert shop.map is shop.map
    with pytest.raises(AttributeError, match="has no attribute 'reexport'"):
        shop.reexport  # noqa: B018


def test_signatures_show_the_default(shop: Any) -> None:
    for name in shop.__all__:
        function = getattr(shop, name)
        if isinstance(function, type):
            continue
        parameters = inspect.signature(function).parameters
        original = inspect.signature(getattr(treeops.pytree, name)).parameters
        assert list(parameters) == list(original)
        if "namespace" in parameters:
            assert parameters["namespace"].default == "shop"
            assert parameters["namespace"].kind == original["namespace"].kind


def test_the_name_comes_from_the_caller() -> None:
    try:
        made = treeops.pytree.reexport(namespace="named")
        assert made.__name__ == f"{__name__}.pytree"
    finally:
        for name in [name for name in sys.modules if name.startswith(f"{__name__}.pytree")]:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"namespace": 3}, TypeError, "reexport: expected namespace to be a str, got int"),
        ({"namespace": "a", "module": "no name"}, ValueError, "expected module to be a module's"),
        ({"namespace": "a", "module": ""}, ValueError, "expected module to be a module's name"),
        ({"namespace": "a", "module": "os"}, ValueError, "expected a new module, got 'os'"),
    ],
)
def test_refused_as_by_optree(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        treeops.pytree.reexport(**options)
    with pytest.raises(error):
        optree.pytree.reexport(**options)
