// SPDX-License-Identifier: Apache-2.0
// What a kernel is asked to do, without Python and without torch.
//
// One call serves a list of tensors ("leaves"). A column holds one pointer a leaf, all of one dtype;
// a column without pointers is absent. Around its rule a step does
//
//   g~ = sign g + l2 p,   (u, fresh) = rule(g~, old),   p' = p - lr (u + decay p)
//
// and where there is no parameter column it gives u itself.
#pragma once

#include <cstdint>
#include <vector>

#include "formulas.h"

namespace optcore {

enum class Dtype : std::uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct Column {
    std::vector<char*> data;  // empty: absent; a null pointer: absent for this leaf
    Dtype dtype = Dtype::kFloat32;

    bool present() const { return !data.empty(); }
};

// The scalars around the rule; those of the rule follow them.
enum Scalar : int { kSign, kL2, kDecay, kLr, kOuterScalars };
constexpr int kAllScalars = kOuterScalars + kMaxScalars;

// A scalar is a number, or a 0-d tensor in the memory of the device.
struct ScalarSource {
    double value = 0;
    const void* device_pointer = nullptr;
    Dtype dtype = Dtype::kFloat64;
};

// The number of steps, this one included: where it is given, the scalars of the rule are still
// hyperparameters. A number, or in the memory of the device, where a captured graph advances it.
struct CountSource {
    bool given = false;
    double value = 0;
    const std::int64_t* device_pointer = nullptr;
};

struct Job {
    Rule rule = Rule::kDescent;
    ScalarSource scalars[kAllScalars];
    CountSource count;
    std::vector<std::int64_t> sizes;  // elements of each leaf
    bool wide = false;                // compute in double precision

    Column param, grad, old[kMaxBuffers];
    Column out, fresh[kMaxBuffers];  // of a step
};

struct BackwardJob : Job {
    // out and fresh hold cotangents; these are the results
    Column dparam, dgrad, dold[kMaxBuffers];
    bool out_is_param = false;  // of the step; the param column is there only where its values are needed
    double* partials = nullptr;  // [chunks, kAllScalars], or null: derivatives of scalars
};

// How leaves are cut into pieces of work; partials has a row for each.
constexpr std::int64_t kChunk = 1 << 13;

inline std::int64_t chunks_of(std::int64_t size) { return (size + kChunk - 1) / kChunk; }

}  // namespace optcore
