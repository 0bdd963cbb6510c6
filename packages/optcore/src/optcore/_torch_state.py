# SPDX-License-Identifier: Apache-2.0
"""Moving an optimizer between torch.optim and optcore without changing its trajectory."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from itertools import chain
from numbers import Real
from typing import Any

import torch

from optcore._optimizers import OPTIMIZERS
from optcore._rows import OptimizerRow
from optcore._tree import ParamDict, describe, is_param_dict, map_tensors

# Options of torch.optim that choose how a step is computed, not what it computes.
_HOW = frozenset({"foreach", "fused", "capturable"})
# Options that optcore spells as a class: torch's key -> the rows whose steps are those of True.
_AS_CLASS = {"amsgrad": ("amsgrad",), "decoupled_weight_decay": ("adamw",)}
# torch.optim keeps a step count for every optimizer but these.
_UNCOUNTED = ("sgd", "muon")


def row_of(who: str, optimizer: torch.optim.Optimizer) -> OptimizerRow:
    """The row whose class takes the steps of an optimizer of torch.optim.

    Raises:
        TypeError: torch.optim has no such class, or optcore has not.
        ValueError: A flag that is a class here differs among the groups.
    """
    kind = type(optimizer)
    rows = {row.class_name: row for row in OPTIMIZERS.values()}
    if kind is torch.optim.LBFGS:
        raise TypeError(
            f"{who}: expected an optimizer with a functional form of the same steps, got "
            "torch.optim.LBFGS; make optcore.LBFGS with its arguments and parameters and call "
            ".load_state_dict(optimizer.state_dict()) on it"
        )
    if getattr(torch.optim, kind.__name__, None) is not kind or kind.__name__ not in rows:
        raise TypeError(
            f"{who}: expected an optimizer of torch.optim that optcore has too, got "
            f"{kind.__module__}.{kind.__name__}"
        )
    if kind.__name__ not in ("Adam", "AdamW"):
        return rows[kind.__name__]
    if _flag(who, optimizer, "amsgrad"):
        return rows["AMSGrad"]
    if kind.__name__ == "AdamW" or _flag(who, optimizer, "decoupled_weight_decay"):
        return rows["AdamW"]
    return rows["Adam"]


def _flag(who: str, optimizer: torch.optim.Optimizer, key: str) -> bool:
    flags = [bool(group.get(key, False)) for group in optimizer.param_groups]
    if len(set(flags)) > 1:
        raise ValueError(
            f"{who}: expected the same {key} in every group, got {flags}; "
            "make an optimizer of each kind"
        )
    return flags[0]


def taken_over(cls: Any, optimizer: torch.optim.Optimizer) -> Any:
    """An optimizer of class ``cls`` that goes on where one of torch.optim stands."""
    who, row = f"{cls.__name__}.from_torch", cls.row
    found = row_of(who, optimizer)
    if found is not row:
        raise TypeError(
            f"{who}: expected an optimizer whose steps are those of optcore.{row.class_name}, got "
            f"torch.optim.{type(optimizer).__name__} with those of optcore.{found.class_name}; "
            f"call optcore.{found.class_name}.from_torch or optcore.from_torch"
        )
    for index, group in enumerate(optimizer.param_groups):
        check_options(who, row, group, index)
        _check_known(who, row, group, index, optimizer.defaults)
    decoupled = {"decoupled_weight_decay": True}  # torch 2.6 does not write what AdamW means
    implied = decoupled if row.name == "amsgrad" and type(optimizer) is torch.optim.AdamW else {}
    dropped = (_HOW | set(_AS_CLASS) | {"differentiable"}) - set(row.defaults)
    groups = [
        {**_copied(group, set(group) - dropped), **implied, "params": list(group["params"])}
        for group in optimizer.param_groups
    ]
    defaults = _copied(optimizer.defaults, set(row.defaults))
    new = cls(groups, **{**defaults, **implied})
    counts: dict[int, torch.Tensor] = {}
    for index, group in enumerate(new.param_groups):
        for i, param in enumerate(group["params"]):
            given = optimizer.state.get(param, {})
            given = {name: value for name, value in given.items() if value is not None}
            if given:
                where = f"parameter {i} of group {index}"
                own = _from_torch(who, new, group, i, param, given, counts, where)
                if own:
                    new.state[param] = own
    return new


def check_options(who: str, row: OptimizerRow | None, group: Mapping[str, Any], index: int) -> None:
    """Refuse options of torch.optim that the class of ``row`` would silently not have.

    Raises:
        TypeError: A differentiable optimizer.
        ValueError: A flag that makes another optimizer of it.
    """
    if group.get("differentiable"):
        raise TypeError(
            f"{who}: expected differentiable=False, got True, at group {index}; a class steps "
            "outside the graph: use the functional form with inplace=False"
        )
    for key, rows in _AS_CLASS.items():
        if row is None or key in row.defaults or key not in group:
            continue
        if bool(group[key]) != (row.name in rows):
            raise ValueError(
                f"{who}: expected {key}={row.name in rows}, got {group[key]}, at group {index}; "
                f"that is {_other(row, key)}"
            )


def _other(row: OptimizerRow, key: str) -> str:
    if key == "amsgrad":
        return "optcore.Adam" if row.name == "amsgrad" else "optcore.AMSGrad"
    return "optcore.Adam" if row.name == "adamw" else "optcore.AdamW"


def _check_known(
    who: str,
    row: OptimizerRow,
    group: Mapping[str, Any],
    index: int,
    torch_defaults: Mapping[str, Any],
) -> None:
    known = {*row.defaults, *_HOW, *_AS_CLASS, "differentiable"}
    for key in torch_defaults:
        if key not in known:
            raise ValueError(
                f"{who}: expected options that optcore.{row.class_name} has, got "
                f"{key}={group.get(key)!r}, at group {index}"
            )
    for i, param in enumerate(group["params"]):
        if not param.dtype.is_floating_point:
            raise TypeError(
                f"{who}: expected real floating parameters, got {describe(param)}, at parameter "
                f"{i} of group {index}"
            )


def _copied(entries: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Some entries of a group; tensors are cloned, for a scheduler writes into them."""
    return {
        name: map_tensors(_cloned, value) if name != "params" else value
        for name, value in dict(entries).items()
        if name in names
    }


