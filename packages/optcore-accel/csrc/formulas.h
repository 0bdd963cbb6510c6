// SPDX-License-Identifier: Apache-2.0
// The rules of the optimizers, one element at a time: written once, run by CPU and CUDA loops.
//
// A rule turns a gradient g and its old buffers into an update u and fresh buffers, with constants
// made of scalars (doubles). `backward` gets the cotangents of u and of the fresh buffers, and gives
// those of g, of the old buffers and of every scalar. Scalars that depend on the step count, such
// as bias corrections, are differentiated by the caller, who then gives them ready; where nothing is
// differentiated, `at_count` makes them of the hyperparameters, which stand in their place.
#pragma once

#include <cmath>
#include <limits>

#ifdef __CUDACC__
#define OPTCORE_INLINE __host__ __device__ __forceinline__
#else
#define OPTCORE_INLINE inline __attribute__((always_inline))
#endif

namespace optcore {

constexpr int kMaxBuffers = 3;
constexpr int kMaxScalars = 6;  // of a rule

// ---- roots -----------------------------------------------------------------------------------

// Below the smallest normal number a square counts as constant: its root has derivative 0 there.
template <typename T>
OPTCORE_INLINE constexpr T floor_of() {
    return sizeof(T) == 4 ? static_cast<T>(1.1754943508222875e-38)
                          : static_cast<T>(2.2250738585072014e-308);
}

template <typename T>
OPTCORE_INLINE T safe_sqrt(T square) {
    return std::sqrt(square < floor_of<T>() ? floor_of<T>() : square);
}

// The derivative of safe_sqrt, given its value.
template <typename T>
OPTCORE_INLINE T safe_sqrt_slope(T square, T root) {
    return square < floor_of<T>() ? T(0) : T(0.5) / root;
}

// ---- descent: u = g --------------------------------------------------------------------------

struct Descent {
    static constexpr int kBuffers = 0;
    static constexpr int kScalars = 0;

    OPTCORE_INLINE static void at_count(double, double*) {}

    template <typename T>
    struct Constants {
        OPTCORE_INLINE explicit Constants(const double*) {}
    };

    template <typename T>
    OPTCORE_INLINE static void forward(const Constants<T>&, T g, const T*, T*, T* u) {
        *u = g;
    }

    template <typename T>
    OPTCORE_INLINE static void backward(const Constants<T>&, T, const T*, T du, const T*, T* dg, T*,
                                        T*) {
        *dg = du;
    }
};

// ---- Adam ------------------------------------------------------------------------------------
//   mu' = b1 mu + (1 - b1) g,   nu' = b2 nu + (1 - b2) g^2,   u = k mu' / (sqrt(s + r) + e)
// with s = nu', or for AMSGrad s = max' = max(max, nu'); e, r and k hold the bias corrections.

template <bool kMaximum>
struct Moments {
    static constexpr int kBuffers = kMaximum ? 3 : 2;
    static constexpr int kScalars = 5;

    // b1, b2, eps, eps_root
    OPTCORE_INLINE static void at_count(double count, double* s) {
        const double first = 1 - std::pow(s[0], count), second = 1 - std::pow(s[1], count);
        const double root = std::sqrt(second);
        s[2] *= root;
        s[3] *= second;
        s[4] = root / first;
    }

    template <typename T>
    struct Constants {
        T b1, w1, b2, w2, e, r, k;
        // 1 - b in double: in single precision it would lose the digits of b
        OPTCORE_INLINE explicit Constants(const double* s)
            : b1(T(s[0])), w1(T(1 - s[0])), b2(T(s[1])), w2(T(1 - s[1])), e(T(s[2])), r(T(s[3])),
              k(T(s[4])) {}
    };

    template <typename T>
    OPTCORE_INLINE static void forward(const Constants<T>& c, T g, const T* old, T* fresh, T* u) {
        fresh[0] = c.b1 * old[0] + c.w1 * g;
        fresh[1] = c.b2 * old[1] + c.w2 * g * g;
        T square = fresh[1];
        if (kMaximum) {
            const T before = old[kBuffers - 1];
            square = before > square || before != before ? before : square;  // NaN stays NaN
            fresh[kBuffers - 1] = square;
        }
        *u = fresh[0] / (safe_sqrt(square + c.r) + c.e) * c.k;
    }

