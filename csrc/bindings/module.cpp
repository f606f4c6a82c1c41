// The Python module _pyft_C, or _pyft_emulated of the tests: one function per operation of ops.h, tensors as
// keyword arguments of the same names. Only pyft/ops/native.py imports _pyft_C; the GIL is released while a
// kernel works.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "pyft/info.h"
#include "pyft/ops.h"
#if defined(PYFT_EMULATION)
#include "emulation/block.h"
#endif

namespace py = pybind11;

namespace {

void translate_error(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const pyft::Error& error) {
    PyObject* kind = error.kind() == pyft::ErrorKind::kValue   ? PyExc_ValueError
                     : error.kind() == pyft::ErrorKind::kIndex ? PyExc_IndexError
                                                               : PyExc_RuntimeError;
    PyErr_SetString(kind, error.what());
  }
}

// What was built and what was found, for python -m pyft.env.
void bind_info(py::module_& module) {
  module.attr("compiler") = PYFT_COMPILER;
  module.attr("cuda_architectures") = PYFT_CUDA_ARCHITECTURES;  // "80, 86, ...", "" when built for CPU only
  module.def("cpu_isa", pyft::cpu_isa);
  module.def("built_cpu_isas", pyft::built_cpu_isas);
  module.def("supported_cpu_isas", pyft::supported_cpu_isas);
  module.def("cuda_status", [] {
    const pyft::CudaStatus status = pyft::cuda_status();
    py::list devices;
    for (const pyft::CudaDevice& device : status.devices) {
      devices.append(
          py::dict(py::arg("name") = device.name,
                   py::arg("capability") = py::make_tuple(device.capability_major, device.capability_minor),
                   py::arg("memory_bytes") = device.memory_bytes));
    }
    return py::dict(py::arg("runtime_version") = status.runtime_version,
                    py::arg("driver_version") = status.driver_version, py::arg("problem") = status.problem,
                    py::arg("devices") = devices);
  });
  module.def(
      "cuda_probe",
      [](int device, std::uintptr_t stream) {
        const py::gil_scoped_release without_gil;
        pyft::cuda_probe(device, stream);
      },
      py::kw_only(), py::arg("device"), py::arg("stream"));
}

}  // namespace

PYBIND11_MODULE(PYFT_MODULE, module) {
  module.doc() = "Native kernels of pyft.";
  module.attr("__version__") = PYFT_VERSION;
  // One more, here and in pyft/ops/native.py, with each change of what a function takes or does: an older
  // build is then refused, where it would fail late or be silently wrong.
  module.attr("interface") = 2;
  py::register_local_exception_translator(translate_error);
  bind_info(module);
  pyft::bindings::bind_nf4(module);
  pyft::bindings::bind_lora(module);
  pyft::bindings::bind_cross_entropy(module);
  pyft::bindings::bind_linear_cross_entropy_steps(module);
  pyft::bindings::bind_rms_norm(module);
  pyft::bindings::bind_rotary(module);
  pyft::bindings::bind_swiglu(module);
#if defined(PYFT_EMULATION)
  module.attr("is_emulated") = true;  // tensors of the CPU go to the CUDA kernels
  module.def("set_seed", pyft::emulation::set_seed, "Of the orders in which threads and blocks run.");
#else
  module.attr("is_emulated") = false;
#endif
}
