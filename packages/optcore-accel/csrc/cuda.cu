// SPDX-License-Identifier: Apache-2.0
// The GPU's side of a job: the pointers of many leaves go with the launch, one launch serves all of
// them. Nothing is allocated or copied, and nothing waits, so that launches can be captured.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda.h"

namespace optcore {

namespace {

constexpr int kThreads = 256;
constexpr int kMaxPointers = 352;  // what fits, with the rest, into the 4 KB of a launch's arguments
constexpr int kMaxLeaves = 64;

// ---- what a launch takes along -------------------------------------------------------------------

enum Slot : int {
    kParam, kGrad, kOut, kOld,
    kFresh = kOld + kMaxBuffers,
    kDparam = kFresh + kMaxBuffers,
    kDgrad,
    kDold,
    kSlots = kDold + kMaxBuffers,
};

struct Launch {
    char* pointers[kMaxPointers];      // [leaf][column]
    std::int32_t first[kMaxLeaves + 1];  // chunk with which a leaf begins
    std::int8_t place[kSlots];         // of a column among a leaf's pointers; -1: absent
    Dtype dtype[kSlots];
    std::int8_t columns;
    std::int8_t leaves;
    bool out_is_param;
};

struct Extents {
    std::int64_t sizes[kMaxLeaves];
};

struct Scalars {
    ScalarSource source[kAllScalars];
    CountSource count;
};

static_assert(sizeof(Launch) + sizeof(Extents) + sizeof(Scalars) + sizeof(double*) <= 4096,
              "older drivers take no more arguments");

// ---- memory ---------------------------------------------------------------------------------------

template <typename T>
__device__ T load(const char* data, Dtype dtype, std::int64_t i) {
    switch (dtype) {
        case Dtype::kFloat32: return static_cast<T>(reinterpret_cast<const float*>(data)[i]);
        case Dtype::kFloat64: return static_cast<T>(reinterpret_cast<const double*>(data)[i]);
        case Dtype::kBFloat16:
            return static_cast<T>(__bfloat162float(reinterpret_cast<const __nv_bfloat16*>(data)[i]));
        case Dtype::kFloat16:
            return static_cast<T>(__half2float(reinterpret_cast<const __half*>(data)[i]));
    }
    return T(0);
}

template <typename T>
__device__ void store(char* data, Dtype dtype, std::int64_t i, T value) {
    switch (dtype) {
        case Dtype::kFloat32: reinterpret_cast<float*>(data)[i] = static_cast<float>(value); break;
        case Dtype::kFloat64: reinterpret_cast<double*>(data)[i] = value; break;
        case Dtype::kBFloat16:
            reinterpret_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16(static_cast<float>(value));
            break;
        case Dtype::kFloat16:
            reinterpret_cast<__half*>(data)[i] = __float2half(static_cast<float>(value));
            break;
    }
}

// One leaf as a thread sees it.
struct Leaf {
    const Launch& launch;
    int index;

