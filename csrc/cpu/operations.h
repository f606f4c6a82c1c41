// The CPU side of ops.h: same arguments, already validated in dispatch/.
#pragma once

#include "pyft/ops.h"

namespace pyft::cpu {

void nf4_quantize(const Nf4QuantizeArgs& args, int num_threads);
void nf4_quantize_absmax(const Nf4QuantizeAbsmaxArgs& args, int num_threads);
void nf4_dequantize(const Nf4DequantizeArgs& args, int num_threads);
void nf4_linear(const Nf4LinearArgs& args, int num_threads);
void nf4_linear_backward(const Nf4LinearBackwardArgs& args, int num_threads);

void lora_linear(const LoraLinearArgs& args, int num_threads);
void lora_linear_backward(const LoraLinearBackwardArgs& args, int num_threads);

void cross_entropy(const CrossEntropyArgs& args, int num_threads);
void cross_entropy_backward(const CrossEntropyBackwardArgs& args, int num_threads);
void linear_cross_entropy(const LinearCrossEntropyArgs& args, int num_threads);
void linear_cross_entropy_forward(const LinearCrossEntropyForwardArgs& args, int num_threads);
void linear_cross_entropy_backward(const LinearCrossEntropyBackwardArgs& args, int num_threads);

void rms_norm(const RmsNormArgs& args, int num_threads);
void rms_norm_backward(const RmsNormBackwardArgs& args, int num_threads);
void swiglu(const SwigluArgs& args, int num_threads);
void swiglu_backward(const SwigluBackwardArgs& args, int num_threads);
void rotary(const RotaryArgs& args, int num_threads);

}  // namespace pyft::cpu
