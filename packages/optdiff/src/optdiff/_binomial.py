# SPDX-License-Identifier: Apache-2.0
"""Where to keep carries of a long loop, so that going back through it runs the fewest steps."""

from __future__ import annotations

from math import comb


def first_part(length: int, kept: int) -> int:
    r"""How many of ``length`` steps to run before the next carry is kept, if so many may be.

    With :math:`c` carries, the first one included, and each step run at most :math:`r` times before
    it is differentiated, :math:`\binom{c + r}{c}` steps can be gone back through. Splitting so that
    both parts stay within that bound is optimal.

    Args:
        length: Steps to go back through, 2 or more.
        kept: Carries that may be kept besides the first one; 0: run up to the last step.

    Example:
        >>> first_part(10, 0), first_part(10, 2), first_part(10, 9)
        (9, 4, 1)

    Reference:
        Griewank and Walther, 2000, ACM TOMS 26(1), Algorithm 799, section 2.
    """
    carries, times = kept + 1, 0
    while comb(carries + times, carries) < length:
        times += 1
    before = comb(carries + times - 2, carries) if times >= 2 else 0
    behind = comb(carries - 1 + times, carries - 1)
    return max(1, before, length - behind)


def carries_of_levels(length: int, branching: int) -> int:
    r"""How many carries to keep besides the first one, for time and memory that grow slowly.

    A tree over the steps with :math:`k` branches at each of :math:`m` levels keeps :math:`k - 1`
    carries a level and runs each step at most :math:`m` times before it is differentiated. With
    as many carries, fewer levels do than the tree's :math:`\log_k K`: the fewest with
    :math:`\binom{k m}{m} \ge K`.

    Args:
        length: :math:`K` steps to go back through.
        branching: :math:`k`.

    Example:
        >>> [carries_of_levels(10**n, 2) for n in range(5)]
        [0, 2, 4, 6, 7]
    """
    levels = 0
    while comb(branching * levels, levels) < length:
        levels += 1
    return max(1, (branching - 1) * levels) - 1
