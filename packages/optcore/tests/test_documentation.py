# SPDX-License-Identifier: Apache-2.0
"""Every public function shows an example; pytest runs them with the other tests."""

import optcore


def test_every_public_function_has_an_example():
    missing = [
        name
        for name, value in ((name, getattr(optcore, name)) for name in dir(optcore))
        if callable(value)
        and not name.startswith("_")
        and not isinstance(value, type)
        and ">>>" not in (value.__doc__ or "")
    ]
    assert missing == []
