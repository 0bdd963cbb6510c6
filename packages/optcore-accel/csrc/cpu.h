// SPDX-License-Identifier: Apache-2.0
// The CPU's side of a job: loops for each instruction set, chosen when the module is loaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "job.h"

namespace optcore {

// Elements [begin, end) of a leaf; row counts the pieces of a job.
struct Chunk {
    std::size_t leaf;
    std::int64_t begin, end, row;
};

#define OPTCORE_DECLARE_LOOPS(isa)                                                  \
    namespace isa {                                                                 \
    void forward(const Job& job, const double* scalars, const Chunk& chunk);          \
    void backward(const BackwardJob& job, const double* scalars, const Chunk& chunk); \
    }
OPTCORE_DECLARE_LOOPS(baseline)
#ifdef OPTCORE_X86
OPTCORE_DECLARE_LOOPS(avx2)
OPTCORE_DECLARE_LOOPS(avx512)
#endif
#undef OPTCORE_DECLARE_LOOPS

// Runs on as many threads as torch uses, or on one where that is faster.
void run(const Job& job);
void run(const BackwardJob& job);

// Which loops run: "baseline", "avx2" or "avx512". Choosing one that the machine lacks returns false.
std::string instruction_set();
bool choose_instruction_set(const std::string& name);
std::string available_instruction_sets();

}  // namespace optcore
