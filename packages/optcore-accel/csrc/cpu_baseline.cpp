// SPDX-License-Identifier: Apache-2.0
#define OPTCORE_ISA baseline
#include "cpu_loops.h"
