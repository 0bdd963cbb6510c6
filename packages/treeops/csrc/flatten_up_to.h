// SPDX-License-Identifier: Apache-2.0
// Takes from a tree what stands at the leaves of a treespec that must be its prefix.
#pragma once

#include "paths.h"
#include "python.h"
#include "treespec.h"

namespace treeops {

// Pushes root.num_leaves references.
void flatten_up_to(State& state, const TreeRole& role, const Node* root, PyObject* tree,
                   References& subtrees);

}  // namespace treeops
