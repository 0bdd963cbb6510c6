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
    // `where` says in errors where a tensor stands; see Place.
    Arguments(const TensorReader& reader, DeviceType device, py::object where)
        : reader_(reader), device_(device), where_(std::move(where)) {}

    // Reads a column, the k-th of that name. Every leaf has to look like the one of the columns read
    // before. The list and its tensors have to live as long as this.
    void column(const char* name, int k, py::handle list, Column* column, bool written);

    // Leaves whose columns do not share one dense layout, which a kernel needs.
    const std::vector<Py_ssize_t>& uneven() const { return uneven_; }

    const std::vector<std::int64_t>& sizes() const { return sizes_; }
    int device_index() const { return first_.empty() ? 0 : first_[0].device_index; }
    bool is_wide() const { return wide_; }

    // Raises ValueError where something that is written overlaps anything else, of any of the calls.
    static void refuse_overlaps(const std::vector<const Arguments*>& calls);

  private:
    struct Stretch {
        char *begin, *end;
        PyObject* tensor;
        const Arguments* call;
        std::int32_t leaf;
        std::int16_t column;
        bool written;

        Place place() const;
        TensorView view() const;
    };

    struct Start {
        const char* begin;
        const Stretch* of;
    };

    static void refuse_shared(const std::vector<Start>& sorted);

    const TensorReader& reader_;
    DeviceType device_;
    py::object where_;
    bool wide_ = false;
    std::vector<TensorView> first_;  // of each leaf
    std::vector<std::int64_t> sizes_;
    std::vector<std::pair<const char*, int>> columns_;
    std::vector<Stretch> stretches_;
    std::vector<Py_ssize_t> uneven_;
};

// Numbers, or 0-d tensors: those of the CPU are read here, others by the kernel.
void read_scalars(const TensorReader& reader, py::handle sequence, DeviceType device,
                  int device_index, ScalarSource* scalars);

}  // namespace optcore
