// SPDX-License-Identifier: Apache-2.0
// The module `_cuda`.
#include "cuda.h"
#include "module.h"

PYBIND11_MODULE(_cuda, module) {
    optcore::bind_device<optcore::DeviceType::kCuda>(module);
    module.def("device_count", [] {
        const optcore::DeviceCount found = optcore::device_count();
        return pybind11::make_tuple(found.count, found.reason);
    });
    module.def("refusal", &optcore::refusal);
}
