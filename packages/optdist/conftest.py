# SPDX-License-Identifier: Apache-2.0
"""Leave out what needs an extra that is not installed."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("ray") else ["src/optdist/_ray.py"]
