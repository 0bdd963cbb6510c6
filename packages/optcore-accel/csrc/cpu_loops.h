// SPDX-License-Identifier: Apache-2.0
// The loops over elements; compiled once for each instruction set, in a namespace of its own.
//
// A piece of work is done in blocks that fit into the first-level cache: what has another dtype than
// the arithmetic is converted into a buffer, the rule runs over the block, and the result goes back.
// Memory is read and written once.
#ifndef OPTCORE_ISA
#error "define OPTCORE_ISA as the namespace of the instruction set"
#endif

#include <cstring>

#include "cpu.h"

namespace optcore {
namespace OPTCORE_ISA {

namespace {

constexpr int kBlock = 1024;

struct BFloat16 {
    std::uint16_t bits;
};

inline float widen(BFloat16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float widen(_Float16 x) { return static_cast<float>(x); }

template <typename T>
inline T widen(T x) {
    return x;
}

inline void narrow(float value, BFloat16* to) {  // to the nearest, ties to even
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to->bits = static_cast<std::uint16_t>(value != value ? 0x7fc0u : rounded);
}

inline void narrow(double value, BFloat16* to) { narrow(static_cast<float>(value), to); }

template <typename T, typename Stored>
inline void narrow(T value, Stored* to) {
    *to = static_cast<Stored>(value);
}

template <typename Stored, typename T>
void widen_all(const char* from, int count, T* to) {
    const Stored* values = reinterpret_cast<const Stored*>(from);
    for (int i = 0; i < count; ++i) to[i] = static_cast<T>(widen(values[i]));
}

template <typename T>
__attribute__((noinline)) void convert_in(Dtype dtype, const char* from, int count, T* to) {
    switch (dtype) {
        case Dtype::kFloat32: return widen_all<float>(from, count, to);
        case Dtype::kFloat64: return widen_all<double>(from, count, to);
        case Dtype::kBFloat16: return widen_all<BFloat16>(from, count, to);
        case Dtype::kFloat16: return widen_all<_Float16>(from, count, to);
    }
}

template <typename Stored, typename T>
void narrow_all(const T* from, int count, char* to) {
    Stored* values = reinterpret_cast<Stored*>(to);
    for (int i = 0; i < count; ++i) narrow(from[i], values + i);
}

template <typename T>
__attribute__((noinline)) void convert_out(Dtype dtype, const T* from, int count, char* to) {
    switch (dtype) {
        case Dtype::kFloat32: return narrow_all<float>(from, count, to);
        case Dtype::kFloat64: return narrow_all<double>(from, count, to);
        case Dtype::kBFloat16: return narrow_all<BFloat16>(from, count, to);
        case Dtype::kFloat16: return narrow_all<_Float16>(from, count, to);
    }
}

int bytes_of(Dtype dtype) {
    return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

template <typename T>
bool is_own(Dtype dtype) {
    return dtype == (sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32);
}

// One column over one leaf.
struct Cursor {
    char* data;
    Dtype dtype;

    Cursor(const Column& column, std::size_t leaf)
        : data(column.present() ? column.data[leaf] : nullptr), dtype(column.dtype) {}

    char* at(std::int64_t index) const { return data + index * bytes_of(dtype); }

    // The block in the dtype of the arithmetic: where it lies, or converted into `buffer`.
    template <typename T>
    const T* read(std::int64_t index, int count, T* buffer) const {
        if (is_own<T>(dtype)) return reinterpret_cast<const T*>(at(index));
        convert_in(dtype, at(index), count, buffer);
        return buffer;
    }

    // The same with zeros for an absent column.
    template <typename T>
    const T* read_or_zero(std::int64_t index, int count, T* buffer) const {
        if (data != nullptr) return read(index, count, buffer);
        for (int i = 0; i < count; ++i) buffer[i] = 0;
        return buffer;
    }

    // Where to write the block; `write` then brings it home if it is the buffer.
    template <typename T>
    T* target(std::int64_t index, T* buffer) const {
        return data != nullptr && is_own<T>(dtype) ? reinterpret_cast<T*>(at(index)) : buffer;
    }

    template <typename T>
    void write(std::int64_t index, int count, const T* values) const {
        if (data != nullptr && !is_own<T>(dtype)) convert_out(dtype, values, count, at(index));
    }
};

// The same element of every column may share its place, different elements never do: the callers
// check that. So no iteration depends on another.
#define OPTCORE_INDEPENDENT _Pragma("GCC ivdep")

constexpr int at_least_one(int n) { return n > 0 ? n : 1; }

// `take(i, u)` is told each update.
template <typename R, typename T, typename Take>
OPTCORE_INLINE void rule_forward(const typename R::template Constants<T>& constants, int count,
                                 const T* grad, const T* const* old, T* const* fresh,
                                 const Take& take) {
    const auto c = constants;
    constexpr int n = at_least_one(R::kBuffers);
    const T* from[n] = {};
    T* to[n] = {};
    for (int k = 0; k < R::kBuffers; ++k) from[k] = old[k], to[k] = fresh[k];
    OPTCORE_INDEPENDENT
    for (int i = 0; i < count; ++i) {
        T before[n], after[n], u;
        for (int k = 0; k < R::kBuffers; ++k) before[k] = from[k][i];
        R::template forward<T>(c, grad[i], before, after, &u);
        for (int k = 0; k < R::kBuffers; ++k) to[k][i] = after[k];
        take(i, u);
    }
}

template <typename R, typename T, bool kScalarsToo>
void rule_backward(const typename R::template Constants<T>& constants, int count, const T* grad,
                   const T* const* old, const T* du, const T* const* dfresh, T* dgrad,
                   T* const* dold, T (*dscalars)[kBlock]) {
    const auto c = constants;
    constexpr int n = at_least_one(R::kBuffers);
    const T *from[n] = {}, *dto[n] = {};
    T* dfrom[n] = {};
    for (int k = 0; k < R::kBuffers; ++k) from[k] = old[k], dto[k] = dfresh[k], dfrom[k] = dold[k];
    OPTCORE_INDEPENDENT
    for (int i = 0; i < count; ++i) {
        T before[n], dafter[n], dbefore[n], ds[kMaxScalars], dg;
        for (int k = 0; k < R::kBuffers; ++k) before[k] = from[k][i], dafter[k] = dto[k][i];
        R::template backward<T>(c, grad[i], before, du[i], dafter, &dg, dbefore, ds);
        for (int k = 0; k < R::kBuffers; ++k) dfrom[k][i] = dbefore[k];
        dgrad[i] = dg;
        if (kScalarsToo) {
            for (int k = 0; k < R::kScalars; ++k) dscalars[k][i] = ds[k];
        }
    }
}

template <typename T>
double sum(const T* values, int count) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < count; ++i) total += values[i];
    return static_cast<double>(total);
}

template <typename T>
double dot(const T* a, const T* b, int count) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < count; ++i) total += a[i] * b[i];
    return static_cast<double>(total);
}

// sign g + l2 p: the gradient that the rule sees.
template <typename T>
const T* seen_gradient(const double* s, int count, const T* grad, const T* param, T* buffer) {
    const T sign = T(s[kSign]), l2 = T(s[kL2]);
    if (param != nullptr && s[kL2] != 0) {
        for (int i = 0; i < count; ++i) buffer[i] = sign * grad[i] + l2 * param[i];
        return buffer;
    }
    if (s[kSign] == 1) return grad;
    for (int i = 0; i < count; ++i) buffer[i] = sign * grad[i];
    return buffer;
}

template <typename R, typename T>
void forward_chunk(const Job& job, const double* scalars, const Chunk& chunk) {
    const typename R::template Constants<T> constants(scalars + kOuterScalars);
    const Cursor param(job.param, chunk.leaf), grad(job.grad, chunk.leaf);
    const Cursor out(job.out, chunk.leaf);
    constexpr int n = at_least_one(R::kBuffers);
    alignas(64) T buffers[4 + 2 * n][kBlock];
    const T lr = T(scalars[kLr]), decay = T(scalars[kDecay]);
    for (std::int64_t at = chunk.begin; at < chunk.end; at += kBlock) {
        const int count = static_cast<int>(chunk.end - at < kBlock ? chunk.end - at : kBlock);
        const T* p = param.data ? param.read(at, count, buffers[0]) : nullptr;
        const T* g = grad.read(at, count, buffers[1]);
        g = seen_gradient(scalars, count, g, p, buffers[2]);
        const T* old[n] = {};
        T* fresh[n] = {};
        for (int k = 0; k < R::kBuffers; ++k) {
            old[k] = Cursor(job.old[k], chunk.leaf).read(at, count, buffers[4 + k]);
            fresh[k] = Cursor(job.fresh[k], chunk.leaf).target(at, buffers[4 + n + k]);
        }
        T* next = out.target(at, buffers[3]);
        if (p && scalars[kDecay] != 0) {
            rule_forward<R, T>(constants, count, g, old, fresh, [=](int i, T u) {
                next[i] = p[i] - lr * (u + decay * p[i]);
            });
        } else if (p) {
            rule_forward<R, T>(constants, count, g, old, fresh,
                               [=](int i, T u) { next[i] = p[i] - lr * u; });
        } else {
            rule_forward<R, T>(constants, count, g, old, fresh,
                               [=](int i, T u) { next[i] = u; });
        }
        for (int k = 0; k < R::kBuffers; ++k) {
            Cursor(job.fresh[k], chunk.leaf).write(at, count, fresh[k]);
        }
        out.write(at, count, next);
    }
}

template <typename R, typename T, bool kScalarsToo>
void backward_chunk(const BackwardJob& job, const double* scalars, const Chunk& chunk) {
    const typename R::template Constants<T> constants(scalars + kOuterScalars);
    const std::size_t leaf = chunk.leaf;
    const Cursor param(job.param, leaf), grad(job.grad, leaf), dout(job.out, leaf);
    const Cursor dparam(job.dparam, leaf), dgrad(job.dgrad, leaf);
    constexpr int n = at_least_one(R::kBuffers);
    alignas(64) T buffers[8 + 3 * n][kBlock];
    alignas(64) T dscalars[at_least_one(R::kScalars)][kBlock];
    double* partials = kScalarsToo ? job.partials + chunk.row * kAllScalars : nullptr;
    const bool steps = job.out_is_param;
    const T lr = T(scalars[kLr]), decay = T(scalars[kDecay]), l2 = T(scalars[kL2]);
    const T sign = T(scalars[kSign]);
    for (std::int64_t at = chunk.begin; at < chunk.end; at += kBlock) {
        const int count = static_cast<int>(chunk.end - at < kBlock ? chunk.end - at : kBlock);
        const T* p = param.data ? param.read(at, count, buffers[0]) : nullptr;
        const T* g = grad.read(at, count, buffers[1]);
        g = seen_gradient(scalars, count, g, p, buffers[2]);
        const T* dnext = dout.read_or_zero(at, count, buffers[3]);
        const T *old[n] = {}, *dfresh[n] = {};
        T* dold[n] = {};
        for (int k = 0; k < R::kBuffers; ++k) {
            old[k] = Cursor(job.old[k], leaf).read(at, count, buffers[8 + k]);
            dfresh[k] = Cursor(job.fresh[k], leaf).read_or_zero(at, count, buffers[8 + n + k]);
            dold[k] = Cursor(job.dold[k], leaf).target(at, buffers[8 + 2 * n + k]);
        }
        const T* du = dnext;
        if (steps) {
            for (int i = 0; i < count; ++i) buffers[4][i] = -lr * dnext[i];
            du = buffers[4];
        }
        if (kScalarsToo && steps) {  // before anything is overwritten
            T* ignored[n];
            for (int k = 0; k < R::kBuffers; ++k) ignored[k] = buffers[8 + 2 * n + k];
            T* updates = buffers[5];
            rule_forward<R, T>(constants, count, g, old, ignored,
                               [=](int i, T u) { updates[i] = u; });
            double slope = -dot(dnext, buffers[5], count);
            if (p) {
                const double along = dot(dnext, p, count);
                slope -= scalars[kDecay] * along;
                partials[kDecay] -= scalars[kLr] * along;
            }
            partials[kLr] += slope;
        }
        T* dg = buffers[6];
        rule_backward<R, T, kScalarsToo>(constants, count, g, old, du, dfresh, dg, dold, dscalars);
        for (int k = 0; k < R::kBuffers; ++k) {
            Cursor(job.dold[k], leaf).write(at, count, dold[k]);
        }
        if (kScalarsToo) {
            for (int k = 0; k < R::kScalars; ++k) {
                partials[kOuterScalars + k] += sum(dscalars[k], count);
            }
            if (p) partials[kL2] += dot(dg, p, count);
        }
        if (dparam.data) {
            T* dp = dparam.target(at, buffers[7]);
            for (int i = 0; i < count; ++i) {
                dp[i] = dnext[i] - lr * (decay * dnext[i]) + l2 * dg[i];
            }
            dparam.write(at, count, dp);
        }
        if (dgrad.data) {
            T* result = dgrad.target(at, buffers[5]);
            for (int i = 0; i < count; ++i) result[i] = sign * dg[i];
            dgrad.write(at, count, result);
        }
    }
}

}  // namespace

void forward(const Job& job, const double* scalars, const Chunk& chunk) {
    visit(job.rule, [&](auto rule) {
        using R = decltype(rule);
        job.wide ? forward_chunk<R, double>(job, scalars, chunk)
                 : forward_chunk<R, float>(job, scalars, chunk);
    });
}

void backward(const BackwardJob& job, const double* scalars, const Chunk& chunk) {
    visit(job.rule, [&](auto rule) {
        using R = decltype(rule);
        if (job.partials) {
            job.wide ? backward_chunk<R, double, true>(job, scalars, chunk)
                     : backward_chunk<R, float, true>(job, scalars, chunk);
        } else {
            job.wide ? backward_chunk<R, double, false>(job, scalars, chunk)
                     : backward_chunk<R, float, false>(job, scalars, chunk);
        }
    });
}

}  // namespace OPTCORE_ISA
}  // namespace optcore