    __device__ char* data(int slot) const {
        const int place = launch.place[slot];
        return place < 0 ? nullptr : launch.pointers[index * launch.columns + place];
    }
    template <typename T>
    __device__ T get(int slot, std::int64_t i) const {
        return load<T>(data(slot), launch.dtype[slot], i);
    }
    template <typename T>
    __device__ T get_or_zero(int slot, std::int64_t i) const {
        return data(slot) == nullptr ? T(0) : get<T>(slot, i);
    }
    template <typename T>
    __device__ void put(int slot, std::int64_t i, T value) const {
        if (data(slot) != nullptr) store<T>(data(slot), launch.dtype[slot], i, value);
    }
};

__device__ int leaf_of(const Launch& launch, int chunk) {
    int low = 0, high = launch.leaves;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (launch.first[middle] <= chunk ? low : high) = middle;
    }
    return low;
}

template <typename R>
__device__ void read_scalars(const Scalars& scalars, double* values) {
    for (int k = threadIdx.x; k < kAllScalars; k += blockDim.x) {
        const ScalarSource& source = scalars.source[k];
        const char* pointer = static_cast<const char*>(source.device_pointer);
        values[k] = pointer == nullptr ? source.value : load<double>(pointer, source.dtype, 0);
    }
    __syncthreads();
    if (!scalars.count.given) return;  // the same for every thread
    if (threadIdx.x == 0) {
        const std::int64_t* pointer = scalars.count.device_pointer;
        const double count = pointer == nullptr ? scalars.count.value : static_cast<double>(*pointer);
        R::at_count(count, values + kOuterScalars);
    }
    __syncthreads();
}

// ---- kernels --------------------------------------------------------------------------------------

template <typename R, typename T>
__global__ void __launch_bounds__(kThreads)
    step_kernel(const __grid_constant__ Launch launch, const __grid_constant__ Extents extents,
                const __grid_constant__ Scalars scalars) {
    __shared__ double s[kAllScalars];
    read_scalars<R>(scalars, s);
    const typename R::template Constants<T> constants(s + kOuterScalars);
    const T sign = T(s[kSign]), l2 = T(s[kL2]), decay = T(s[kDecay]), lr = T(s[kLr]);
    const int total = launch.first[launch.leaves];
    for (int chunk = blockIdx.x; chunk < total; chunk += gridDim.x) {
        const Leaf leaf{launch, leaf_of(launch, chunk)};
        const std::int64_t begin = (chunk - launch.first[leaf.index]) * kChunk;
        const std::int64_t size = extents.sizes[leaf.index];
        const std::int64_t end = begin + kChunk < size ? begin + kChunk : size;
        const bool has_param = leaf.data(kParam) != nullptr;
        for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
            const T p = has_param ? leaf.get<T>(kParam, i) : T(0);
            T g = sign * leaf.get<T>(kGrad, i);
            if (s[kL2] != 0) g += l2 * p;
            T old[R::kBuffers + 1], fresh[R::kBuffers + 1], u;
#pragma unroll
            for (int k = 0; k < R::kBuffers; ++k) old[k] = leaf.get<T>(kOld + k, i);
            R::template forward<T>(constants, g, old, fresh, &u);
#pragma unroll
            for (int k = 0; k < R::kBuffers; ++k) leaf.put<T>(kFresh + k, i, fresh[k]);
            if (has_param) u = s[kDecay] != 0 ? p - lr * (u + decay * p) : p - lr * u;
            leaf.put<T>(kOut, i, u);
        }
    }
}

// The sum over a block, in the first thread; every thread has to call it.
__device__ double block_sum(double value) {
    __shared__ double warps[kThreads / 32];
    for (int offset = 16; offset > 0; offset /= 2) {
        value += __shfl_down_sync(0xffffffffu, value, offset);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        value = 0;
        for (int w = 0; w < kThreads / 32; ++w) value += warps[w];
    }
    return value;
}

