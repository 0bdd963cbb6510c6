// SPDX-License-Identifier: Apache-2.0
// Walks recurse: a thread with a small stack gets an error where it would have crashed.
#pragma once

#include "python.h"
#include "treespec.h"

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace treeops {

// Where the stack of the function that asks is.
#if defined(_MSC_VER)
#define TREEOPS_STACK_ADDRESS() reinterpret_cast<std::uintptr_t>(_AddressOfReturnAddress())
#else
#define TREEOPS_STACK_ADDRESS() reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0))
#endif

// The address down to which walks of this thread may use its stack; a margin below it is left for
// what they call. 0, which lets everything pass, where the stack is not known.
std::uintptr_t stack_floor();

[[noreturn]] void raise_small_stack();

// Asked once per level of a walk.
class StackGuard {
  public:
    StackGuard() : floor_(stack_floor()) {}
    // For walks of nodes: few of them cannot be deep.
    explicit StackGuard(const Node* root)
        : floor_(root->num_nodes > kFewNodes ? stack_floor() : 0) {}

    void check() const {
        if (TREEOPS_STACK_ADDRESS() < floor_) raise_small_stack();
    }

  private:
    static constexpr std::uint32_t kFewNodes = 64;
    std::uintptr_t floor_;
};

}  // namespace treeops
