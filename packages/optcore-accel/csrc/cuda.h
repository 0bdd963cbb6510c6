// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "job.h"

namespace optcore {

void launch(const Job& job, int device_index, std::uintptr_t stream);
void launch(const BackwardJob& job, int device_index, std::uintptr_t stream);

struct DeviceCount {
    int count;
    std::string reason;  // why there is none
};

DeviceCount device_count();

// Why this GPU runs no kernel of this module, or nothing.
std::string refusal(int device_index);

}  // namespace optcore
