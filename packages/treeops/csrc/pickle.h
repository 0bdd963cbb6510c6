// SPDX-License-Identifier: Apache-2.0
// Treespecs as plain tuples, with a version.
#pragma once

#include "python.h"
#include "treespec.h"

namespace treeops {

// The arguments of `_rebuild_treespec`: (version, none_is_leaf, namespace, nodes).
Ref dump_treespec(const TreeSpec* spec);

// The treespec of such a tuple; ValueError or TypeError if it is not one.
Ref load_treespec(State& state, PyObject* payload);

}  // namespace treeops
