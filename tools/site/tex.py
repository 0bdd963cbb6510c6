# SPDX-License-Identifier: Apache-2.0
"""What docutils does not read or write as TeX does, in what it knows."""

from __future__ import annotations

import re

READ = (
    (re.compile(r"\\dots(?![a-zA-Z])"), r"\\ldots"),
    (re.compile(r"\\textstyle(?![a-zA-Z])\s*"), ""),
    (re.compile(r"\\big(?![a-zA-Z])"), r"\\bigl"),
    (re.compile(r"\\operatorname\*\{arg(?:\\,)?(min|max)\}"), r"\\arg\\\1"),
    (re.compile(r"\\operatorname\*"), r"\\operatorname"),
    (re.compile(r"\\mathrel\{(\\[a-zA-Z]+)\}"), r"\1"),
    # an argument without braces is one digit: \frac12 is a half, x^23 is three times x squared
    (re.compile(r"(\\[td]?frac)\s*(\d)\s*(\d)"), r"\1{\2}{\3}"),
    (re.compile(r"([\^_])(\d)(?=\d)"), r"\1{\2}"),
)
WRITTEN = (
    ("<mo>'</mo>", '<mo lspace="0" rspace="0">\N{PRIME}</mo>'),
    ('<mo stretchy="false">|</mo>', '<mo stretchy="false" lspace="0" rspace="0">|</mo>'),
    ("<mo>‖</mo>", '<mo stretchy="false" lspace="0" rspace="0">‖</mo>'),
)


def readable(formula: str) -> str:
    """Return a formula in the TeX that docutils knows."""
    for pattern, known in READ:
        formula = pattern.sub(known, formula)
    return formula


def spaced(markup: str) -> str:
    """Return MathML with primes and bars as TeX sets them: without space, no taller than it is."""
    for found, meant in WRITTEN:
        markup = markup.replace(found, meant)
    return markup
