// SPDX-License-Identifier: Apache-2.0
// The module `_cpu`.
#include "cpu.h"
#include "module.h"

namespace optcore {

void launch(const Job& job, int, std::uintptr_t) { run(job); }

void launch(const BackwardJob& job, int, std::uintptr_t) { run(job); }

}  // namespace optcore

PYBIND11_MODULE(_cpu, module) {
    optcore::bind_device<optcore::DeviceType::kCpu>(module);
    module.def("instruction_set", &optcore::instruction_set);
    module.def("instruction_sets", &optcore::available_instruction_sets);
    module.def("choose_instruction_set", &optcore::choose_instruction_set);
}
