// SPDX-License-Identifier: Apache-2.0
// The leaves of a tree one at a time: containers are opened when the iteration reaches them.
#pragma once

#include "flatten.h"
#include "python.h"

namespace treeops {

extern PyType_Spec tree_iterator_spec;

Ref make_tree_iterator(State& state, PyObject* tree, const FlattenOptions& options);

}  // namespace treeops
