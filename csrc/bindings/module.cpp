// The Python module _pyft_C, or _pyft_emulated of the tests: one function per operation of ops.h, tensors as
// keyword arguments of the same names. Only pyft/ops/native.py imports _pyft_C; the GIL is released while a
// kernel works.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/tensor_caster.h"
#include "pyft/info.h"
#include "pyft/nf4_format.h"
#include "pyft/ops.h"
#if defined(PYFT_EMULATION)
#include "emulation/block.h"
#endif

namespace py = pybind11;
using pyft::bindings::run;
using pyft::bindings::tensor_argument;

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

// The storage of an NF4 weight as Python passes it: (codes, absmax, absmax_codes, nested_absmax, offset, (N,
// K)).
pyft::Nf4Tensors nf4_argument(const py::tuple& parts) {
  pyft::check(parts.size() == 6, "weight has ", parts.size(), " parts, expected the 6 of NF4Weight");
  const auto shape = py::cast<std::pair<std::int64_t, std::int64_t>>(parts[5]);
  pyft::Nf4Tensors weight;
  weight.codes = tensor_argument(parts[0], "codes");
  weight.absmax = tensor_argument(parts[1], "absmax");
  weight.absmax_codes = tensor_argument(parts[2], "absmax_codes");
  weight.nested_absmax = tensor_argument(parts[3], "nested_absmax");
  weight.offset = tensor_argument(parts[4], "offset");
  weight.num_rows = shape.first;
  weight.num_columns = shape.second;
  return weight;
}

