// SPDX-License-Identifier: Apache-2.0
#define OPTCORE_ISA avx2
#include "cpu_loops.h"
