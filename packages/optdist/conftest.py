# SPDX-License-Identifier: Apache-2.0
"""Tutorials are scripts: a test runs them, and collecting doctests must not."""

collect_ignore = ["tutorials"]
