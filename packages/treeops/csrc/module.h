// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "python.h"

namespace treeops {

extern PyMethodDef treespec_methods[];

}  // namespace treeops
