// The NF4 operations.
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/tensor_caster.h"
#include "pyft/nf4_format.h"
#include "pyft/nf4_small.h"

namespace py = pybind11;

namespace pyft::bindings {

Nf4Tensors nf4_argument(const py::tuple& parts) {
  check(parts.size() == 6, "weight has ", parts.size(), " parts, expected the 6 of NF4Weight");
  const auto shape = py::cast<std::pair<std::int64_t, std::int64_t>>(parts[5]);
  Nf4Tensors weight;
  weight.codes = tensor_argument(parts[0], "codes");
  weight.absmax = tensor_argument(parts[1], "absmax");
  weight.absmax_codes = tensor_argument(parts[2], "absmax_codes");
  weight.nested_absmax = tensor_argument(parts[3], "nested_absmax");
  weight.offset = tensor_argument(parts[4], "offset");
  weight.num_rows = shape.first;
  weight.num_columns = shape.second;
  return weight;
}

namespace {

py::dict choose_small(bool is_backward, std::int64_t num_tokens, std::int64_t num_rows,
                      std::int64_t num_columns, int num_multiprocessors) {
  const Nf4SmallConfig config =
      choose_nf4_small({is_backward, num_tokens, num_rows, num_columns}, num_multiprocessors);
  return py::dict(py::arg("token_tiles") = config.token_tiles, py::arg("tile") = config.tile,
                  py::arg("step") = config.step, py::arg("num_stages") = config.num_stages,
                  py::arg("shared_bytes") = config.shared_bytes, py::arg("num_tiles") = config.num_tiles,
                  py::arg("num_steps") = config.num_steps, py::arg("num_blocks") = config.num_blocks,
                  py::arg("workspace_floats") = config.workspace_floats);
}

}  // namespace

void bind_nf4(py::module_& module) {
  module.attr("nf4_block_size") = kNf4BlockSize;
  module.attr("nested_block_size") = kNestedBlockSize;
  module.def("nf4_codebook", [] { return std::vector<float>(kNf4Codebook, kNf4Codebook + 16); });
  module.def("dynamic_map", [] { return std::vector<float>(kDynamicMap.data, kDynamicMap.data + 256); });
  module.def(
      "nf4_quantize",
      [](py::handle weight, py::handle codes, py::handle absmax, int num_threads, std::uintptr_t stream) {
        const Nf4QuantizeArgs args{tensor_argument(weight, "weight"), tensor_argument(codes, "codes"),
                                   tensor_argument(absmax, "absmax")};
        run(nf4_quantize, args, num_threads, stream);
      },
      py::kw_only(), py::arg("weight"), py::arg("codes"), py::arg("absmax"), py::arg("num_threads"),
      py::arg("stream"));
  module.def(
      "nf4_quantize_absmax",
      [](py::handle absmax, py::handle given_offset, py::handle absmax_codes, py::handle nested_absmax,
         py::handle offset, int num_threads, std::uintptr_t stream) {
        const Nf4QuantizeAbsmaxArgs args{
            tensor_argument(absmax, "absmax"), tensor_argument(given_offset, "offset"),
            tensor_argument(absmax_codes, "absmax_codes"), tensor_argument(nested_absmax, "nested_absmax"),
            tensor_argument(offset, "offset")};
        run(nf4_quantize_absmax, args, num_threads, stream);
      },
      py::kw_only(), py::arg("absmax"), py::arg("given_offset").none(true), py::arg("absmax_codes"),
      py::arg("nested_absmax"), py::arg("offset"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "nf4_dequantize",
      [](const py::tuple& weight, py::handle out, std::int64_t first_row, std::int64_t first_column,
         int num_threads, std::uintptr_t stream) {
        const Nf4DequantizeArgs args{nf4_argument(weight), tensor_argument(out, "out"), first_row,
                                     first_column};
        run(nf4_dequantize, args, num_threads, stream);
      },
      py::kw_only(), py::arg("weight"), py::arg("out"), py::arg("first_row") = 0, py::arg("first_column") = 0,
      py::arg("num_threads"), py::arg("stream"));
  module.def("choose_nf4_small", choose_small, py::kw_only(), py::arg("is_backward"), py::arg("num_tokens"),
             py::arg("num_rows"), py::arg("num_columns"), py::arg("num_multiprocessors"),
             "How CUDA cuts up a product with few tokens, as a dict.");
  module.def(
      "nf4_linear",
      [](py::handle x, const py::tuple& weight, py::handle bias, py::handle y, py::handle projected,
         py::handle lora_B, int num_blocks, py::handle workspace, int num_threads, std::uintptr_t stream) {
        const Nf4LinearArgs args{tensor_argument(x, "x"),
                                 nf4_argument(weight),
                                 tensor_argument(bias, "bias"),
                                 tensor_argument(y, "y"),
                                 {tensor_argument(projected, "projected"), tensor_argument(lora_B, "lora_B")},
                                 {num_blocks, tensor_argument(workspace, "workspace")}};
        run(nf4_linear, args, num_threads, stream);
      },
      py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias").none(true), py::arg("y"),
      py::arg("projected") = py::none(), py::arg("lora_B") = py::none(), py::arg("num_blocks") = 0,
      py::arg("workspace") = py::none(), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "nf4_linear_backward",
      [](py::handle grad_y, const py::tuple& weight, py::handle grad_x, py::handle grad_projected,
         py::handle lora_A, int num_blocks, py::handle workspace, int num_threads, std::uintptr_t stream) {
        const Nf4LinearBackwardArgs args{
            tensor_argument(grad_y, "grad_y"),
            nf4_argument(weight),
            tensor_argument(grad_x, "grad_x"),
            {tensor_argument(grad_projected, "grad_projected"), tensor_argument(lora_A, "lora_A")},
            {num_blocks, tensor_argument(workspace, "workspace")}};
        run(nf4_linear_backward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_y"), py::arg("weight"), py::arg("grad_x"),
      py::arg("grad_projected") = py::none(), py::arg("lora_A") = py::none(), py::arg("num_blocks") = 0,
      py::arg("workspace") = py::none(), py::arg("num_threads"), py::arg("stream"));
}

}  // namespace pyft::bindings
