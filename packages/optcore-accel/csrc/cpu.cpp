// SPDX-License-Identifier: Apache-2.0
// Cutting a job into pieces and sharing them among threads.
#include "cpu.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <vector>

namespace optcore {

namespace {

struct Loops {
    const char* name;
    void (*forward)(const Job&, const double*, const Chunk&);
    void (*backward)(const BackwardJob&, const double*, const Chunk&);
    bool runs;
};

const std::vector<Loops>& all_loops() {
    static const std::vector<Loops> loops = [] {
        std::vector<Loops> found;
#ifdef OPTCORE_X86
        __builtin_cpu_init();
        const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("f16c");
        const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        found.push_back({"avx512", avx512::forward, avx512::backward, avx512});
        found.push_back({"avx2", avx2::forward, avx2::backward, avx2});
#endif
        found.push_back({"baseline", baseline::forward, baseline::backward, true});
        return found;
    }();
    return loops;
}

const Loops*& chosen() {
    static const Loops* loops = [] {
        for (const Loops& each : all_loops()) {
            if (each.runs) return &each;
        }
        return &all_loops().back();
    }();
    return loops;
}

// Below so many elements a second thread costs more than it saves.
constexpr std::int64_t kSerial = 1 << 16;

template <typename SomeJob>
void run_with(const SomeJob& job, void (*loops)(const SomeJob&, const double*, const Chunk&)) {
    double scalars[kAllScalars];
    for (int k = 0; k < kAllScalars; ++k) scalars[k] = job.scalars[k].value;
    if (job.count.given) {
        visit(job.rule, [&](auto rule) {
            decltype(rule)::at_count(job.count.value, scalars + kOuterScalars);
        });
    }
    std::vector<Chunk> chunks;
    std::int64_t total = 0, row = 0;
    for (std::size_t leaf = 0; leaf < job.sizes.size(); ++leaf) {
        const std::int64_t size = job.sizes[leaf];
        total += size;
        for (std::int64_t begin = 0; begin < size; begin += kChunk) {
            chunks.push_back({leaf, begin, begin + kChunk < size ? begin + kChunk : size, row++});
        }
    }
    const std::int64_t count = static_cast<std::int64_t>(chunks.size());
#ifdef _OPENMP
    const bool parallel = total > kSerial && !omp_in_parallel() && omp_get_max_threads() > 1;
#pragma omp parallel for schedule(static) if (parallel)
#endif
    for (std::int64_t i = 0; i < count; ++i) loops(job, scalars, chunks[i]);
}

}  // namespace

void run(const Job& job) { run_with<Job>(job, chosen()->forward); }

void run(const BackwardJob& job) { run_with<BackwardJob>(job, chosen()->backward); }

std::string instruction_set() { return chosen()->name; }

bool choose_instruction_set(const std::string& name) {
    for (const Loops& each : all_loops()) {
        if (name == each.name && each.runs) {
            chosen() = &each;
            return true;
        }
    }
    return false;
}

std::string available_instruction_sets() {
    std::string names;
    for (const Loops& each : all_loops()) {
        if (each.runs) names += (names.empty() ? "" : " ") + std::string(each.name);
    }
    return names;
}

}  // namespace optcore
