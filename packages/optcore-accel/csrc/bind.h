// SPDX-License-Identifier: Apache-2.0
// What both modules do with lists of tensors before a kernel runs: read, check, refuse.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "job.h"
#include "tensors.h"

namespace optcore {

// Lists of tensors, one list a column; None for an absent column, None in it for an absent leaf.
class Arguments {
  public:
    Arguments(const TensorReader& reader, DeviceType device) : reader_(reader), device_(device) {}

    // Reads a column. Every leaf has to look like the one of the columns read before.
    void column(const char* name, py::handle list, Column* column, bool written);

    // Leaves whose columns do not share one dense layout, which a kernel needs.
    const std::vector<Py_ssize_t>& uneven() const { return uneven_; }

    const std::vector<std::int64_t>& sizes() const { return sizes_; }
    int device_index() const { return first_.empty() ? 0 : first_[0].device_index; }
    bool is_wide() const { return wide_; }

    // Raises ValueError where something that is written overlaps anything else.
    void refuse_overlaps() const;

  private:
    struct Stretch {
        char *begin, *end;
        const char* name;
        Py_ssize_t leaf;
        bool written;
    };

    const TensorReader& reader_;
    DeviceType device_;
    bool wide_ = false;
    std::vector<TensorView> first_;  // of each leaf
    std::vector<std::int64_t> sizes_;
    std::vector<Stretch> stretches_;
    std::vector<Py_ssize_t> uneven_;
};

// Numbers, or 0-d tensors: those of the CPU are read here, others by the kernel.
void read_scalars(const TensorReader& reader, py::handle sequence, DeviceType device,
                  int device_index, ScalarSource* scalars);

}  // namespace optcore