    template <typename T>
    OPTCORE_INLINE static void backward(const Constants<T>& c, T g, const T* old, T du,
                                        const T* dfresh, T* dg, T* dold, T* ds) {
        const T mu = c.b1 * old[0] + c.w1 * g;
        const T nu = c.b2 * old[1] + c.w2 * g * g;
        T square = nu;
        T to_old = 0, to_nu = 1;  // of a maximum
        if (kMaximum) {
            const T before = old[kBuffers - 1];
            to_old = before > nu ? T(1) : before < nu ? T(0) : T(0.5);
            to_nu = T(1) - to_old;
            square = before > nu || before != before ? before : nu;
        }
        const T root = safe_sqrt(square + c.r);
        const T inverse = T(1) / (root + c.e);
        const T plain = mu * inverse;  // u without k
        const T slope = -du * c.k * plain * inverse;
        const T under = slope * safe_sqrt_slope(square + c.r, root);
        T dsquare = under;
        if (kMaximum) dsquare += dfresh[kBuffers - 1];
        const T dmu = dfresh[0] + du * c.k * inverse;
        const T dnu = dfresh[1] + dsquare * to_nu;
        *dg = c.w1 * dmu + c.w2 * (g + g) * dnu;
        dold[0] = c.b1 * dmu;
        dold[1] = c.b2 * dnu;
        if (kMaximum) dold[kBuffers - 1] = dsquare * to_old;
        ds[0] = dmu * (old[0] - g);
        ds[1] = dnu * (old[1] - g * g);
        ds[2] = slope;
        ds[3] = under;
        ds[4] = du * plain;
    }
};

using Adam = Moments<false>;
using AMSGrad = Moments<true>;

// ---- momentum: b' = d b + s g,   u = b'  or  g + d b' ------------------------------------------

struct Trace {
    static constexpr int kBuffers = 1;
    static constexpr int kScalars = 3;  // decay, share of the gradient, 1 for Nesterov

    // decay, dampening, nesterov: the first gradient enters undamped
    OPTCORE_INLINE static void at_count(double count, double* s) { s[1] = count > 1 ? 1 - s[1] : 1; }

    template <typename T>
    struct Constants {
        T decay, share;
        bool nesterov;
        OPTCORE_INLINE explicit Constants(const double* s)
            : decay(T(s[0])), share(T(s[1])), nesterov(s[2] != 0) {}
    };

    template <typename T>
    OPTCORE_INLINE static void forward(const Constants<T>& c, T g, const T* old, T* fresh, T* u) {
        fresh[0] = c.decay * old[0] + c.share * g;
        *u = c.nesterov ? g + c.decay * fresh[0] : fresh[0];
    }

    template <typename T>
    OPTCORE_INLINE static void backward(const Constants<T>& c, T g, const T* old, T du,
                                        const T* dfresh, T* dg, T* dold, T* ds) {
        const T direct = c.nesterov ? du : T(0);
        const T through = c.nesterov ? c.decay * du : du;
        const T dbuffer = dfresh[0] + through;
        *dg = direct + c.share * dbuffer;
        dold[0] = c.decay * dbuffer;
        ds[0] = dbuffer * old[0] + direct * (c.decay * old[0] + c.share * g);
        ds[1] = dbuffer * g;
        ds[2] = 0;
    }
};

// ---- division by a root ------------------------------------------------------------------------
//   nu' = d nu + (1 - d) g^2,   u = g / (sqrt(s + r) + e)
// with s = nu', or centred: mu' = d mu + (1 - d) g, s = max(nu' - mu'^2, 0).

template <bool kCentred>
struct Rms {
    static constexpr int kBuffers = kCentred ? 2 : 1;
    static constexpr int kScalars = 3;  // decay, eps, eps_root

