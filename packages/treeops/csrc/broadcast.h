// SPDX-License-Identifier: Apache-2.0
// A prefix tree made as deep as a full tree: its leaves are repeated.
#pragma once

#include "arguments.h"
#include "python.h"

namespace treeops {

enum class BroadcastResult { kTree, kLeaves };

// From (prefix_tree, full_tree, is_leaf) to the tree, or the leaves, of the prefix.
Ref broadcast_prefix(const Call& call, BroadcastResult result);

}  // namespace treeops