def _cloned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _slots(optimizer: Any, group: Mapping[str, Any], i: int, param: torch.Tensor) -> dict[str, Any]:
    """What the state of one parameter consists of before its first step, under torch's names."""
    found: dict[str, Any] = {}

    def note(name: str, slot: Any) -> None:
        if is_param_dict(slot):
            found[name] = slot[i]

    optimizer._map_slots(note, optimizer._group_transformation(group).init(ParamDict([(i, param)])))
    return found


def _from_torch(
    who: str,
    optimizer: Any,
    group: Mapping[str, Any],
    i: int,
    param: torch.Tensor,
    given: Mapping[str, Any],
    counts: dict[int, torch.Tensor],
    where: str,
) -> dict[str, Any]:
    row, own = optimizer.row, {}
    for name, fresh in _slots(optimizer, group, i, param).items():
        if fresh is None:
            own[name] = None
        elif name in given or name in row.implied:
            value = given[name] if name in given else row.implied[name]
            own[name] = _as_count(value, counts) if _is_count(fresh) else _as_kept(value, fresh)
        else:
            raise ValueError(f"{who}: expected {name!r} in the state of {where}, got {[*given]}")
    # a buffer that an option set later goes on with, e.g. the momentum
    later = set(row.torch_keys.values()) - set(own) - {row.torch_keys.get("count")}
    return {**own, **{name: given[name] for name in given if name in later}}


def _is_count(fresh: Any) -> bool:
    return isinstance(fresh, torch.Tensor) and fresh.dtype is torch.int64 and not fresh.ndim


def _as_count(value: Any, counts: dict[int, torch.Tensor]) -> torch.Tensor:
    """One tensor for all parameters that took as many steps: they go on sharing it."""
    steps = int(value)
    return counts.setdefault(steps, torch.tensor(steps))


def _as_kept(value: Any, fresh: torch.Tensor) -> torch.Tensor:
    if isinstance(value, torch.Tensor) and value.ndim:
        return value
    return torch.as_tensor(value, dtype=fresh.dtype, device=fresh.device)


def restore_scalars(optimizer: Any, loaded: Mapping[str, Any]) -> None:
    """Undo what ``torch.optim.Optimizer.load_state_dict`` does to counts and other scalars.

    It casts them to the dtype of the parameter (in bfloat16 a count stops at 256) and gives every
    parameter a count of its own.
    """
    row = optimizer.row
    step = row.torch_keys.get("count") if row else None
    counts: dict[str, dict[int, torch.Tensor]] = {}
    names = _names_of(loaded)
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for key, param in zip(names, params, strict=True):
        given = loaded["state"].get(key)
        if not given:
            continue
        kept = optimizer.state[param]
        for name, value in given.items():
            if name == step or _is_count(value):
                kept[name] = _as_count(value, counts.setdefault(name, {}))
            elif isinstance(value, torch.Tensor) and param.ndim and not value.ndim:
                kept[name] = value.detach().clone()
            elif isinstance(value, list):  # may be wider than a half precision parameter
                kept[name] = [_moved(v, param) for v in value]
            elif isinstance(value, torch.Tensor) and not value.is_floating_point():
                kept[name] = value.to(param.device, copy=True)
        for name in row.optional if row else ():
            kept.setdefault(name, None)
    for group in optimizer.param_groups:
        for name in set(_AS_CLASS) - set(row.defaults if row else _AS_CLASS):
            group.pop(name, None)  # the class says it


def _moved(value: Any, param: torch.Tensor) -> Any:
    """A copy beside its parameter, in its dtype if that is no narrower than float32."""
    if not isinstance(value, torch.Tensor):
        return value
    wide = param.dtype in (torch.float32, torch.float64) and value.is_floating_point()
    return value.to(param.device, param.dtype if wide else value.dtype, copy=True)


