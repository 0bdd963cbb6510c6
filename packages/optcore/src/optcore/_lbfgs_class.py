# SPDX-License-Identifier: Apache-2.0
"""L-BFGS as a ``torch.optim.Optimizer``: many iterations of a closure in one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from optcore._choice import check_closure, check_int
from optcore._leafwise import check_gradient
from optcore._line import as_number, check_number
from optcore._tree import describe
from optcore._two_loop import Pair, two_loop
from optcore._wolfe import Outcome, Trial, armijo, strong_wolfe

_SEARCHES = ("strong_wolfe", "backtracking", None)
_MOST_TRIALS = 25  # of one search; torch's limit too
_LEAST_CURVATURE = 1e-10  # of a pair that is remembered; torch's limit too


class LBFGS(torch.optim.Optimizer):
    r"""L-BFGS with torch.optim.LBFGS's arguments and state.

    Args:
        params: Parameters or named parameters, real, on one device; one group, because the
            curvature is that of all parameters together.
        lr: Length of the step, >= 0; where a line search runs, of the first one it tries. In the
            very first iteration it is multiplied by :math:`\min(1, 1/\|g\|_1)`.
        max_iter: Iterations in one ``step``, >= 1.
        max_eval: Evaluations of the closure in one ``step`` after which no iteration begins; None
            means ``max_iter * 5 // 4``.
        tolerance_grad: Stop when no element of the gradient exceeds this.
        tolerance_change: Stop when neither the loss nor a parameter changes by more than this, or
            the slope is not below its negative.
        history_size: Pairs to keep, >= 1.
        line_search_fn: ``"strong_wolfe"``, ``"backtracking"`` or None.

    State:
        Under the first parameter, as torch has it: ``func_evals``, ``n_iter``, ``d``, ``t``,
        ``old_dirs``, ``old_stps``, ``ro``, ``H_diag``, ``prev_flat_grad``, ``prev_loss``; and
        ``line_search``: ``num_linesearch_steps``, ``decrease_error`` and ``curvature_error`` of the
        last search. Checkpoints of torch.optim.LBFGS load here, and the other way round.

    Raises:
        TypeError: A parameter that is no real floating tensor, or an argument of the wrong type.
        ValueError: An argument out of range, or more than one parameter group.

    Differs:
        torch has no ``"backtracking"``. Its search extrapolates with cubics, this one is
        :func:`scale_by_zoom_linesearch`'s: the same minimum by other steps. A search that finds no
        decrease, or only values that are not finite, takes no step and ends ``step``. If the
        closure raises within a search, the parameters are as before it.

    Example:
        >>> import torch
        >>> import optcore
        >>> w = torch.nn.Parameter(torch.tensor([-1.0, 1.5], dtype=torch.float64))
        >>> optimizer = optcore.LBFGS([w], line_search_fn="strong_wolfe")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(3):
        ...     loss = optimizer.step(closure)
        >>> bool(closure() < 1e-10)
        True

    Reference:
        Nocedal and Wright, Numerical Optimization, 2nd edition, Algorithms 7.5, 3.5 and 3.6.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        check_int("LBFGS", "max_iter", max_iter, 1)
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        _check_settings(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take in the one group that there may be.

        Raises:
            TypeError: A parameter that is no real floating tensor.
            ValueError: There is a group already, or a setting is out of range.
        """
        if self.param_groups:
            raise ValueError(
                "LBFGS: expected one parameter group, got another: its curvature is that of all "
                "parameters together; give them in one list, or use one LBFGS per group"
            )
        if isinstance(param_group, dict):  # torch says what else is wrong
            _check_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for param in self.param_groups[0]["params"]:
            if not param.is_floating_point():
                self.param_groups.clear()
                raise TypeError(f"LBFGS: expected real floating parameters, got {describe(param)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Iterate until a tolerance or a limit is reached.

        Args:
            closure: Zeroes the gradients, computes the loss, calls ``backward`` and returns the
                loss. A parameter without a gradient counts as one with a gradient of zero.

        Returns:
            What ``closure`` returned first.

        Raises:
            TypeError: No closure, one that returns no real number, or a gradient that is sparse.
            ValueError: A setting was put out of its range, or parameters are on several devices.
        """
        check_closure("LBFGS.step", closure)
        group = self.param_groups[0]
        _check_settings(group)
        params = group["params"]
        devices = {str(param.device) for param in params}
        if len(devices) != 1:
            raise ValueError(
                f"LBFGS.step: expected parameters on one device, got {sorted(devices)}"
            )
        state = self.state[params[0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)

        def evaluate() -> tuple[Any, torch.Tensor]:
            with torch.enable_grad():
                loss = closure()
            state["func_evals"] += 1
            return loss, _flat_gradient(params)

        before = state["func_evals"]
        first_loss, grad = evaluate()
        loss = as_number("LBFGS.step, closure", first_loss)
        for iteration in range(1, group["max_iter"] + 1):
            if _largest(grad) <= group["tolerance_grad"]:
                break
            state["n_iter"] += 1
            direction = _direction(state, grad, group["history_size"])
            step = float(group["lr"])
            if state["n_iter"] == 1:
                step *= min(1.0, 1.0 / grad.abs().sum().item())
            start = Trial(0.0, loss, torch.dot(grad, direction).item(), grad)
            state.update(d=direction, t=0.0, prev_flat_grad=grad, prev_loss=loss)
            if not start.slope <= -group["tolerance_change"]:
                break
            if group["line_search_fn"] is None:
                _move(params, params, direction, step)
                state["t"] = step
                if iteration == group["max_iter"]:  # torch saves this evaluation
                    break
                new_loss, grad = evaluate()
                loss = as_number("LBFGS.step, closure", new_loss)
            else:
                old = [param.clone() for param in params]

                def trial(
                    step: float, old: Any = old, direction: torch.Tensor = direction
                ) -> Trial:
                    _move(params, old, direction, step)
                    loss, grad = evaluate()
                    slope = torch.dot(grad, direction).item()
                    return Trial(step, as_number("LBFGS.step, closure", loss), slope, grad)

                left = group["max_eval"] - (state["func_evals"] - before)
                try:
                    found = _search(group["line_search_fn"], trial, start, step, left)
                finally:  # whatever the closure did
                    _move(params, old, direction, 0.0)
                state["line_search"] = {
                    "num_linesearch_steps": found.evaluations,
                    "decrease_error": found.decrease_error,
                    "curvature_error": found.curvature_error,
                }
                step, loss, _, grad = found.trial
                _move(params, old, direction, step)
                state["t"] = step
            if (
                state["func_evals"] - before >= group["max_eval"]
                or step * _largest(direction) <= group["tolerance_change"]
                or abs(loss - start.value) < group["tolerance_change"]
            ):
                break
        return first_loss


def _check_settings(settings: Mapping[str, Any]) -> None:
    who = "LBFGS"
    lr = settings["lr"]
    check_number(who, "lr", as_number(f"{who}, lr", lr), 0, finite=True)
    for name in ("max_iter", "max_eval", "history_size"):
        check_int(who, name, settings[name], 1)
    for name in ("tolerance_grad", "tolerance_change"):
        check_number(who, name, settings[name], 0)
    if settings["line_search_fn"] not in _SEARCHES:
        raise ValueError(
            f'{who}: expected line_search_fn "strong_wolfe", "backtracking" or None, '
            f"got {settings['line_search_fn']!r}"
        )


def _direction(state: dict[str, Any], grad: torch.Tensor, history_size: int) -> torch.Tensor:
    """Downhill by the curvature that the state remembers, after it took in the last step."""
    if "d" not in state:
        state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1.0)
        return -grad
    step = state["d"] * state["t"]
    change = grad - state["prev_flat_grad"]
    curvature = torch.dot(change, step)
    if curvature > _LEAST_CURVATURE:
        newest = {"old_dirs": change, "old_stps": step, "ro": 1 / curvature}
        for name, value in newest.items():  # new lists: those of a state_dict stay as they are
            state[name] = [*state[name], value][-history_size:]
        state["H_diag"] = curvature / torch.dot(change, change)
    columns = ([[s] for s in state["old_stps"]], [[y] for y in state["old_dirs"]], state["ro"])
    pairs = [Pair(*pair) for pair in zip(*columns, strict=True)]
    (product,) = two_loop([grad], pairs, state["H_diag"], inplace=True)
    return product.neg_()


def _search(
    name: str, evaluate: Callable[[float], Trial], start: Trial, guess: float, left: int
) -> Outcome:
    most = max(1, min(_MOST_TRIALS, left))
    if not math.isfinite(start.value):
        return Outcome(start, 0, math.inf, 0.0)
    if name == "backtracking":
        return armijo(evaluate, start, guess, max_backtracking_steps=most - 1, decrease_factor=0.5)
    return strong_wolfe(evaluate, start, guess, max_linesearch_steps=most)


def _flat_gradient(params: Sequence[torch.Tensor]) -> torch.Tensor:
    for param in params:
        if param.grad is not None:
            check_gradient("LBFGS.step", param.grad)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def _move(
    params: Sequence[torch.Tensor],
    old: Sequence[torch.Tensor],
    direction: torch.Tensor,
    step: float,
) -> None:
    """Put the parameters where they were plus ``step`` times the direction."""
    parts = direction.split([param.numel() for param in params])
    for param, start, part in zip(params, old, parts, strict=True):
        param.copy_(start)
        if step:
            param.add_(part.reshape(param.shape), alpha=step)


def _largest(flat: torch.Tensor) -> float:
    return flat.abs().max().item() if flat.numel() else 0.0
