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

// func(*leaves) at each leaf of arguments[1], with what stands there in arguments[2:]; with
// `with_path`, func(path, *leaves).
Ref map_trees(const Call& call, bool with_path, MapResult result);

}  // namespace treeops
