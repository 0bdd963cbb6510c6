// SPDX-License-Identifier: Apache-2.0
// The functions of the two modules; a module includes this after it has defined its device.
//
//   step(rule, scalars, param, grad, old, out, fresh, stream, where)
//   step_backward(rule, scalars, param, grad, old, steps, dout, dfresh, dparam, dgrad, dold,
//                 partials, stream, where)
//   prepare(rule, scalars, param, grad, old, out, where) -> Prepared, a step in place of the
//       parameters, or of the buffers alone with the update written to `out`; .uneven, then
//       .run(count, stream), which takes it as it is and lets go of the tensors
//     .again(scalars, param, grad, old, out) -> whether it is the next step now: what it writes lies where it lay
//   refuse_overlaps(prepared)
//   chunks(tensors)
//
// Columns are lists of tensors or None. The first two return None if the kernel ran, or, nothing
// done, the leaves whose columns do not lie alike in memory; `uneven` are those of a step in place.
// `where(name, column, leaf)` says in errors where a tensor stands.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "bind.h"

namespace optcore {

// On the CPU streams mean nothing.
void launch(const Job& job, int device_index, std::uintptr_t stream);
void launch(const BackwardJob& job, int device_index, std::uintptr_t stream);

namespace {

void read_columns(Arguments* arguments, const char* name, py::handle lists, Column* columns,
                  bool written) {
    if (lists.is_none()) return;
    py::sequence given = py::reinterpret_borrow<py::sequence>(lists);
    if (given.size() > static_cast<std::size_t>(kMaxBuffers)) {
        throw py::value_error("expected at most " + std::to_string(kMaxBuffers) + " columns as " +
                              name + ", got " + std::to_string(given.size()));
    }
    for (std::size_t k = 0; k < given.size(); ++k) {
        const py::object list = given[k];
        arguments->column(name, static_cast<int>(k), list, &columns[k], written);
    }
}

Rule rule_of(int number) {
    if (number < 0 || number >= static_cast<int>(Rule::kCount)) {
        throw py::value_error("expected a rule below " +
                              std::to_string(static_cast<int>(Rule::kCount)) + ", got " +
                              std::to_string(number));
    }
    return static_cast<Rule>(number);
}

void check_buffers(const Job& job) {
    visit(job.rule, [&](auto rule) {
        using R = decltype(rule);
        for (int k = 0; k < R::kBuffers; ++k) {
            if (!job.old[k].present()) throw py::value_error("expected more buffers for this rule");
        }
    });
}

py::object listed(const std::vector<Py_ssize_t>& leaves) {
    py::list found;
    for (Py_ssize_t leaf : leaves) found.append(leaf);
    return found;
}

// A number, or an int64 tensor in the memory of the device, which the caller has looked at.
CountSource count_of(py::handle count) {
    CountSource source;
    source.given = true;
    if (PyFloat_Check(count.ptr())) {
        source.value = PyFloat_AS_DOUBLE(count.ptr());
    } else {
        source.device_pointer = reinterpret_cast<const std::int64_t*>(
            count.attr("data_ptr")().cast<std::uintptr_t>());
    }
    return source;
}

// A step in place, read and checked: what runs must be what was read. Tensors are held from there to
// there only: Python's garbage collector cannot see them here.
class Prepared {
  public:
    Prepared(const TensorReader& reader, DeviceType device, int rule, py::object where)
        : reader_(reader), device_(device), where_(std::move(where)) {
        job_.rule = rule_of(rule);
    }

    void read(py::handle scalars, py::handle param, py::handle grad, py::handle old,
              py::handle out) {
        tensors_ = py::object();  // what fails to be read cannot be run
        arguments_.emplace(reader_, device_, where_);
        arguments_->column("params", 0, param, &job_.param, true);
        arguments_->column("grads", 0, grad, &job_.grad, false);
        read_columns(&*arguments_, "buffers", old, job_.old, true);
        arguments_->column("updates", 0, out, &job_.out, true);
        check_buffers(job_);
        if (out.is_none()) job_.out = job_.param;
        for (int k = 0; k < kMaxBuffers; ++k) job_.fresh[k] = job_.old[k];
        job_.sizes = arguments_->sizes();
        job_.wide = arguments_->is_wide();
        read_scalars(reader_, scalars, device_, arguments_->device_index(), job_.scalars);
        tensors_ = py::make_tuple(param, grad, old, out);
    }

    bool reads_the_same(py::handle scalars, py::handle param, py::handle grad, py::handle old,
                        py::handle out) {
        const std::vector<char*> before = places();
        read(scalars, param, grad, old, out);
        return before == places();
    }

    void run(py::handle count, std::uintptr_t stream) {
        if (!arguments().uneven().empty()) {
            throw py::value_error("expected columns that lie alike; run a copy");
        }
        job_.count = count_of(count);
        const py::object alive = std::move(tensors_);  // nobody else may run it meanwhile
        py::gil_scoped_release others_may_run;
        launch(job_, arguments_->device_index(), stream);
    }

    const Arguments& arguments() const {
        if (!tensors_) {
            throw py::value_error("expected a step that was not taken yet; read it again");
        }
        return *arguments_;
    }

  private:
    // The addresses of what is overwritten.
    std::vector<char*> places() const {
        std::vector<char*> found = job_.param.data;
        for (const Column& column : job_.old) {
            found.insert(found.end(), column.data.begin(), column.data.end());
        }
        return found;
    }

