// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "python.h"

namespace treeops {

struct State;

extern PyMethodDef treespec_methods[];    // of PyTreeSpec; bind_treespec.cpp
extern PyMethodDef treespec_functions[];  // constructors

// Adds the functions of the registry to the module. They share the state, since they may outlive
// it.
void bind_registry(PyObject* module_object, const std::shared_ptr<State>& state);

}  // namespace treeops
