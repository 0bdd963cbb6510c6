// SPDX-License-Identifier: Apache-2.0
// Reading torch tensors without torch's headers: pointers, sizes and strides of lists of them.
//
// Where torch offers DLPack's table of C functions, a tensor costs some nanoseconds; elsewhere its
// Python methods are called. Both give the same answers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "job.h"

namespace optcore {

namespace py = pybind11;

enum class DeviceType : int { kCpu = 1, kCuda = 2 };

// Where a tensor stands, for errors: in the words of `where(name, column, leaf)`, if there is such a
// function, else as name[leaf].
struct Place {
    py::handle where;
    const char* name;
    int column;  // among those of the name
    Py_ssize_t leaf;

    std::string text() const;
};

// What is known of one tensor; valid while nobody else touches it.
struct TensorView {
    char* data = nullptr;
    Dtype dtype = Dtype::kFloat32;
    int device_type = 0;
    int device_index = 0;
    int ndim = 0;
    const std::int64_t* shape = nullptr;
    const std::int64_t* strides = nullptr;
    std::int64_t size = 0;
    std::vector<std::int64_t> own;  // memory of shape and strides, where nobody else has it

    bool is_dense() const;  // elements fill one stretch of memory, each has a place of its own
    bool may_overlap_itself() const;  // decided like share_memory
    bool same_shape(const TensorView& other) const;
    bool same_layout(const TensorView& other) const;  // of the same shape
    std::string describe() const;
    char* end() const;  // past the last byte that it reaches
};

// Whether a byte belongs to both, decided exactly (but for strides that make it a long search, where
// the answer is yes).
bool share_memory(const TensorView& a, const TensorView& b);

class TensorReader {
  public:
    // `torch` is the module. Raises what importing and looking up raise.
    explicit TensorReader(const py::object& torch);

    // Raises TypeError for what is no plain dense tensor of a supported dtype.
    void read(PyObject* object, const Place& place, TensorView* view) const;

    // Whether the C functions are used; for tests.
    bool uses_exchange() const { return from_py_object_ != nullptr; }
    void forget_exchange() { from_py_object_ = nullptr; }

  private:
    bool read_by_exchange(PyObject* object, TensorView* view) const;
    void read_by_methods(PyObject* object, TensorView* view) const;

    py::object tensor_type_, parameter_type_, strided_;
    py::object dtypes_[4];
    int (*from_py_object_)(void*, void*) = nullptr;
};

}  // namespace optcore
