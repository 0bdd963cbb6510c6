// SPDX-License-Identifier: Apache-2.0
#include "stack.h"

#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#else
#include <pthread.h>
#endif

#include "errors.h"

namespace treeops {

namespace {

struct StackRange {
    std::uintptr_t low = 0;
    std::uintptr_t high = 0;
    bool known = false;
};

StackRange find_stack_range() {
    StackRange range;
    range.known = true;  // asked once, even if there is no answer
#if defined(_WIN32)
    ULONG_PTR low = 0;
    ULONG_PTR high = 0;
    GetCurrentThreadStackLimits(&low, &high);
    range.low = low;
    range.high = high;
#elif defined(__APPLE__)
    const pthread_t self = pthread_self();
    range.high = reinterpret_cast<std::uintptr_t>(pthread_get_stackaddr_np(self));
    range.low = range.high - pthread_get_stacksize_np(self);
#elif defined(__linux__)
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) return range;
    void* low = nullptr;
    std::size_t size = 0;
    if (pthread_attr_getstack(&attributes, &low, &size) == 0) {
        range.low = reinterpret_cast<std::uintptr_t>(low);
        range.high = range.low + size;
    }
    pthread_attr_destroy(&attributes);
#endif
    return range;
}

}  // namespace

std::uintptr_t stack_floor() {
    constexpr std::uintptr_t kLeast = 16u << 10;
    constexpr std::uintptr_t kMost = 256u << 10;
    // The one thing not kept in State: it belongs to the thread, and finding it reads a file.
    static thread_local StackRange range;
    if (!range.known) range = find_stack_range();
    const auto here = TREEOPS_STACK_ADDRESS();
    if (here < range.low || here >= range.high) return 0;  // some library switched stacks
    return range.low + std::clamp((range.high - range.low) / 8, kLeast, kMost);
}

void raise_small_stack() {
    raise(PyExc_RecursionError,
          "treeops: expected room on the stack of this thread for a tree this deep, got a stack "
          "nearly full; use a thread with a larger one (threading.stack_size) or fewer nested "
          "calls");
}

}  // namespace treeops
