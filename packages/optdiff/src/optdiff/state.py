# SPDX-License-Identifier: Apache-2.0
"""Taking, giving back, cloning and cutting the state of modules and Meta optimizers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, overload

import torch
from torch import nn

from optcore import FuncOptimizer, map_tensors
from optdiff._containers import every_module, settle, tensors_of
from optdiff._copying import CopyMode, buffer_replicator, mapped, once, replicator
from optdiff._cutting import cut, stop_module, stop_tree
from optdiff.meta import MetaOptimizer

T = TypeVar("T")


class ModuleState(NamedTuple):
    """Tensors of a module, one dict per submodule in the order of ``module.modules()``."""

    params: tuple[dict[str, torch.Tensor], ...]
    buffers: tuple[dict[str, torch.Tensor], ...]
    visual_contents: dict[Any, Any] | None = None  # names for drawing: grad_fn or leaf -> name
    detach_buffers: bool = False


@overload
def extract_state_dict(
    target: nn.Module,
    *,
    by: CopyMode = "reference",
    device: torch.device | str | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
    enable_visual: bool = False,
    visual_prefix: str = "",
) -> ModuleState: ...
@overload
def extract_state_dict(
    target: MetaOptimizer,
    *,
    by: CopyMode = "reference",
    device: torch.device | str | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
    enable_visual: bool = False,
    visual_prefix: str = "",
) -> tuple[Any, ...]: ...
def extract_state_dict(
    target: nn.Module | MetaOptimizer,
    *,
    by: CopyMode = "reference",
    device: torch.device | str | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
    enable_visual: bool = False,
    visual_prefix: str = "",
) -> ModuleState | tuple[Any, ...]:
    """Take the state of a module or of a Meta optimizer, to give it back later.

    Args:
        target: The module or Meta optimizer.
        by: ``"reference"``: the tensors themselves, with their graph; ``"copy"``: clones that
            gradients flow through; ``"deepcopy"``: detached clones. ``"ref"``, ``"clone"`` and
            ``"deepclone"`` mean the same.
        device: Move the tensors there.
        with_buffers: Take buffers of a module too.
        detach_buffers: Take buffers as detached clones whatever ``by`` says, and hand out such
            clones when the state is given back.
        enable_visual: Note the names of the parameters for drawing the graph.
        visual_prefix: Put before those names.

    Returns:
        A :class:`ModuleState`, or the tuple of states of a Meta optimizer. Tied tensors stay tied.

    Raises:
        TypeError: ``target`` is neither.
        ValueError: ``by`` is unknown.

    Differs:
        TorchOpt's ``"reference"`` shares buffers, which modules such as batch normalisation
        overwrite; here they are cloned in every mode, so that giving back restores them.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1)
        >>> state = extract_state_dict(net)
        >>> state.params[0]["weight"] is net.weight
        True
    """
    replicate = replicator("extract_state_dict", by, device)
    if isinstance(target, MetaOptimizer):
        return tuple(map_tensors(replicate, state) for state in target.state_dict())
    if not isinstance(target, nn.Module):
        raise TypeError(_wrong_target("extract_state_dict", target))
    take = once(replicate)
    take_buffer = once(buffer_replicator(by, device, detach_buffers))
    params, buffers = [], []
    for owner in target.modules():
        params.append(mapped(take, owner._parameters))
        buffers.append(mapped(take_buffer, owner._buffers) if with_buffers else {})
    names = _visual_names(target, visual_prefix) if enable_visual else None
    return ModuleState(tuple(params), tuple(buffers), names, detach_buffers)


def recover_state_dict(
    target: nn.Module | MetaOptimizer, state: ModuleState | Sequence[Any]
) -> None:
    """Give back what :func:`extract_state_dict` took; no tensor is overwritten.

    The same state can be given back many times: buffers are handed out as clones.

    Args:
        target: The module or Meta optimizer it was taken from, or one built alike.
        state: The state.

    Raises:
        TypeError: ``target`` or ``state`` is of the wrong kind.
        ValueError: The module has other submodules, parameters (by name and shape) or buffers (by
            name), or the state is one of another optimizer or of other parameters; the target is
            as before then.

    Example:
        >>> import torch, optdiff
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> state = extract_state_dict(net)
        >>> optdiff.MetaSGD(net, lr=0.1).step(net.weight.sum())
        >>> recover_state_dict(net, state)
        >>> net.weight is state.params[0]["weight"]
        True
    """
    who = "recover_state_dict"
    if isinstance(target, MetaOptimizer):
        target.load_state_dict(state)
        return
    if not isinstance(target, nn.Module):
        raise TypeError(_wrong_target(who, target))
    if not isinstance(state, ModuleState):
        raise TypeError(
            f"{who}: expected a ModuleState, got {type(state).__name__}; call extract_state_dict"
        )
    owners = list(target.named_modules())
    if not len(owners) == len(state.params) == len(state.buffers):
        raise ValueError(
            f"{who}: expected the state of {len(owners)} submodules, got parameters of "
            f"{len(state.params)} and buffers of {len(state.buffers)}"
        )
    with_buffers = any(state.buffers)
    for (path, owner), params, buffers in zip(owners, state.params, state.buffers, strict=True):
        _check_fit(who, path, "parameters", _shapes(params), _shapes(owner._parameters))
        if with_buffers:
            _check_fit(who, path, "buffers", {*buffers}, {*_shapes(owner._buffers)})
    hand_out = once(buffer_replicator("reference", None, state.detach_buffers))
    for (_, owner), params, buffers in zip(owners, state.params, state.buffers, strict=True):
        owner._parameters.update(params)  # type: ignore[arg-type]
        owner._buffers.update(mapped(hand_out, buffers))
    settle(target)


def stop_gradient(*targets: ModuleState | nn.Module | MetaOptimizer | Any) -> None:
    """Cut targets off the graph they came from, in place; values and ``requires_grad`` stay.

    Several targets at once make the usual ``stop_gradient(model, optimizer)``: a Meta optimizer's
    moments hold a graph of their own.

    Args:
        targets: Modules (their tensors are replaced), Meta optimizers, an ``optcore.FuncOptimizer``
            (its state is replaced), module states, or trees of tensors (detached in place).

    Raises:
        TypeError: A target, or a leaf of a tree, is something else; of numbers and None there is
            nothing to stop. Nothing of that target has changed then.
        ValueError: A tree holds a view, which torch cannot detach in place; nothing of that target
            has changed then.

    Example:
        >>> import torch, optdiff
        >>> net = torch.nn.Linear(1, 1)
        >>> opt = optdiff.MetaAdam(net, lr=0.1)
        >>> opt.step(net(torch.ones(1, 1)).sum())
        >>> stop_gradient(net, opt)
        >>> net.weight.is_leaf, net.weight.requires_grad
        (True, True)
    """
    for target in targets:
        if isinstance(target, MetaOptimizer):
            target._map_states(cut)
        elif isinstance(target, FuncOptimizer):
            target.state = map_tensors(cut, target.state)
        elif isinstance(target, nn.Module):
            stop_module(target)
        elif isinstance(target, ModuleState):
            cut_once = once(cut)
            for container in (*target.params, *target.buffers):
                container.update(mapped(cut_once, container))
        else:
            stop_tree(target)


def module_detach_(target: T) -> T:
    """:func:`stop_gradient` that returns its target.

    Example:
        >>> import torch
        >>> (w,) = module_detach_([torch.ones(1, requires_grad=True) * 2])
        >>> w.is_leaf
        True
    """
    stop_gradient(target)
    return target


def module_clone(
    target: T,
    *,
    by: CopyMode = "reference",
    detach_buffers: bool = False,
    device: torch.device | str | None = None,
) -> T:
    """A module, Meta optimizer or tree of its own, whose tensors are taken ``by`` a mode.

    Args:
        target: What to clone. A cloned Meta optimizer goes on optimizing the same module.
        by: As in :func:`extract_state_dict`: the tensors themselves, clones that gradients flow
            through, or detached clones.
        detach_buffers: Detach buffers whatever ``by`` says.
        device: Move the tensors there.

    Raises:
        ValueError: ``by`` is unknown.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(1, 1)
        >>> twin = module_clone(net, by="copy")
        >>> torch.autograd.grad(twin.weight.sum(), net.weight)[0]
        tensor([[1.]])
    """
    replicate = replicator("module_clone", by, device)
    if isinstance(target, MetaOptimizer):
        cloned = copy.copy(target)
        cloned._map_states(replicate)
        return cloned
    if not isinstance(target, nn.Module):
        return map_tensors(replicate, target)
    buffered = buffer_replicator(by, device, detach_buffers)
    memo: dict[int, Any] = {}
    for owner in every_module(target):
        for kind in tensors_of(owner):
            fn = buffered if kind == "_buffers" else replicate
            for tensor in owner.__dict__[kind].values():
                if tensor is not None and id(tensor) not in memo:
                    memo[id(tensor)] = fn(tensor)
    twin = copy.deepcopy(target, memo)
    settle(twin)
    return twin


def _shapes(container: Any) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in container.items() if tensor is not None}


def _check_fit(who: str, path: str, what: str, kept: Any, now: Any) -> None:
    if kept != now:
        raise ValueError(
            f"{who}: expected a module with {what} {kept or 'none'}, got {now or 'none'}, at "
            f"{path or 'the root'}"
        )


def _visual_names(module: nn.Module, prefix: str) -> dict[Any, Any]:
    names: dict[Any, Any] = {}
    for name, param in module.named_parameters():
        if param.grad_fn is None:
            names[param] = prefix + name
        else:
            names[param.grad_fn] = (prefix + name, param)
    return names


def _wrong_target(who: str, target: object) -> str:
    return f"{who}: expected a module or a Meta optimizer, got {type(target).__name__}"
