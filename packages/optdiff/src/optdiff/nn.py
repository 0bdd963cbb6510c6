# SPDX-License-Identifier: Apache-2.0
"""Modules with derivatives of their own."""

from optdiff._implicit_module import (
    ImplicitMetaGradientModule as ImplicitMetaGradientModule,
)
from optdiff._meta_module import MetaGradientModule as MetaGradientModule
from optdiff._zero_order_module import ZeroOrderGradientModule as ZeroOrderGradientModule
