// SPDX-License-Identifier: Apache-2.0
#include "bind.h"

#include <algorithm>
#include <cstring>

namespace optcore {

namespace {

std::string at(const char* name, Py_ssize_t leaf) {
    return ", at " + std::string(name) + "[" + std::to_string(leaf) + "]";
}

int bytes_of(Dtype dtype) {
    return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// Past the last byte that a view reaches.
char* end_of(const TensorView& view) {
    if (view.size == 0) return view.data;
    std::int64_t last = 0;
    for (int axis = 0; axis < view.ndim; ++axis) last += (view.shape[axis] - 1) * view.strides[axis];
    return view.data + (last + 1) * bytes_of(view.dtype);
}

}  // namespace

void Arguments::column(const char* name, py::handle list, Column* column, bool written) {
    if (list.is_none()) return;
    PyObject* items = list.ptr();
    if (!PyList_Check(items)) {
        throw py::type_error("expected a list of tensors as " + std::string(name) + ", got " +
                             Py_TYPE(items)->tp_name);
    }
    const Py_ssize_t count = PyList_GET_SIZE(items);
    const bool leads = first_.empty() && sizes_.empty();
    if (!leads && count != static_cast<Py_ssize_t>(first_.size())) {
        throw py::value_error("expected " + std::to_string(first_.size()) + " tensors as " + name +
                              ", got " + std::to_string(count));
    }
    if (leads) {
        first_.resize(count);
        sizes_.resize(count);
    }
    column->data.resize(count);
    bool any = false;
    TensorView scratch;
    for (Py_ssize_t leaf = 0; leaf < count; ++leaf) {
        PyObject* item = PyList_GET_ITEM(items, leaf);
        if (item == Py_None && !leads) {
            column->data[leaf] = nullptr;
            continue;
        }
        TensorView& view = leads ? first_[leaf] : scratch;
        reader_.read(item, name, leaf, &view);
        if (view.device_type != static_cast<int>(device_) ||
            view.device_index != first_[0].device_index) {
            throw py::value_error(
                std::string("expected tensors on one ") +
                (device_ == DeviceType::kCpu ? "cpu" : "cuda device") + ", got " + view.describe() +
                " beside " + first_[0].describe() + at(name, leaf));
        }
        if (!any) column->dtype = view.dtype;
        any = true;
        if (view.dtype != column->dtype) {
            throw py::value_error("expected one dtype in " + std::string(name) + ", got " +
                                  view.describe() + " after another" + at(name, leaf));
        }
        if (leads) {
            sizes_[leaf] = view.size;
            if (!view.is_dense()) uneven_.push_back(leaf);
        } else if (!view.same_shape(first_[leaf])) {
            throw py::value_error("expected a tensor like " + first_[leaf].describe() + ", got " +
                                  view.describe() + at(name, leaf));
        } else if (!view.same_layout(first_[leaf])) {
            if (uneven_.empty() || uneven_.back() != leaf) uneven_.push_back(leaf);
        }
        column->data[leaf] = view.data;
        if (view.size == 0) continue;
        char* end = end_of(view);
        // a dense leaf, or one that lies like it, needs no closer look
        const bool dense = uneven_.empty() || uneven_.back() != leaf;
        if (written && !dense && view.may_overlap_itself()) {
            throw py::value_error("expected memory of its own for every element that is written, "
                                  "got a view that overlaps itself, " +
                                  view.describe() + at(name, leaf) + "; clone it");
        }
        stretches_.push_back({view.data, end, name, leaf, written});
    }
    wide_ = wide_ || (any && column->dtype == Dtype::kFloat64);
}

void Arguments::refuse_overlaps() const {
    std::vector<Stretch> sorted = stretches_;
    std::sort(sorted.begin(), sorted.end(),
              [](const Stretch& a, const Stretch& b) { return a.begin < b.begin; });
    const Stretch* reaching = nullptr;  // the one that reaches farthest so far
    const Stretch* writing = nullptr;   // the same among those that are written
    for (const Stretch& each : sorted) {
        const Stretch* other = each.written ? reaching : writing;
        if (other != nullptr && each.begin < other->end) {
            throw py::value_error("expected tensors that do not share memory, got " +
                                  std::string(other->name) + "[" + std::to_string(other->leaf) +
                                  "] over " + each.name + "[" + std::to_string(each.leaf) +
                                  "]; clone one of them");
        }
        if (reaching == nullptr || each.end > reaching->end) reaching = &each;
        if (each.written && (writing == nullptr || each.end > writing->end)) writing = &each;
    }
}

void read_scalars(const TensorReader& reader, py::handle sequence, DeviceType device,
                  int device_index, ScalarSource* scalars) {
    py::sequence given = py::reinterpret_borrow<py::sequence>(sequence);
    const std::size_t count = given.size();
    if (count > static_cast<std::size_t>(kAllScalars)) {
        throw py::value_error("expected at most " + std::to_string(kAllScalars) + " scalars, got " +
                              std::to_string(count));
    }
    for (std::size_t k = 0; k < count; ++k) {
        const py::object item = given[k];
        if (PyFloat_Check(item.ptr())) {
            scalars[k].value = PyFloat_AS_DOUBLE(item.ptr());
            continue;
        }
        TensorView view;
        reader.read(item.ptr(), "scalars", static_cast<Py_ssize_t>(k), &view);
        if (view.ndim != 0) {
            throw py::value_error("expected a scalar tensor, got " + view.describe() +
                                  at("scalars", static_cast<Py_ssize_t>(k)));
        }
        if (view.device_type == static_cast<int>(DeviceType::kCpu)) {
            scalars[k].value = item.attr("item")().cast<double>();
        } else if (device == DeviceType::kCuda && view.device_index == device_index) {
            scalars[k].device_pointer = view.data;
            scalars[k].dtype = view.dtype;
        } else {
            throw py::value_error("expected a scalar on the device of the tensors, got " +
                                  view.describe() + at("scalars", static_cast<Py_ssize_t>(k)));
        }
    }
}

}  // namespace optcore
