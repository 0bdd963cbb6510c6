// SPDX-License-Identifier: Apache-2.0
#include "bind.h"

#include <algorithm>
#include <cstring>

namespace optcore {

namespace {

std::string at(const Place& place) { return ", at " + place.text(); }

}  // namespace

Place Arguments::Stretch::place() const {
    const auto& [name, k] = call->columns_[column];
    return {call->where_, name, k, leaf};
}

TensorView Arguments::Stretch::view() const {
    TensorView view;
    call->reader_.read(tensor, place(), &view);
    return view;
}

void Arguments::column(const char* name, int k, py::handle list, Column* column, bool written) {
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
    columns_.emplace_back(name, k);
    bool any = false;
    TensorView scratch;
    for (Py_ssize_t leaf = 0; leaf < count; ++leaf) {
        PyObject* item = PyList_GET_ITEM(items, leaf);
        if (item == Py_None && !leads) {
            column->data[leaf] = nullptr;
            continue;
        }
        TensorView& view = leads ? first_[leaf] : scratch;
        const Place place = {where_, name, k, leaf};
        reader_.read(item, place, &view);
        if (view.device_type != static_cast<int>(device_) ||
            view.device_index != first_[0].device_index) {
            throw py::value_error(
                std::string("expected tensors on one ") +
                (device_ == DeviceType::kCpu ? "cpu" : "cuda device") + ", got " + view.describe() +
                " beside " + first_[0].describe() + at(place));
        }
        if (!any) column->dtype = view.dtype;
        any = true;
        if (view.dtype != column->dtype) {
            throw py::value_error("expected one dtype in " + std::string(name) + ", got " +
                                  view.describe() + " after another" + at(place));
        }
        if (leads) {
            sizes_[leaf] = view.size;
            if (!view.is_dense()) uneven_.push_back(leaf);
        } else if (!view.same_shape(first_[leaf])) {
            throw py::value_error("expected a tensor like " + first_[leaf].describe() + ", got " +
                                  view.describe() + at(place));
        } else if (!view.same_layout(first_[leaf])) {
            if (uneven_.empty() || uneven_.back() != leaf) uneven_.push_back(leaf);
        }
        column->data[leaf] = view.data;
        if (view.size == 0) continue;
        // a dense leaf, or one that lies like it, needs no closer look
        const bool dense = uneven_.empty() || uneven_.back() != leaf;
        if (written && !dense && view.may_overlap_itself()) {
            throw py::value_error("expected memory of its own for every element that is written, "
                                  "got a view that overlaps itself, " +
                                  view.describe() + at(place) + "; clone it");
        }
        const auto place_of_column = static_cast<std::int16_t>(columns_.size() - 1);
        stretches_.push_back({view.data, view.end(), item, this, static_cast<std::int32_t>(leaf),
                              place_of_column, written});
    }
    wide_ = wide_ || (any && column->dtype == Dtype::kFloat64);
}

void Arguments::refuse_overlaps(const std::vector<const Arguments*>& calls) {
    std::vector<Start> sorted;
    std::size_t count = 0;
    for (const Arguments* call : calls) count += call->stretches_.size();
    sorted.reserve(count);
    for (const Arguments* call : calls) {
        for (const Stretch& each : call->stretches_) sorted.push_back({each.begin, &each});
    }
    std::sort(sorted.begin(), sorted.end(),
              [](const Start& a, const Start& b) { return a.begin < b.begin; });
    const char *reached = nullptr, *written = nullptr;  // the farthest end so far, of what is written
    for (const Start& start : sorted) {
        const Stretch& each = *start.of;
        if (each.begin < (each.written ? reached : written)) return refuse_shared(sorted);
        reached = std::max<const char*>(reached, each.end);
        if (each.written) written = std::max<const char*>(written, each.end);
    }
}

// Of stretches some of which meet: those whose views have a byte in common.
void Arguments::refuse_shared(const std::vector<Start>& sorted) {
    struct Open {
        const Stretch* stretch;
        TensorView view;
    };
    std::vector<Open> open;  // those that reach to where the next one begins
    for (const Start& start : sorted) {
        const Stretch& each = *start.of;
        const auto closed = [&](const Open& other) { return other.stretch->end <= each.begin; };
        open.erase(std::remove_if(open.begin(), open.end(), closed), open.end());
        TensorView view = each.view();
        for (const Open& other : open) {
            if (!each.written && !other.stretch->written) continue;
            if (share_memory(other.view, view)) {
                throw py::value_error("expected tensors that do not share memory, got " +
                                      other.stretch->place().text() + " over " +
                                      each.place().text() + "; clone one of them");
            }
        }
        open.push_back({&each, std::move(view)});
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
        scalars[k] = {};
        if (PyFloat_Check(item.ptr())) {
            scalars[k].value = PyFloat_AS_DOUBLE(item.ptr());
            continue;
        }
        TensorView view;
        const Place place = {py::handle(), "scalars", 0, static_cast<Py_ssize_t>(k)};
        reader.read(item.ptr(), place, &view);
        if (view.ndim != 0) {
            throw py::value_error("expected a scalar tensor, got " + view.describe() +
                                  at(place));
        }
        if (view.device_type == static_cast<int>(DeviceType::kCpu)) {
            scalars[k].value = item.attr("item")().cast<double>();
        } else if (device == DeviceType::kCuda && view.device_index == device_index) {
            scalars[k].device_pointer = view.data;
            scalars[k].dtype = view.dtype;
        } else {
            throw py::value_error("expected a scalar on the device of the tensors, got " +
                                  view.describe() + at(place));
        }
    }
}

}  // namespace optcore
