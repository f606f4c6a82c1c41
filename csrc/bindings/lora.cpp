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

void bind_parts_forward(py::module_& module) {
  module.def(
      "plan_lora",
      [](std::int64_t num_tokens, std::int64_t num_columns, std::int64_t rank) {
        const LoraPlan plan = plan_lora(num_tokens, num_columns, rank);
        return py::dict(py::arg("project_parts") = plan.project_parts, py::arg("row_parts") = plan.row_parts,
                        py::arg("column_parts") = plan.column_parts);
      },
      py::kw_only(), py::arg("num_tokens"), py::arg("num_columns"), py::arg("rank"));
  module.def(
      "lora_project",
      [](py::handle x, py::handle lora_A, py::handle projected, py::handle workspace, double scaling,
         double dropout, std::uint64_t seed, int num_threads, std::uintptr_t stream) {
        const LoraProjectArgs args{tensor_argument(x, "x"),
                                   tensor_argument(lora_A, "lora_A"),
                                   tensor_argument(projected, "projected"),
                                   tensor_argument(workspace, "workspace"),
                                   scaling,
                                   {dropout, seed}};
        run(lora_project, args, num_threads, stream);
      },
      py::kw_only(), py::arg("x"), py::arg("lora_A"), py::arg("projected"), py::arg("workspace").none(true),
      py::arg("scaling"), py::arg("dropout"), py::arg("seed"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "lora_expand",
      [](py::handle projected, py::handle lora_B, py::handle bias, py::handle y, bool accumulate,
         int num_threads, std::uintptr_t stream) {
        const LoraExpandArgs args{tensor_argument(projected, "projected"), tensor_argument(lora_B, "lora_B"),
                                  tensor_argument(bias, "bias"), tensor_argument(y, "y"), accumulate};
        run(lora_expand, args, num_threads, stream);
      },
      py::kw_only(), py::arg("projected"), py::arg("lora_B"), py::arg("bias").none(true), py::arg("y"),
      py::arg("accumulate"), py::arg("num_threads"), py::arg("stream"));
}

void bind_parts_backward(py::module_& module) {
  module.def(
      "lora_expand_backward",
      [](py::handle grad_projected, py::handle lora_A, py::handle grad_x, bool accumulate, double dropout,
         std::uint64_t seed, int num_threads, std::uintptr_t stream) {
        const LoraExpandBackwardArgs args{tensor_argument(grad_projected, "grad_projected"),
                                          tensor_argument(lora_A, "lora_A"),
                                          tensor_argument(grad_x, "grad_x"),
                                          accumulate,
                                          {dropout, seed}};
        run(lora_expand_backward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_projected"), py::arg("lora_A"), py::arg("grad_x"), py::arg("accumulate"),
      py::arg("dropout"), py::arg("seed"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "lora_grad",
      [](py::handle grad_y, py::handle lora_B, py::handle projected, py::handle grad_projected,
         py::handle grad_B, py::handle row_workspace, py::handle column_workspace, double scaling,
         int num_threads, std::uintptr_t stream) {
        const LoraGradArgs args{tensor_argument(grad_y, "grad_y"),
                                tensor_argument(lora_B, "lora_B"),
                                tensor_argument(projected, "projected"),
                                tensor_argument(grad_projected, "grad_projected"),
                                tensor_argument(grad_B, "grad_B"),
                                tensor_argument(row_workspace, "row_workspace"),
                                tensor_argument(column_workspace, "column_workspace"),
                                scaling};
        run(lora_grad, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_y"), py::arg("lora_B"), py::arg("projected").none(true),
      py::arg("grad_projected").none(true), py::arg("grad_B").none(true), py::arg("row_workspace").none(true),
      py::arg("column_workspace").none(true), py::arg("scaling"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "lora_grad_A",
      [](py::handle x, py::handle grad_projected, py::handle grad_A, py::handle workspace, double dropout,
         std::uint64_t seed, int num_threads, std::uintptr_t stream) {
        const LoraGradAArgs args{tensor_argument(x, "x"),
                                 tensor_argument(grad_projected, "grad_projected"),
                                 tensor_argument(grad_A, "grad_A"),
                                 tensor_argument(workspace, "workspace"),
                                 {dropout, seed}};
        run(lora_grad_A, args, num_threads, stream);
      },
      py::kw_only(), py::arg("x"), py::arg("grad_projected"), py::arg("grad_A"),
      py::arg("workspace").none(true), py::arg("dropout"), py::arg("seed"), py::arg("num_threads"),
      py::arg("stream"));
}

void bind_whole(py::module_& module) {
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

void bind_additions(py::module_& module) {
  module.def(
      "lora_addition",
      [](py::handle x, const py::object& weight, py::handle bias, py::handle lora_A, py::handle lora_B,
         py::handle projected, py::handle y, py::handle workspace, double scaling, double dropout,
         std::uint64_t seed, int num_threads, std::uintptr_t stream) {
        const LoraAdditionArgs args{{tensor_argument(x, "x"),
                                     lora_base_argument(weight),
                                     tensor_argument(bias, "bias"),
                                     tensor_argument(lora_A, "lora_A"),
                                     tensor_argument(lora_B, "lora_B"),
                                     tensor_argument(projected, "projected"),
                                     tensor_argument(y, "y"),
                                     scaling,
                                     {dropout, seed}},
                                    tensor_argument(workspace, "workspace")};
        run(lora_addition, args, num_threads, stream);
      },
      py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias").none(true), py::arg("lora_A"),
      py::arg("lora_B"), py::arg("projected"), py::arg("y").none(true), py::arg("workspace").none(true),
      py::arg("scaling"), py::arg("dropout"), py::arg("seed"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "lora_addition_backward",
      [](py::handle grad_y, py::handle x, py::handle lora_A, py::handle lora_B, py::handle projected,
         py::handle grad_projected, py::handle grad_x, py::handle grad_A, py::handle grad_B,
         py::handle project_workspace, py::handle row_workspace, py::handle column_workspace,
         py::handle grad_A_workspace, double scaling, double dropout, std::uint64_t seed, int num_threads,
         std::uintptr_t stream) {
        const LoraAdditionBackwardArgs args{tensor_argument(grad_y, "grad_y"),
                                            tensor_argument(x, "x"),
                                            tensor_argument(lora_A, "lora_A"),
                                            tensor_argument(lora_B, "lora_B"),
                                            tensor_argument(projected, "projected"),
                                            tensor_argument(grad_projected, "grad_projected"),
                                            tensor_argument(grad_x, "grad_x"),
                                            tensor_argument(grad_A, "grad_A"),
                                            tensor_argument(grad_B, "grad_B"),
                                            tensor_argument(project_workspace, "project_workspace"),
                                            tensor_argument(row_workspace, "row_workspace"),
                                            tensor_argument(column_workspace, "column_workspace"),
                                            tensor_argument(grad_A_workspace, "grad_A_workspace"),
                                            scaling,
                                            {dropout, seed}};
        run(lora_addition_backward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_y"), py::arg("x"), py::arg("lora_A"), py::arg("lora_B"),
      py::arg("projected").none(true), py::arg("grad_projected").none(true), py::arg("grad_x").none(true),
      py::arg("grad_A").none(true), py::arg("grad_B").none(true), py::arg("project_workspace").none(true),
      py::arg("row_workspace").none(true), py::arg("column_workspace").none(true),
      py::arg("grad_A_workspace").none(true), py::arg("scaling"), py::arg("dropout"), py::arg("seed"),
      py::arg("num_threads"), py::arg("stream"));
}

}  // namespace

void bind_lora(py::module_& module) {
  bind_whole(module);
  bind_parts_forward(module);
  bind_parts_backward(module);
  bind_additions(module);
}

}  // namespace pyft::bindings
