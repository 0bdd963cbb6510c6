// SPDX-License-Identifier: Apache-2.0
// One C call from trees and a function to the mapped tree.
#pragma once

#include "arguments.h"
#include "python.h"

namespace treeops {

enum class MapResult {
    kTree,      // the tree of the results
    kArgument,  // the first tree, unchanged; the function is called for its effect
};

// What the function gets before the leaves.
enum class MapNames { kNone, kPath, kAccessor };

// func(*leaves) at each leaf of arguments[1], with what stands there in arguments[2:].
Ref map_trees(const Call& call, MapNames names, MapResult result);

}  // namespace treeops