void bind_nf4(py::module_& module) {
  module.attr("nf4_block_size") = pyft::kNf4BlockSize;
  module.attr("nested_block_size") = pyft::kNestedBlockSize;
  module.def("nf4_codebook", [] { return std::vector<float>(pyft::kNf4Codebook, pyft::kNf4Codebook + 16); });
  module.def("dynamic_map",
             [] { return std::vector<float>(pyft::kDynamicMap.data, pyft::kDynamicMap.data + 256); });
  module.def(
      "nf4_quantize",
      [](py::handle weight, py::handle codes, py::handle absmax, int num_threads, std::uintptr_t stream) {
        const pyft::Nf4QuantizeArgs args{tensor_argument(weight, "weight"), tensor_argument(codes, "codes"),
                                         tensor_argument(absmax, "absmax")};
        run(pyft::nf4_quantize, args, num_threads, stream);
      },
      py::kw_only(), py::arg("weight"), py::arg("codes"), py::arg("absmax"), py::arg("num_threads"),
      py::arg("stream"));
  module.def(
      "nf4_quantize_absmax",
      [](py::handle absmax, py::handle given_offset, py::handle absmax_codes, py::handle nested_absmax,
         py::handle offset, int num_threads, std::uintptr_t stream) {
        const pyft::Nf4QuantizeAbsmaxArgs args{
            tensor_argument(absmax, "absmax"), tensor_argument(given_offset, "offset"),
            tensor_argument(absmax_codes, "absmax_codes"), tensor_argument(nested_absmax, "nested_absmax"),
            tensor_argument(offset, "offset")};
        run(pyft::nf4_quantize_absmax, args, num_threads, stream);
      },
      py::kw_only(), py::arg("absmax"), py::arg("given_offset").none(true), py::arg("absmax_codes"),
      py::arg("nested_absmax"), py::arg("offset"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "nf4_dequantize",
      [](const py::tuple& weight, py::handle out, int num_threads, std::uintptr_t stream) {
        const pyft::Nf4DequantizeArgs args{nf4_argument(weight), tensor_argument(out, "out")};
        run(pyft::nf4_dequantize, args, num_threads, stream);
      },
      py::kw_only(), py::arg("weight"), py::arg("out"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "nf4_linear",
      [](py::handle x, const py::tuple& weight, py::handle bias, py::handle y, py::handle workspace,
         int num_threads, std::uintptr_t stream) {
        const pyft::Nf4LinearArgs args{tensor_argument(x, "x"), nf4_argument(weight),
                                       tensor_argument(bias, "bias"), tensor_argument(y, "y"),
                                       tensor_argument(workspace, "workspace")};
        run(pyft::nf4_linear, args, num_threads, stream);
      },
      py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias").none(true), py::arg("y"),
      py::arg("workspace") = py::none(), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "nf4_linear_backward",
      [](py::handle grad_y, const py::tuple& weight, py::handle grad_x, py::handle workspace, int num_threads,
         std::uintptr_t stream) {
        const pyft::Nf4LinearBackwardArgs args{tensor_argument(grad_y, "grad_y"), nf4_argument(weight),
                                               tensor_argument(grad_x, "grad_x"),
                                               tensor_argument(workspace, "workspace")};
        run(pyft::nf4_linear_backward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_y"), py::arg("weight"), py::arg("grad_x"),
      py::arg("workspace") = py::none(), py::arg("num_threads"), py::arg("stream"));
}

// A base weight as Python passes it: a dense tensor, or the parts of an NF4Weight.
pyft::LoraBase lora_base_argument(const py::object& weight) {
  pyft::LoraBase base{};
  if (py::isinstance<py::tuple>(weight)) {
    base.nf4 = nf4_argument(py::cast<py::tuple>(weight));
  } else {
    base.dense = tensor_argument(weight, "weight");
  }
  return base;
}

void bind_lora(py::module_& module) {
  module.def(
      "lora_linear",
      [](py::handle x, const py::object& weight, py::handle bias, py::handle lora_A, py::handle lora_B,
         py::handle projected, py::handle y, double scaling, double dropout, std::uint64_t seed,
         int num_threads, std::uintptr_t stream) {
        const pyft::LoraLinearArgs args{tensor_argument(x, "x"),
                                        lora_base_argument(weight),
                                        tensor_argument(bias, "bias"),
                                        tensor_argument(lora_A, "lora_A"),
                                        tensor_argument(lora_B, "lora_B"),
                                        tensor_argument(projected, "projected"),
                                        tensor_argument(y, "y"),
                                        scaling,
                                        {dropout, seed}};
        run(pyft::lora_linear, args, num_threads, stream);
      },
      py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias").none(true), py::arg("lora_A"),
      py::arg("lora_B"), py::arg("projected"), py::arg("y"), py::arg("scaling"), py::arg("dropout"),
      py::arg("seed"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "lora_linear_backward",
      [](py::handle grad_y, py::handle x, const py::object& weight, py::handle lora_A, py::handle lora_B,
         py::handle projected, py::handle grad_projected, py::handle grad_x, py::handle grad_A,
         py::handle grad_B, double scaling, double dropout, std::uint64_t seed, int num_threads,
         std::uintptr_t stream) {
        const pyft::LoraLinearBackwardArgs args{tensor_argument(grad_y, "grad_y"),
                                                tensor_argument(x, "x"),
                                                lora_base_argument(weight),
                                                tensor_argument(lora_A, "lora_A"),
                                                tensor_argument(lora_B, "lora_B"),
                                                tensor_argument(projected, "projected"),
                                                tensor_argument(grad_projected, "grad_projected"),
                                                tensor_argument(grad_x, "grad_x"),
                                                tensor_argument(grad_A, "grad_A"),
                                                tensor_argument(grad_B, "grad_B"),
                                                scaling,
                                                {dropout, seed}};
        run(pyft::lora_linear_backward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_y"), py::arg("x"), py::arg("weight"), py::arg("lora_A"), py::arg("lora_B"),
      py::arg("projected"), py::arg("grad_projected"), py::arg("grad_x").none(true),
      py::arg("grad_A").none(true), py::arg("grad_B").none(true), py::arg("scaling"), py::arg("dropout"),
      py::arg("seed"), py::arg("num_threads"), py::arg("stream"));
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
  py::register_local_exception_translator(translate_error);
  bind_info(module);
  bind_nf4(module);
  bind_lora(module);
  pyft::bindings::bind_cross_entropy(module);
#if defined(PYFT_EMULATION)
  module.def("set_seed", pyft::emulation::set_seed, "Of the orders in which threads and blocks run.");
#endif
}
