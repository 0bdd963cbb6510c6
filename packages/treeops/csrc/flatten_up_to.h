// SPDX-License-Identifier: Apache-2.0
// Takes from a tree what stands at the leaves of a treespec that must be its prefix.
#pragma once

#include "python.h"
#include "treespec.h"

namespace treeops {

// How an error names the tree that does not fit.
struct TreeRole {
    const char* who;
    int argument;  // 2, 3, ...: "argument 2 differs from argument 1"; 0: "tree differs from the
                   // treespec"
};

// Pushes root.num_leaves references.
void flatten_up_to(State& state, const TreeRole& role, const Node* root, PyObject* tree,
                   References& subtrees);

}  // namespace treeops
