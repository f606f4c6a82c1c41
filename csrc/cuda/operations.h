// The CUDA side of ops.h: same arguments, already validated in dispatch/, queued on `stream`.
#pragma once

#include "pyft/ops.h"

namespace pyft::cuda {

void nf4_quantize(const Nf4QuantizeArgs& args, std::uintptr_t stream);
void nf4_quantize_absmax(const Nf4QuantizeAbsmaxArgs& args, std::uintptr_t stream);
void nf4_dequantize(const Nf4DequantizeArgs& args, std::uintptr_t stream);
void nf4_linear(const Nf4LinearArgs& args, std::uintptr_t stream);
void nf4_linear_backward(const Nf4LinearBackwardArgs& args, std::uintptr_t stream);

void cross_entropy(const CrossEntropyArgs& args, std::uintptr_t stream);
void cross_entropy_backward(const CrossEntropyBackwardArgs& args, std::uintptr_t stream);
void counted_rows(const CountedRowsArgs& args, std::uintptr_t stream);
void gather_rows(const GatherRowsArgs& args, std::uintptr_t stream);
void scatter_rows(const ScatterRowsArgs& args, std::uintptr_t stream);
void linear_cross_entropy_panel(const LinearCrossEntropyPanelArgs& args, std::uintptr_t stream);
void linear_cross_entropy_finish(const LinearCrossEntropyFinishArgs& args, std::uintptr_t stream);
void linear_cross_entropy_chunk(const LinearCrossEntropyChunkArgs& args, std::uintptr_t stream);

void rms_norm(const RmsNormArgs& args, std::uintptr_t stream);
void rms_norm_backward(const RmsNormBackwardArgs& args, std::uintptr_t stream);
void swiglu(const SwigluArgs& args, std::uintptr_t stream);
void swiglu_backward(const SwigluBackwardArgs& args, std::uintptr_t stream);
void rotary(const RotaryArgs& args, std::uintptr_t stream);

void lora_project(const LoraProjectArgs& args, std::uintptr_t stream);
void lora_expand(const LoraExpandArgs& args, std::uintptr_t stream);
void lora_expand_backward(const LoraExpandBackwardArgs& args, std::uintptr_t stream);
void lora_grad(const LoraGradArgs& args, std::uintptr_t stream);
void lora_grad_A(const LoraGradAArgs& args, std::uintptr_t stream);

}  // namespace pyft::cuda