template <typename R, typename T, bool kScalarsToo>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Launch launch, const __grid_constant__ Extents extents,
                    const __grid_constant__ Scalars scalars, double* partials) {
    __shared__ double s[kAllScalars];
    read_scalars<R>(scalars, s);
    const typename R::template Constants<T> constants(s + kOuterScalars);
    const T sign = T(s[kSign]), l2 = T(s[kL2]), decay = T(s[kDecay]), lr = T(s[kLr]);
    const int total = launch.first[launch.leaves];
    for (int chunk = blockIdx.x; chunk < total; chunk += gridDim.x) {
        const Leaf leaf{launch, leaf_of(launch, chunk)};
        const std::int64_t begin = (chunk - launch.first[leaf.index]) * kChunk;
        const std::int64_t size = extents.sizes[leaf.index];
        const std::int64_t end = begin + kChunk < size ? begin + kChunk : size;
        const bool has_param = leaf.data(kParam) != nullptr;
        double sums[kOuterScalars + R::kScalars] = {};
        for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
            const T p = has_param ? leaf.get<T>(kParam, i) : T(0);
            T g = sign * leaf.get<T>(kGrad, i);
            if (s[kL2] != 0) g += l2 * p;
            T old[R::kBuffers + 1], dfresh[R::kBuffers + 1], dold[R::kBuffers + 1];
            T ds[kMaxScalars + 1], dg;
#pragma unroll
            for (int k = 0; k < R::kBuffers; ++k) {
                old[k] = leaf.get<T>(kOld + k, i);
                dfresh[k] = leaf.get_or_zero<T>(kFresh + k, i);
            }
            const T dnext = leaf.get_or_zero<T>(kOut, i);
            const T du = launch.out_is_param ? -lr * dnext : dnext;
            R::template backward<T>(constants, g, old, du, dfresh, &dg, dold, ds);
            if (kScalarsToo) {
                T fresh[R::kBuffers + 1], u;
                R::template forward<T>(constants, g, old, fresh, &u);
                if (launch.out_is_param) {
                    sums[kLr] -= static_cast<double>(dnext * (u + decay * p));
                    sums[kDecay] -= static_cast<double>(lr * dnext * p);
                }
                sums[kL2] += static_cast<double>(dg * p);
#pragma unroll
                for (int k = 0; k < R::kScalars; ++k) {
                    sums[kOuterScalars + k] += static_cast<double>(ds[k]);
                }
            }
#pragma unroll
            for (int k = 0; k < R::kBuffers; ++k) leaf.put<T>(kDold + k, i, dold[k]);
            leaf.put<T>(kDparam, i, dnext - lr * (decay * dnext) + l2 * dg);
            leaf.put<T>(kDgrad, i, sign * dg);
        }
        if (kScalarsToo) {  // the same row at every run: no atomics, no other order
            for (int k = 0; k < kOuterScalars + R::kScalars; ++k) {
                const double sum = block_sum(sums[k]);
                if (threadIdx.x == 0) partials[std::int64_t(chunk) * kAllScalars + k] += sum;
            }
        }
    }
}

// ---- launching ------------------------------------------------------------------------------------

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    throw std::runtime_error(std::string("optcore_accel: ") + what + ": " +
                             cudaGetErrorString(status));
}

class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = device != before_;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

struct Columns {
    const Column* of[kSlots] = {};

    explicit Columns(const Job& job) {
        of[kParam] = &job.param;
        of[kGrad] = &job.grad;
        of[kOut] = &job.out;
        for (int k = 0; k < kMaxBuffers; ++k) {
            of[kOld + k] = &job.old[k];
            of[kFresh + k] = &job.fresh[k];
        }
    }
    explicit Columns(const BackwardJob& job) : Columns(static_cast<const Job&>(job)) {
        of[kDparam] = &job.dparam;
        of[kDgrad] = &job.dgrad;
        for (int k = 0; k < kMaxBuffers; ++k) of[kDold + k] = &job.dold[k];
    }
};

Launch empty_launch(const Columns& columns) {
    Launch launch = {};
    for (int slot = 0; slot < kSlots; ++slot) {
        const Column* column = columns.of[slot];
        const bool present = column != nullptr && column->present();
        launch.place[slot] = present ? launch.columns++ : -1;
        launch.dtype[slot] = present ? column->dtype : Dtype::kFloat32;
    }
    return launch;
}