    const TensorReader& reader_;
    DeviceType device_;
    py::object where_, tensors_;
    Job job_;
    std::optional<Arguments> arguments_;
};

template <typename SomeJob>
py::object finish(const Arguments& arguments, SomeJob* job, py::handle scalars,
                  const TensorReader& reader, DeviceType device, std::uintptr_t stream) {
    check_buffers(*job);
    read_scalars(reader, scalars, device, arguments.device_index(), job->scalars);
    if (!arguments.uneven().empty()) return listed(arguments.uneven());
    job->sizes = arguments.sizes();
    job->wide = arguments.is_wide();
    {
        py::gil_scoped_release others_may_run;
        launch(*job, arguments.device_index(), stream);
    }
    return py::none();
}

template <DeviceType kDevice>
void bind_device(py::module_& module) {
    auto* reader = new TensorReader(py::module_::import("torch"));  // lives as long as the process
    module.def(
        "step",
        [reader](int rule, py::handle scalars, py::handle param, py::handle grad, py::handle old,
                 py::handle out, py::handle fresh, std::uintptr_t stream, py::object where) {
            Job job;
            job.rule = rule_of(rule);
            Arguments arguments(*reader, kDevice, std::move(where));
            const bool inplace = out.is(param) && !param.is_none();
            arguments.column("params", 0, param, &job.param, inplace);
            arguments.column("grads", 0, grad, &job.grad, false);
            read_columns(&arguments, "buffers", old, job.old, fresh.is(old));
            if (inplace) {
                job.out = job.param;
            } else {
                arguments.column("out", 0, out, &job.out, true);
            }
            if (fresh.is(old)) {
                for (int k = 0; k < kMaxBuffers; ++k) job.fresh[k] = job.old[k];
            } else {
                read_columns(&arguments, "fresh buffers", fresh, job.fresh, true);
            }
            Arguments::refuse_overlaps({&arguments});
            return finish(arguments, &job, scalars, *reader, kDevice, stream);
        },
        py::arg("rule"), py::arg("scalars"), py::arg("param"), py::arg("grad"), py::arg("old"),
        py::arg("out"), py::arg("fresh"), py::arg("stream") = 0, py::arg("where") = py::none());
    module.def(
        "step_backward",
        [reader](int rule, py::handle scalars, py::handle param, py::handle grad, py::handle old,
                 bool steps, py::handle dout, py::handle dfresh, py::handle dparam,
                 py::handle dgrad, py::handle dold, py::object partials, std::uintptr_t stream,
                 py::object where) {
            BackwardJob job;
            job.rule = rule_of(rule);
            job.out_is_param = steps;
            Arguments arguments(*reader, kDevice, std::move(where));
            arguments.column("grads", 0, grad, &job.grad, false);
            arguments.column("params", 0, param, &job.param, false);
            read_columns(&arguments, "buffers", old, job.old, false);
            arguments.column("cotangents", 0, dout, &job.out, false);
            read_columns(&arguments, "cotangents of buffers", dfresh, job.fresh, false);
            arguments.column("results", 0, dparam, &job.dparam, true);
            arguments.column("results", 1, dgrad, &job.dgrad, true);
            read_columns(&arguments, "results for buffers", dold, job.dold, true);
            Arguments::refuse_overlaps({&arguments});
            if (!partials.is_none()) {
                job.partials = reinterpret_cast<double*>(
                    partials.attr("data_ptr")().template cast<std::uintptr_t>());
            }
            return finish(arguments, &job, scalars, *reader, kDevice, stream);
        },
        py::arg("rule"), py::arg("scalars"), py::arg("param"), py::arg("grad"), py::arg("old"),
        py::arg("steps"), py::arg("dout"), py::arg("dfresh"), py::arg("dparam"), py::arg("dgrad"),
        py::arg("dold"), py::arg("partials"), py::arg("stream") = 0,
        py::arg("where") = py::none());
    py::class_<Prepared>(module, "Prepared", py::module_local())
        .def_property_readonly(
            "uneven", [](const Prepared& self) { return listed(self.arguments().uneven()); })
        .def("again", &Prepared::reads_the_same, py::arg("scalars"), py::arg("param"),
             py::arg("grad"), py::arg("old"), py::arg("out"))
        .def("run", &Prepared::run, py::arg("count"), py::arg("stream") = 0);
    module.def(
        "prepare",
        [reader](int rule, py::handle scalars, py::handle param, py::handle grad, py::handle old,
                 py::handle out, py::object where) {
            auto prepared = std::make_unique<Prepared>(*reader, kDevice, rule, std::move(where));
            prepared->read(scalars, param, grad, old, out);
            return prepared;
        },
        py::arg("rule"), py::arg("scalars"), py::arg("param"), py::arg("grad"), py::arg("old"),
        py::arg("out") = py::none(), py::arg("where") = py::none());
    module.def(
        "refuse_overlaps",
        [](py::sequence prepared) {
            std::vector<const Arguments*> calls;
            for (py::handle each : prepared) {
                calls.push_back(&each.cast<const Prepared&>().arguments());
            }
            Arguments::refuse_overlaps(calls);
        },
        py::arg("prepared"));
    module.def("chunks", [reader](py::list tensors) {
        std::int64_t rows = 0;
        TensorView view;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors.ptr()); ++i) {
            reader->read(PyList_GET_ITEM(tensors.ptr(), i), {py::handle(), "tensors", 0, i}, &view);
            rows += chunks_of(view.size);
        }
        return rows;
    });
    module.def("uses_exchange", [reader] { return reader->uses_exchange(); });
    module.def("forget_exchange", [reader] { reader->forget_exchange(); });
    module.attr("SCALARS") = kAllScalars;
}

}  // namespace

}  // namespace optcore
