// cross_entropy, and linear_cross_entropy in one call or in two.
#include <pybind11/stl.h>

#include <array>

#include "bindings/bind.h"
#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace pyft::bindings {
namespace {

// As Python passes them: logit_scale, logit_softcap, label_smoothing, z_loss.
using Terms = std::array<double, 4>;

LogitTerms logit_terms(py::handle bias, const Terms& terms) {
  return {tensor_argument(bias, "bias"), terms[0], terms[1]};
}

LossTerms loss_terms(const Terms& terms) { return {terms[2], terms[3]}; }

void bind_from_logits(py::module_& module) {
  module.def(
      "cross_entropy",
      [](py::handle logits, py::handle targets, py::handle loss, py::handle row_stats, py::handle row_losses,
         std::int64_t ignore_index, double label_smoothing, double z_loss, int num_threads,
         std::uintptr_t stream) {
        const CrossEntropyArgs args{tensor_argument(logits, "logits"),
                                    tensor_argument(targets, "targets"),
                                    tensor_argument(loss, "loss"),
                                    tensor_argument(row_stats, "row_stats"),
                                    ignore_index,
                                    {label_smoothing, z_loss},
                                    tensor_argument(row_losses, "row_losses")};
        run(pyft::cross_entropy, args, num_threads, stream);
      },
      py::kw_only(), py::arg("logits"), py::arg("targets"), py::arg("loss"), py::arg("row_stats"),
      py::arg("row_losses") = py::none(), py::arg("ignore_index"), py::arg("label_smoothing"),
      py::arg("z_loss"), py::arg("num_threads"), py::arg("stream"));
  module.def(
      "cross_entropy_backward",
      [](py::handle grad_loss, py::handle logits, py::handle targets, py::handle row_stats,
         py::handle grad_logits, std::int64_t ignore_index, double label_smoothing, double z_loss,
         int num_threads, std::uintptr_t stream) {
        const CrossEntropyBackwardArgs args{tensor_argument(grad_loss, "grad_loss"),
                                            tensor_argument(logits, "logits"),
                                            tensor_argument(targets, "targets"),
                                            tensor_argument(row_stats, "row_stats"),
                                            tensor_argument(grad_logits, "grad_logits"),
                                            ignore_index,
                                            {label_smoothing, z_loss}};
        run(pyft::cross_entropy_backward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_loss"), py::arg("logits"), py::arg("targets"), py::arg("row_stats"),
      py::arg("grad_logits"), py::arg("ignore_index"), py::arg("label_smoothing"), py::arg("z_loss"),
      py::arg("num_threads"), py::arg("stream"));
}

void bind_in_one_call(py::module_& module) {
  module.def(
      "plan_linear_cross_entropy",
      [](std::int64_t num_tokens, std::int64_t width, std::int64_t vocabulary, bool trains_head,
         bool smooths) {
        const LinearCrossEntropyPlan plan =
            plan_linear_cross_entropy(num_tokens, width, vocabulary, trains_head, smooths);
        return py::dict(py::arg("by_panels") = plan.by_panels, py::arg("by_two_passes") = plan.by_two_passes,
                        py::arg("chunk_tokens") = plan.chunk_tokens, py::arg("num_splits") = plan.num_splits,
                        py::arg("workspace_floats") = plan.workspace_floats,
                        py::arg("kept_rows") = plan.kept_rows);
      },
      py::kw_only(), py::arg("num_tokens"), py::arg("width"), py::arg("vocabulary"), py::arg("trains_head"),
      py::arg("smooths"));
  module.def(
      "linear_cross_entropy",
      [](py::handle hidden, py::handle head_weight, py::handle bias, py::handle targets, py::handle workspace,
         py::handle loss, py::handle grad_hidden, py::handle grad_head, py::handle grad_bias,
         std::int64_t ignore_index, const Terms& terms, int num_threads, std::uintptr_t stream) {
        const LinearCrossEntropyArgs args{tensor_argument(hidden, "hidden"),
                                          tensor_argument(head_weight, "head_weight"),
                                          tensor_argument(targets, "targets"),
                                          tensor_argument(workspace, "workspace"),
                                          tensor_argument(loss, "loss"),
                                          tensor_argument(grad_hidden, "grad_hidden"),
                                          tensor_argument(grad_head, "grad_head"),
                                          tensor_argument(grad_bias, "grad_bias"),
                                          ignore_index,
                                          logit_terms(bias, terms),
                                          loss_terms(terms)};
        run(pyft::linear_cross_entropy, args, num_threads, stream);
      },
      py::kw_only(), py::arg("hidden"), py::arg("head_weight"), py::arg("bias").none(true),
      py::arg("targets"), py::arg("workspace"), py::arg("loss"), py::arg("grad_hidden").none(true),
      py::arg("grad_head").none(true), py::arg("grad_bias").none(true), py::arg("ignore_index"),
      py::arg("terms"), py::arg("num_threads"), py::arg("stream"));
}

void bind_in_two_calls(py::module_& module) {
  module.def(
      "linear_cross_entropy_forward",
      [](py::handle hidden, py::handle head_weight, py::handle bias, py::handle targets, py::handle workspace,
         py::handle loss, py::handle row_stats, py::handle kept_logits, std::int64_t ignore_index,
         const Terms& terms, int num_threads, std::uintptr_t stream) {
        const LinearCrossEntropyForwardArgs args{tensor_argument(hidden, "hidden"),
                                                 tensor_argument(head_weight, "head_weight"),
                                                 tensor_argument(targets, "targets"),
                                                 tensor_argument(workspace, "workspace"),
                                                 tensor_argument(loss, "loss"),
                                                 tensor_argument(row_stats, "row_stats"),
                                                 tensor_argument(kept_logits, "kept_logits"),
                                                 ignore_index,
                                                 logit_terms(bias, terms),
                                                 loss_terms(terms)};
        run(pyft::linear_cross_entropy_forward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("hidden"), py::arg("head_weight"), py::arg("bias").none(true),
      py::arg("targets"), py::arg("workspace"), py::arg("loss"), py::arg("row_stats"), py::arg("kept_logits"),
      py::arg("ignore_index"), py::arg("terms"), py::arg("num_threads"), py::arg("stream"));
  module.def("linear_cross_entropy_backward_floats", pyft::linear_cross_entropy_backward_floats,
             py::kw_only(), py::arg("num_tokens"), py::arg("width"));
  module.def(
      "linear_cross_entropy_backward",
      [](py::handle grad_loss, py::handle hidden, py::handle head_weight, py::handle bias, py::handle targets,
         py::handle row_stats, py::handle kept_logits, py::handle workspace, py::handle grad_hidden,
         py::handle grad_head, py::handle grad_bias, std::int64_t ignore_index, const Terms& terms,
         int num_threads, std::uintptr_t stream) {
        const LinearCrossEntropyBackwardArgs args{tensor_argument(grad_loss, "grad_loss"),
                                                  tensor_argument(hidden, "hidden"),
                                                  tensor_argument(head_weight, "head_weight"),
                                                  tensor_argument(targets, "targets"),
                                                  tensor_argument(row_stats, "row_stats"),
                                                  tensor_argument(kept_logits, "kept_logits"),
                                                  tensor_argument(workspace, "workspace"),
                                                  tensor_argument(grad_hidden, "grad_hidden"),
                                                  tensor_argument(grad_head, "grad_head"),
                                                  tensor_argument(grad_bias, "grad_bias"),
                                                  ignore_index,
                                                  logit_terms(bias, terms),
                                                  loss_terms(terms)};
        run(pyft::linear_cross_entropy_backward, args, num_threads, stream);
      },
      py::kw_only(), py::arg("grad_loss"), py::arg("hidden"), py::arg("head_weight"),
      py::arg("bias").none(true), py::arg("targets"), py::arg("row_stats"), py::arg("kept_logits"),
      py::arg("workspace"), py::arg("grad_hidden").none(true), py::arg("grad_head").none(true),
      py::arg("grad_bias").none(true), py::arg("ignore_index"), py::arg("terms"), py::arg("num_threads"),
      py::arg("stream"));
}

}  // namespace

void bind_cross_entropy(py::module_& module) {
  bind_from_logits(module);
  bind_in_one_call(module);
  bind_in_two_calls(module);
}

}  // namespace pyft::bindings