// Calls run(launch, extents, row) for as many leaves at a time as a launch can take.
template <typename Run>
void in_launches(const Job& job, const Columns& columns, bool out_is_param, Run&& run) {
    Launch launch = empty_launch(columns);
    launch.out_is_param = out_is_param;
    const int capacity = std::min(kMaxLeaves, kMaxPointers / std::max<int>(1, launch.columns));
    Extents extents = {};
    std::int64_t row = 0, pending = 0;
    const auto flush = [&] {
        if (launch.leaves == 0) return;
        run(launch, extents, row);
        row += pending;
        pending = 0;
        launch.leaves = 0;
    };
    for (std::size_t leaf = 0; leaf < job.sizes.size(); ++leaf) {
        const std::int64_t chunks = chunks_of(job.sizes[leaf]);
        if (chunks == 0) continue;
        if (chunks > (1LL << 30)) throw std::runtime_error("optcore_accel: tensor too large");
        if (launch.leaves == capacity || pending + chunks > (1LL << 30)) flush();
        const int place = launch.leaves++;
        for (int slot = 0; slot < kSlots; ++slot) {
            if (launch.place[slot] < 0) continue;
            launch.pointers[place * launch.columns + launch.place[slot]] =
                columns.of[slot]->data[leaf];
        }
        extents.sizes[place] = job.sizes[leaf];
        launch.first[place] = static_cast<std::int32_t>(pending);
        pending += chunks;
        launch.first[place + 1] = static_cast<std::int32_t>(pending);
    }
    flush();
}

int grid_of(const Launch& launch) {
    return std::min(launch.first[launch.leaves], 1 << 16);  // the kernels stride over the rest
}

Scalars scalars_of(const Job& job) {
    Scalars scalars;
    for (int k = 0; k < kAllScalars; ++k) scalars.source[k] = job.scalars[k];
    scalars.count = job.count;
    return scalars;
}

}  // namespace

void launch(const Job& job, int device_index, std::uintptr_t stream_handle) {
    const DeviceGuard guard(device_index);
    const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
    const Scalars scalars = scalars_of(job);
    const auto run = [&](const Launch& launch, const Extents& extents, std::int64_t) {
        visit(job.rule, [&](auto rule) {
            using R = decltype(rule);
            const int grid = grid_of(launch);
            if (job.wide) {
                step_kernel<R, double><<<grid, kThreads, 0, stream>>>(launch, extents, scalars);
            } else {
                step_kernel<R, float><<<grid, kThreads, 0, stream>>>(launch, extents, scalars);
            }
        });
        check(cudaGetLastError(), "launch of a step");
    };
    in_launches(job, Columns(job), job.param.present(), run);
}

void launch(const BackwardJob& job, int device_index, std::uintptr_t stream_handle) {
    const DeviceGuard guard(device_index);
    const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
    const Scalars scalars = scalars_of(job);
    const auto run = [&](const Launch& launch, const Extents& extents, std::int64_t row) {
        double* partials = job.partials == nullptr ? nullptr : job.partials + row * kAllScalars;
        visit(job.rule, [&](auto rule) {
            using R = decltype(rule);
            const int grid = grid_of(launch);
            const auto start = [&](auto kernel) {
                kernel<<<grid, kThreads, 0, stream>>>(launch, extents, scalars, partials);
            };
            if (partials != nullptr) {
                job.wide ? start(backward_kernel<R, double, true>)
                         : start(backward_kernel<R, float, true>);
            } else {
                job.wide ? start(backward_kernel<R, double, false>)
                         : start(backward_kernel<R, float, false>);
            }
        });
        check(cudaGetLastError(), "launch of a backward step");
    };
    in_launches(job, Columns(job), job.out_is_param, run);
}

DeviceCount device_count() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess) return {count, ""};
    cudaGetLastError();  // forget it
    return {0, cudaGetErrorString(status)};
}

std::string refusal(int device_index) {
    const DeviceGuard guard(device_index);
    cudaFuncAttributes attributes;  // there are some only where code for this GPU can be loaded
    const cudaError_t status = cudaFuncGetAttributes(&attributes, step_kernel<Descent, float>);
    if (status == cudaSuccess) return "";
    cudaGetLastError();
    return cudaGetErrorString(status);
}

}  // namespace optcore
