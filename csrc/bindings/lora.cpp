// The LoRA operations.
#include "bindings/bind.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace pyft::bindings {
namespace {

// A base weight as Python passes it: a dense tensor, or the parts of an NF4Weight.
LoraBase lora_base_argument(const py::object& weight) {
  LoraBase base{};
  if (py::isinstance<py::tuple>(weight)) {
    base.nf4 = nf4_argument(py::cast<py::tuple>(weight));
  } else {
    base.dense = tensor_argument(weight, "weight");
  }
  return base;
}

}  // namespace

void bind_lora(py::module_& module) {
  module.def(
      "lora_linear",
      [](py::handle x, const py::object& weight, py::handle bias, py::handle lora_A, py::handle lora_B,
         py::handle projected, py::handle y, double scaling, double dropout, std::uint64_t seed,
         int num_threads, std::uintptr_t stream) {
        const LoraLinearArgs args{tensor_argument(x, "x"),
                                  lora_base_argument(weight),
                                  tensor_argument(bias, "bias"),
                                  tensor_argument(lora_A, "lora_A"),
                                  tensor_argument(lora_B, "lora_B"),
                                  tensor_argument(projected, "projected"),
                                  tensor_argument(y, "y"),
                                  scaling,
                                  {dropout, seed}};
        run(lora_linear, args, num_threads, stream);
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
        const LoraLinearBackwardArgs args{tensor_argument(grad_y, "grad_y"),
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
        run(lora_linear_backward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_y"), py::arg("x"), py::arg("weight"), py::arg("lora_A"), py::arg("lora_B"),
      py::arg("projected"), py::arg("grad_projected"), py::arg("grad_x").none(true),
      py::arg("grad_A").none(true), py::arg("grad_B").none(true), py::arg("scaling"), py::arg("dropout"),
      py::arg("seed"), py::arg("num_threads"), py::arg("stream"));
}

}  // namespace pyft::bindings
