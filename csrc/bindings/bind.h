// What the files that bind operations share.
#pragma once

#include <pybind11/pybind11.h>

#include "pyft/ops.h"

namespace pyft::bindings {

// Runs one operation of ops.h without the GIL.
template <typename Args>
void run(void (*op)(const Args&, const ExecutionContext&), const Args& args, int num_threads,
         std::uintptr_t stream) {
  const pybind11::gil_scoped_release without_gil;
  op(args, ExecutionContext{num_threads, stream});
}

void bind_cross_entropy(pybind11::module_& module);

}  // namespace pyft::bindings
