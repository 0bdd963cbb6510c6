# SPDX-License-Identifier: Apache-2.0
"""Trees of tensors: raveling, the parameters of modules, torch's own treespecs, ``torch.compile``.

After ``import treeops.integrations.torch``, functions compiled with ``fullgraph=True`` may call
``tree_flatten``, ``tree_unflatten``, ``tree_leaves``, ``tree_structure``, ``tree_map`` and
``tree_map_``, and the methods of treespecs that walk or ask; treespecs go in and out of them as
they are. Torch itself (2.13) does not see the ``maxlen`` of a deque that comes from outside, nor
the arguments of ``treeops.functools.partial``. Before torch 2.12 the graph breaks at all of these.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from treeops import PyTreeSpec, tree_flatten
from treeops.integrations._ravel import ArrayLibrary, ravel
from treeops.typing import PyTreeTypeVar

__all__ = [
    "TensorTree",
    "buffer_containers",
    "from_torch_treespec",
    "parameter_containers",
    "to_torch_treespec",
    "tree_ravel",
]

TensorTree: TypeAlias = PyTreeTypeVar("TensorTree", Tensor)


# ---- raveling ----------------------------------------------------------------------------------


def tree_ravel(
    tree: TensorTree,
    /,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[Tensor, Callable[[Tensor], TensorTree]]:
    """All elements of a tree of tensors in one tensor, and the function that makes the tree again.

    Both ways are differentiable.

    Args:
        tree: A tree of tensors on one device.
        is_leaf: As for :func:`treeops.tree_flatten`.
        none_is_leaf: As for :func:`treeops.tree_flatten`.
        namespace: As for :func:`treeops.tree_flatten`.

    Returns:
        ``(flat, unravel)``: the elements, of the type that holds all of them; a tree without leaves
        gives an empty tensor. ``unravel(flat)`` gives every leaf its shape and type; if all leaves
        have one type, ``flat`` may have another, which the leaves then have too.

    Raises:
        ValueError: A leaf is not a tensor.

    Example:
        >>> flat, unravel = tree_ravel({"a": torch.tensor([[1, 2]]), "b": torch.tensor(3)})
        >>> flat, unravel(10 * flat)["a"]
        (tensor([1, 2, 3]), tensor([[10, 20]]))
    """
    return ravel(_TORCH, tree, is_leaf, none_is_leaf, namespace)


ravel_pytree = tree_ravel  # the name JAX uses


def _empty() -> Tensor:
    return torch.zeros(0)


def _shape(tensor: Any) -> tuple[int, ...]:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"tree_ravel: expected tensors, got {type(tensor).__name__}")
    return tuple(tensor.shape)


def _dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype


def _promote(dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    promoted = dtypes[0]
    for dtype in dtypes[1:]:
        promoted = torch.promote_types(promoted, dtype)
    return promoted


def _concatenate(leaves: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([leaf.reshape(-1).to(dtype) for leaf in leaves])


def _split(flat: Tensor, sizes: tuple[int, ...]) -> Sequence[Tensor]:
    return torch.split(flat, list(sizes))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    real = tensor.is_complex() and not dtype.is_complex
    return (tensor.real if real else tensor).to(dtype)


_TORCH = ArrayLibrary(_empty, _shape, _dtype, _promote, _concatenate, _split, _cast)


# ---- modules -----------------------------------------------------------------------------------


def parameter_containers(
    module: torch.nn.Module, *, recurse: bool = True
) -> dict[str, dict[str, Tensor | None]]:
    """The dicts in which a module and its submodules keep their parameters, by module name.

    They are the modules' own dicts, not copies: to write into one changes the module. Modules
    without parameters are left out; a module that occurs under several names comes once.

    Args:
        module: Its own parameters come under ``""``.
        recurse: Whether to look into submodules.

    Raises:
        TypeError: This is no module.

    Example:
        >>> import treeops
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.ReLU())
        >>> parameters = parameter_containers(net)
        >>> {name: list(container) for name, container in parameters.items()}
        {'0': ['weight', 'bias']}
        >>> treeops.tree_map(lambda p: tuple(p.shape), parameters)
        {'0': {'weight': (3, 2), 'bias': None}}
    """
    return _containers("parameter_containers", module, "_parameters", recurse)


def buffer_containers(
    module: torch.nn.Module, *, recurse: bool = True
) -> dict[str, dict[str, Tensor | None]]:
    """The dicts in which a module and its submodules keep their buffers, by module name.

    As :func:`parameter_containers`.
    """
    return _containers("buffer_containers", module, "_buffers", recurse)


def _containers(who: str, module: torch.nn.Module, attribute: str, recurse: bool) -> dict[str, Any]:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{who}: expected a torch.nn.Module, got {type(module).__name__}")
    modules = module.named_modules() if recurse else [("", module)]
    found = ((name, getattr(owner, attribute)) for name, owner in modules)
    return {name: container for name, container in found if container}


# ---- treespecs ---------------------------------------------------------------------------------


class _Place:
    """Stands for a leaf while a treespec is carried over."""

    __slots__ = ()


def from_torch_treespec(
    treespec: torch_pytree.TreeSpec, /, *, none_is_leaf: bool = True, namespace: str = ""
) -> PyTreeSpec:
    """The treespec of the trees that a treespec of ``torch.utils._pytree`` describes.

    Leaves of dicts are numbered differently: in the order of the sorted keys here, as inserted
    there. To carry leaves over, go through a tree.

    Raises:
        ValueError: A class is a node there and a leaf here, or the other way round.
    """
    if not isinstance(treespec, torch_pytree.TreeSpec):
        raise TypeError(
            f"from_torch_treespec: expected a torch TreeSpec, got {type(treespec).__name__}"
        )
    places = [_Place() for _ in range(treespec.num_leaves)]
    tree = torch_pytree.tree_unflatten(places, treespec)
    leaves, converted = tree_flatten(tree, none_is_leaf=none_is_leaf, namespace=namespace)
    _check_places("from_torch_treespec", "treeops", leaves, len(places))
    return converted


def to_torch_treespec(treespec: PyTreeSpec, /) -> torch_pytree.TreeSpec:
    """The treespec of ``torch.utils._pytree`` for the trees that a treespec describes.

    Torch takes None for a leaf: a treespec that has it as a node is refused. For the order of
    leaves see :func:`from_torch_treespec`.

    Raises:
        ValueError: A class is a node here and a leaf there, or the other way round.
    """
    if not isinstance(treespec, PyTreeSpec):
        raise TypeError(f"to_torch_treespec: expected a PyTreeSpec, got {type(treespec).__name__}")
    tree = treespec.unflatten([_Place() for _ in range(treespec.num_leaves)])
    leaves, converted = torch_pytree.tree_flatten(tree)
    _check_places("to_torch_treespec", "torch.utils._pytree", leaves, treespec.num_leaves)
    return converted


def _check_places(who: str, library: str, leaves: list[Any], expected: int) -> None:
    for leaf in leaves:
        if leaf is None:
            raise ValueError(
                f"{who}: expected no None nodes, got one, a leaf to {library}; "
                "make the treespec with none_is_leaf=True"
            )
        if type(leaf) is not _Place:
            raise ValueError(
                f"{who}: expected classes that both libraries know, got "
                f"{type(leaf).__qualname__}, a leaf to {library}; register it there"
            )
    if len(leaves) != expected:
        raise ValueError(f"{who}: expected {expected} leaves, got {len(leaves)} in {library}")


# ---- torch.compile -----------------------------------------------------------------------------


class _AfterImport(MetaPathFinder):
    """Does something once, right after a module is imported for the first time."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name = name
        self.action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_act(module: ModuleType) -> None:
                execute(module)
                self.action()

            spec.loader.exec_module = execute_then_act  # type: ignore[method-assign]
        return spec


def _install_substitutes() -> None:
    if torch.__version__ < "2.12":  # compared as a version
        return  # there the compiler fails within these; left alone, it breaks the graph at treeops
    from treeops.integrations import _torch_compile

    _torch_compile.install()


if "torch._dynamo" in sys.modules:
    _install_substitutes()
else:  # it takes seconds to import, and torch.compile does so
    sys.meta_path.insert(0, _AfterImport("torch._dynamo", _install_substitutes))