    OPTCORE_INLINE static void at_count(double, double*) {}

    template <typename T>
    struct Constants {
        T decay, weight, e, r;
        OPTCORE_INLINE explicit Constants(const double* s)
            : decay(T(s[0])), weight(T(1 - s[0])), e(T(s[1])), r(T(s[2])) {}
    };

    template <typename T>
    OPTCORE_INLINE static void forward(const Constants<T>& c, T g, const T* old, T* fresh, T* u) {
        const T nu = c.decay * old[kBuffers - 1] + c.weight * g * g;
        fresh[kBuffers - 1] = nu;
        T square = nu;
        if (kCentred) {
            fresh[0] = c.decay * old[0] + c.weight * g;
            square = nu - fresh[0] * fresh[0];
            square = square < T(0) ? T(0) : square;
        }
        *u = g / (safe_sqrt(square + c.r) + c.e);
    }

    template <typename T>
    OPTCORE_INLINE static void backward(const Constants<T>& c, T g, const T* old, T du,
                                        const T* dfresh, T* dg, T* dold, T* ds) {
        const T nu = c.decay * old[kBuffers - 1] + c.weight * g * g;
        T mu = 0, square = nu, open = 1;  // open: the variance is not cut at 0
        if (kCentred) {
            mu = c.decay * old[0] + c.weight * g;
            square = nu - mu * mu;
            open = square < T(0) ? T(0) : T(1);
            square = square < T(0) ? T(0) : square;
        }
        const T root = safe_sqrt(square + c.r);
        const T inverse = T(1) / (root + c.e);
        const T slope = -du * g * inverse * inverse;
        const T under = slope * safe_sqrt_slope(square + c.r, root);
        const T dsquare = under * open;
        const T dnu = dfresh[kBuffers - 1] + dsquare;
        T dg_sum = du * inverse + c.weight * (g + g) * dnu;
        dold[kBuffers - 1] = c.decay * dnu;
        ds[0] = dnu * (old[kBuffers - 1] - g * g);
        if (kCentred) {
            const T dmu = dfresh[0] - (mu + mu) * dsquare;
            dg_sum += c.weight * dmu;
            dold[0] = c.decay * dmu;
            ds[0] += dmu * (old[0] - g);
        }
        *dg = dg_sum;
        ds[1] = slope;
        ds[2] = under;
    }
};

// ---- Adagrad: t' = t + g^2,   u = k g / (sqrt(t' + r) + e) -------------------------------------

struct Rss {
    static constexpr int kBuffers = 1;
    static constexpr int kScalars = 3;  // eps, eps_root, k

    // eps, eps_root, decay of the learning rate
    OPTCORE_INLINE static void at_count(double count, double* s) { s[2] = 1 / (1 + (count - 1) * s[2]); }

    template <typename T>
    struct Constants {
        T e, r, k;
        OPTCORE_INLINE explicit Constants(const double* s) : e(T(s[0])), r(T(s[1])), k(T(s[2])) {}
    };

    template <typename T>
    OPTCORE_INLINE static void forward(const Constants<T>& c, T g, const T* old, T* fresh, T* u) {
        fresh[0] = old[0] + g * g;
        *u = g / (safe_sqrt(fresh[0] + c.r) + c.e) * c.k;
    }

    template <typename T>
    OPTCORE_INLINE static void backward(const Constants<T>& c, T g, const T* old, T du,
                                        const T* dfresh, T* dg, T* dold, T* ds) {
        const T square = old[0] + g * g + c.r;
        const T root = safe_sqrt(square);
        const T inverse = T(1) / (root + c.e);
        const T slope = -du * c.k * g * inverse * inverse;
        const T under = slope * safe_sqrt_slope(square, root);
        const T dtotal = dfresh[0] + under;
        *dg = du * c.k * inverse + (g + g) * dtotal;
        dold[0] = dtotal;
        ds[0] = slope;
        ds[1] = under;
        ds[2] = du * g * inverse;
    }
};

// ---- Lion: u = sign(b1 mu + (1 - b1) g),   mu' = b2 mu + (1 - b2) g ----------------------------

struct Lion {
    static constexpr int kBuffers = 1;
    static constexpr int kScalars = 2;

