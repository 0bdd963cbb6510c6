// SPDX-License-Identifier: Apache-2.0
#define OPTCORE_ISA avx512
#include "cpu_loops.h"
