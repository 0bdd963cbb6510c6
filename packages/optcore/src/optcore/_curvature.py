# SPDX-License-Identifier: Apache-2.0
"""Products with the Hessian, and exact diagonals of Hessian, Gauss-Newton and Fisher matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optcore._choice import check_int
from optcore._leafwise import check_gradient
from optcore._tree import (
    Tree,
    describe,
    flatten_like,
    path_to,
    tree_flatten,
    tree_leaves,
    tree_unflatten,
)


def hvp(loss: Callable[..., torch.Tensor], params: Tree, vector: Tree, *args: Any) -> Tree:
    r"""The Hessian's product with a vector: :math:`\nabla^2 L(\theta)\,v`.

    Args:
        loss: ``loss(params, *args)``, a scalar ``()``.
        params: Tree of tensors; None stays None.
        vector: Tree like ``params``.
        args: Handed to ``loss``.

    Returns:
        A tree like ``params``; it costs about two gradients.

    Differentiable:
        As often as ``loss``.

    Raises:
        TypeError: A parameter that is no dense, real, floating tensor; ``loss`` is not callable.
        ValueError: ``vector`` differs from ``params``, or ``loss`` gives no scalar.

    Differs:
        ``optax.second_order.hvp`` takes the vector first and gives it back as one vector.

    Example:
        >>> hvp(lambda p: p[0].pow(3).sum(), [torch.ones(2)], [torch.tensor([1.0, 2.0])])
        [tensor([ 6., 12.])]

    Reference:
        Pearlmutter, 1994, "Fast exact multiplication by the Hessian".
    """
    check_function("hvp", "loss", loss)
    flat = _Flat("hvp", params)
    along = flat.joined("hvp", vector)
    return flat.tree(_product(flat.function("hvp", loss, args), flat.vector, along))


def hessian_diag(
    loss: Callable[..., torch.Tensor], params: Tree, *args: Any, chunk_size: int | None = None
) -> Tree:
    r"""The diagonal of the Hessian: :math:`\partial^2 L / \partial \theta_i^2`.

    Args:
        loss: ``loss(params, *args)``, a scalar ``()``, that ``torch.func.vmap`` takes.
        params: Tree of :math:`n` elements; None stays None.
        args: Handed to ``loss``.
        chunk_size: How many of the :math:`n` products with the Hessian to compute at a time; None
            means all, in :math:`n^2` numbers.

    Returns:
        A tree like ``params``.

    Differentiable:
        As often as ``loss``.

    Raises:
        TypeError: A parameter that is no dense, real, floating tensor; ``loss`` is not callable or
            ``chunk_size`` no int.
        ValueError: ``loss`` gives no scalar, or ``chunk_size`` is below 1.

    Example:
        >>> hessian_diag(lambda p: p[0].pow(3).sum(), [torch.tensor([1.0, 2.0])])
        [tensor([ 6., 12.])]

    Reference:
        Pearlmutter, 1994, "Fast exact multiplication by the Hessian": its products with the unit
        vectors.
    """
    check_function("hessian_diag", "loss", loss)
    if chunk_size is not None:
        check_int("hessian_diag", "chunk_size", chunk_size, 1)
    flat = _Flat("hessian_diag", params)
    function = flat.function("hessian_diag", loss, args)

    def element(unit: torch.Tensor) -> torch.Tensor:
        return _product(function, flat.vector, unit) @ unit

    units = torch.eye(flat.vector.numel()).to(flat.vector)
    return flat.tree(torch.func.vmap(element, chunk_size=chunk_size)(units))


def ggn_diag(
    predict: Callable[..., torch.Tensor],
    loss: Callable[[torch.Tensor], torch.Tensor],
    params: Tree,
    *args: Any,
) -> Tree:
    r"""The diagonal of the generalised Gauss-Newton matrix: :math:`J^\top H J`.

    :math:`J` is the Jacobian of the predictions, :math:`H` the Hessian of the loss in them. Where
    the loss is convex in the predictions this is never negative; where the predictions are linear
    in the parameters it is the Hessian's diagonal.

    Args:
        predict: ``predict(params, *args)``, a tensor of :math:`m` elements.
        loss: Of these predictions, a scalar ``()``.
        params: Tree of tensors; None stays None.
        args: Handed to ``predict``.

    Returns:
        A tree like ``params``; it costs :math:`m` backward passes.

    Differentiable:
        As often as both functions.

    Raises:
        TypeError: A parameter that is no dense, real, floating tensor; a function is not callable,
            or the predictions are no floating tensor.
        ValueError: ``loss`` gives no scalar.

    Example:
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> ggn_diag(lambda p: x @ p["w"], lambda z: z.square().sum(), params)
        {'w': tensor([20., 40.])}

    Reference:
        Schraudolph, 2002, "Fast curvature matrix-vector products for second-order gradient
        descent", equation 8.
    """
    who = "ggn_diag"
    check_function(who, "predict", predict)
    check_function(who, "loss", loss)
    flat = _Flat(who, params)

    def predictions(vector: torch.Tensor) -> torch.Tensor:
        outputs = predict(flat.tree(vector), *args)
        if not isinstance(outputs, torch.Tensor) or not outputs.dtype.is_floating_point:
            raise TypeError(
                f"{who}: expected predictions as a floating tensor, got {describe(outputs)}"
            )
        return outputs

    def scalar(outputs: torch.Tensor) -> torch.Tensor:
        return checked_scalar(who, loss(outputs))

    outputs = predictions(flat.vector)
    count = outputs.numel()
    jacobian = torch.func.jacrev(predictions)(flat.vector).reshape(count, -1)
    inner = torch.func.hessian(scalar)(outputs).reshape(count, count)
    wide = torch.promote_types(inner.dtype, jacobian.dtype)  # predictions may be wider than params
    inner, jacobian = inner.to(wide), jacobian.to(wide)
    return flat.tree(((inner @ jacobian) * jacobian).sum(0))


def fisher_diag(
    negative_log_likelihood: Callable[..., torch.Tensor], params: Tree, *args: Any
) -> Tree:
    r"""The diagonal of the empirical Fisher matrix: the mean of squared gradients of examples.

    .. math::
        F_{jj} = \frac1n \sum_i \left(\frac{\partial}{\partial \theta_j}
            \ell(\theta, x_i, y_i)\right)^2

    Args:
        negative_log_likelihood: ``(params, *example)``, a scalar ``()``, that ``torch.func.vmap``
            takes.
        params: Tree of tensors; None stays None.
        args: Trees of tensors ``(batch, ...)``: inputs, targets.

    Returns:
        A tree like ``params``.

    Differentiable:
        As often as the likelihood, less one.

    Raises:
        TypeError: A parameter that is no dense, real, floating tensor; the likelihood is not
            callable.
        ValueError: The likelihood gives no scalar; ``args`` are no tensors of one batch, or none.

    Differs:
        ``optax.second_order.fisher_diag`` squares the gradient of the whole batch.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> fisher_diag(lambda p, x: (p[0] * x).sum(), [torch.ones(1)], x)
        [tensor([5.])]

    Reference:
        Kunstner et al., 2019, arXiv:1905.12558, equation 3.
    """
    who = "fisher_diag"
    check_function(who, "negative_log_likelihood", negative_log_likelihood)
    flat = _Flat(who, params)
    _check_batch(who, args)

    def square(vector: torch.Tensor, *example: Any) -> torch.Tensor:
        gradient = torch.func.grad(flat.function(who, negative_log_likelihood, example))
        return gradient(vector).square()

    dims = (None, *(0 for _ in args))
    return flat.tree(torch.func.vmap(square, in_dims=dims)(flat.vector, *args).mean(0))


class _Flat:
    """A tree as one vector, and back."""

    def __init__(self, who: str, tree: Tree) -> None:
        self._tree = tree
        self._leaves, self._spec = tree_flatten(tree)
        for leaf in self._leaves:
            if leaf is not None:
                check_gradient(who, leaf, "parameters")
        present = [leaf for leaf in self._leaves if leaf is not None]
        self._sizes = [leaf.numel() for leaf in present]
        self.vector = (
            torch.cat([leaf.reshape(-1) for leaf in present]) if present else torch.zeros(0)
        )

    def joined(self, who: str, like: Tree) -> torch.Tensor:
        """Another tree of this structure as a vector."""
        leaves = flatten_like(who, "vector differs from params", self._spec, like)
        for index, (own, other) in enumerate(zip(self._leaves, leaves, strict=True)):
            alike = isinstance(other, torch.Tensor) and own is not None and own.shape == other.shape
            if own is not None and not alike:
                raise ValueError(
                    f"{who}: expected a vector like its parameter {describe(own)}, got "
                    f"{describe(other)}, at {path_to(self._tree, index)}"
                )
        parts = [v for v, own in zip(leaves, self._leaves, strict=True) if own is not None]
        flat = [part.reshape(-1) for part in parts]
        return torch.cat(flat).to(self.vector) if flat else self.vector

    def tree(self, vector: torch.Tensor) -> Tree:
        """The tree of a vector."""
        parts = iter(vector.split(self._sizes))
        leaves = [
            None if leaf is None else next(parts).reshape(leaf.shape).to(leaf.dtype)
            for leaf in self._leaves
        ]
        return tree_unflatten(self._spec, leaves)

    def function(
        self, who: str, loss: Callable[..., Any], args: tuple[Any, ...]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """A loss of the tree as one of the vector."""

        def of_vector(vector: torch.Tensor) -> torch.Tensor:
            return checked_scalar(who, loss(self.tree(vector), *args))

        return of_vector


def check_function(who: str, name: str, function: Any) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: No function.
    """
    if not callable(function):
        raise TypeError(f"{who}: expected {name} as a function, got {describe(function)}")


def checked_scalar(who: str, value: Any) -> torch.Tensor:
    """What a loss gave.

    Raises:
        ValueError: It is no scalar.
    """
    if not isinstance(value, torch.Tensor) or value.ndim:
        raise ValueError(f"{who}: expected a scalar loss, got {describe(value)}")
    return value


def _check_batch(who: str, args: tuple[Any, ...]) -> None:
    """Refuse what are not tensors of one batch of examples, or of none."""
    size = None
    for index, leaf in enumerate(tree_leaves(args)):
        axes = leaf.shape if isinstance(leaf, torch.Tensor) else ()
        if not axes or not axes[0] or axes[0] != (size or axes[0]):
            raise ValueError(
                f"{who}: expected tensors of examples ({size or 'batch'}, ...), got "
                f"{describe(leaf)}, at args{path_to(args, index)}"
            )
        size = axes[0]
    if size is None:
        raise ValueError(f"{who}: expected tensors of examples (batch, ...), got none")


def _product(
    function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor, vector: torch.Tensor
) -> torch.Tensor:
    """Backward twice: every operation of torch can do that, not every one runs forward mode."""
    gradient = torch.func.grad(function)
    return torch.func.grad(lambda x: gradient(x) @ vector)(at)