    OPTCORE_INLINE static void at_count(double, double*) {}

    template <typename T>
    struct Constants {
        T b1, w1, b2, w2;
        OPTCORE_INLINE explicit Constants(const double* s)
            : b1(T(s[0])), w1(T(1 - s[0])), b2(T(s[1])), w2(T(1 - s[1])) {}
    };

    template <typename T>
    OPTCORE_INLINE static void forward(const Constants<T>& c, T g, const T* old, T* fresh, T* u) {
        const T direction = c.b1 * old[0] + c.w1 * g;
        *u = direction > T(0) ? T(1) : direction < T(0) ? T(-1) : T(0);  // NaN gives 0, as in torch
        fresh[0] = c.b2 * old[0] + c.w2 * g;
    }

    template <typename T>
    OPTCORE_INLINE static void backward(const Constants<T>& c, T g, const T* old, T, const T* dfresh,
                                        T* dg, T* dold, T* ds) {
        *dg = c.w2 * dfresh[0];
        dold[0] = c.b2 * dfresh[0];
        ds[0] = 0;
        ds[1] = dfresh[0] * (old[0] - g);
    }
};

// ---- one rule after the other: RMSProp with momentum -------------------------------------------

template <typename First, typename Second>
struct Then {
    static constexpr int kBuffers = First::kBuffers + Second::kBuffers;
    static constexpr int kScalars = First::kScalars + Second::kScalars;

    OPTCORE_INLINE static void at_count(double count, double* s) {
        First::at_count(count, s);
        Second::at_count(count, s + First::kScalars);
    }

    template <typename T>
    struct Constants {
        typename First::template Constants<T> first;
        typename Second::template Constants<T> second;
        OPTCORE_INLINE explicit Constants(const double* s)
            : first(s), second(s + First::kScalars) {}
    };

    template <typename T>
    OPTCORE_INLINE static void forward(const Constants<T>& c, T g, const T* old, T* fresh, T* u) {
        T between;
        First::template forward<T>(c.first, g, old, fresh, &between);
        Second::template forward<T>(c.second, between, old + First::kBuffers,
                                    fresh + First::kBuffers, u);
    }

    template <typename T>
    OPTCORE_INLINE static void backward(const Constants<T>& c, T g, const T* old, T du,
                                        const T* dfresh, T* dg, T* dold, T* ds) {
        T between, dbetween, unused[kMaxBuffers];
        First::template forward<T>(c.first, g, old, unused, &between);
        Second::template backward<T>(c.second, between, old + First::kBuffers, du,
                                     dfresh + First::kBuffers, &dbetween, dold + First::kBuffers,
                                     ds + First::kScalars);
        First::template backward<T>(c.first, g, old, dbetween, dfresh, dg, dold, ds);
    }
};

// ---- the rules by number -----------------------------------------------------------------------

enum class Rule : int {
    kDescent,
    kAdam,
    kAMSGrad,
    kTrace,
    kRms,
    kStddev,
    kRss,
    kLion,
    kRmsTrace,
    kStddevTrace,
    kCount,
};

// Calls visitor(R{}) with the rule's type.
template <typename Visitor>
void visit(Rule rule, Visitor&& visitor) {
    switch (rule) {
        case Rule::kDescent: return visitor(Descent{});
        case Rule::kAdam: return visitor(Adam{});
        case Rule::kAMSGrad: return visitor(AMSGrad{});
        case Rule::kTrace: return visitor(Trace{});
        case Rule::kRms: return visitor(Rms<false>{});
        case Rule::kStddev: return visitor(Rms<true>{});
        case Rule::kRss: return visitor(Rss{});
        case Rule::kLion: return visitor(Lion{});
        case Rule::kRmsTrace: return visitor(Then<Rms<false>, Trace>{});
        case Rule::kStddevTrace: return visitor(Then<Rms<true>, Trace>{});
        case Rule::kCount: return;
    }
}

}  // namespace optcore