def written(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """Make a state of an optimizer one that its class in torch.optim can go on from.

    A scalar is a tensor of its own for every parameter: torch overwrites it once for each of them.
    """
    row = optimizer.row
    flagged = row is not None and row.name == "amsgrad"
    counted = flagged or (row is not None and hasattr(torch.optim, row.class_name))
    live = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    params = dict(zip(_names_of(state_dict), live, strict=True))
    for group in state_dict["param_groups"]:
        if flagged:
            group["amsgrad"] = True  # torch takes it from here
        for name in group["params"]:
            own = state_dict["state"].get(name)
            if not own:
                continue
            kept = {key: _alone(value) for key, value in own.items()}
            if counted and not (row.name == "asgd" and not _is_scalar(group["t0"])):
                kept.update(_to_torch(row, group, params[name], own))
            state_dict["state"][name] = kept


def _names_of(state_dict: Mapping[str, Any]) -> Iterable[Any]:
    return chain.from_iterable(group["params"] for group in state_dict["param_groups"])


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _alone(value: Any) -> Any:
    """A scalar of its own, which may be overwritten; buffers as they are."""
    return value.clone() if isinstance(value, torch.Tensor) and not value.ndim else value


def handed_over(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer of torch.optim that goes on where one of optcore stands."""
    who, row = f"{type(optimizer).__name__}.to_torch", optimizer.row
    kind = _torch_class(who, optimizer)
    options = set(inspect.signature(kind.__init__).parameters) - set(_AS_CLASS)
    if row.name in ("nadam", "radam"):
        options.add("decoupled_weight_decay")
    flags = {"amsgrad": True} if row.name == "amsgrad" else {}
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        other = {k: v for k, v in group.items() if k not in {*row.defaults, *_HOW, "shared_state"}}
        own = _options(who, row, kind, group, options, f", at group {index}")
        groups.append({**other, **own, **flags, "params": list(group["params"])})
    new = kind(groups, **_options(who, row, kind, optimizer.defaults, options, ""), **flags)
    for group in optimizer.param_groups:
        for i, param in enumerate(group["params"]):
            own = optimizer.state.get(param)
            if not own and row.name != "adagrad":  # whose state torch makes with the optimizer
                continue
            state = _to_torch(row, group, param, own or _slots(optimizer, group, i, param))
            if state:
                new.state[param] = state
    return new


def _torch_class(who: str, optimizer: Any) -> Any:
    name = optimizer.row.class_name
    if optimizer.row.name == "amsgrad":
        flags = [bool(group["decoupled_weight_decay"]) for group in optimizer.param_groups]
        if len(set(flags)) > 1:
            raise ValueError(
                f"{who}: expected the same decoupled_weight_decay in every group, got {flags}; "
                "make an optimizer of each kind"
            )
        name = "AdamW" if flags[0] else "Adam"
    kind = getattr(torch.optim, name, None)
    if kind is None:
        raise TypeError(f"{who}: expected an optimizer that torch.optim has, got {name}")
    return kind


def _options(
    who: str,
    row: OptimizerRow,
    kind: type,
    entries: Mapping[str, Any],
    options: set[str],
    where: str,
) -> dict[str, Any]:
    own = {}
    for name, default in row.defaults.items():
        value = entries.get(name)
        if name in options:
            own[name] = _plain(who, name, value, where)
        elif name == "use_accelerated_op" or (row.name == "amsgrad" and name in _AS_CLASS):
            continue  # it changes no number, or it chose the class
        elif value is not default and (callable(value) or value != default):
            raise ValueError(
                f"{who}: expected {name}={default!r}, which is all torch.optim.{kind.__name__} "
                f"does, got {describe(value) if callable(value) else repr(value)}{where}"
            )
    return own


def _plain(who: str, name: str, value: Any, where: str) -> Any:
    """A hyperparameter as torch.optim takes it: its learning rate may be a tensor."""
    if isinstance(value, (tuple, list)):
        return tuple(_plain(who, name, part, where) for part in value)
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.detach().clone().reshape(())
        return value if name == "lr" else value.item()
    if value is None or isinstance(value, (Real, str)):
        return value
    raise ValueError(
        f"{who}: expected {name} as a number, got "
        f"{'a schedule' if callable(value) else describe(value)}{where}; set the number it has now"
    )


def _to_torch(
    row: OptimizerRow, group: Mapping[str, Any], param: torch.Tensor, own: Mapping[str, Any]
) -> dict[str, Any]:
    # a tensor where torch keeps one, in the dtype of its default
    scalar = torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32
    step = row.torch_keys.get("count", "step")
    state = {
        name: _alone(value)  # ours may share a scalar, torch overwrites it
        for name, value in own.items()
        if value is not None and name != step
    }
    if row.name in _UNCOUNTED:
        return state
    device = param.device if row.name == "asgd" else torch.device("cpu")
    steps = float(own.get(step, 0))  # a rule without a count does not read torch's
    state["step"] = torch.tensor(steps, dtype=scalar, device=device)
    if row.name == "asgd":
        state["eta"] = state["eta"].to(device)
        weight = 1 / max(1.0, steps - float(group["t0"]))
        state["mu"] = torch.tensor(weight, dtype=scalar, device=device)
    return state
