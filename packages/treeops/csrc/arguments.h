// SPDX-License-Identifier: Apache-2.0
// Arguments of the METH_FASTCALL entry points.
#pragma once

#include "flatten.h"
#include "python.h"

namespace treeops {

struct Call {
    State& state;
    const char* who;
    PyObject* const* arguments;
    Py_ssize_t num_positional;
    PyObject* keyword_names;  // tuple or NULL
};

// Checks that between `least` and `most` positional arguments were given; `names` says which.
void check_positional(const Call& call, Py_ssize_t least, Py_ssize_t most, const char* names);

// is_leaf, none_is_leaf and namespace; `is_leaf_position` is where is_leaf may stand (-1: nowhere).
FlattenOptions parse_flatten_options(const Call& call, Py_ssize_t is_leaf_position);

// `treespec` and `leaves`, by position or name.
void parse_unflatten(const Call& call, PyObject*& treespec, PyObject*& leaves);

}  // namespace treeops
