// SPDX-License-Identifier: Apache-2.0
// Treespecs side by side: which is a prefix of which, and what they have in common.
#pragma once

#include "paths.h"
#include "python.h"
#include "treespec.h"

namespace treeops {

// Whether the leaves of `first` can be replaced by subtrees so that `second` results; `strict`:
// and they differ.
bool is_prefix(const TreeSpec* first, const TreeSpec* second, bool strict);

// The smallest treespec that both are prefixes of, as far as the kinds of mappings go; where they
// differ in that, `first` decides. ValueError if there is none.
Ref broadcast_to_common_suffix(State& state, const TreeRole& role, const TreeSpec* first,
                               const TreeSpec* second);

}  // namespace treeops
