// THE interface: every operation of pyft, as argument structs and functions. Shapes stand beside each field.
// T tokens, K in-features, N out-features, R rank, V vocabulary, B blocks of 64 weights, C = ceil(B / 256).
//
// Each function validates its arguments (throws pyft::Error), chooses the device by its tensors, and returns
// when the work is done (CPU) or queued on the given stream (CUDA). Outputs are allocated by the caller.
#pragma once

#include "pyft/ops/context.h"
#include "pyft/ops/cross_entropy.h"
#include "pyft/ops/linear_cross_entropy_steps.h"
#include "pyft/ops/lora.h"
#include "pyft/ops/nf4.h"
#include "pyft/ops/rms_norm.h"
#include "pyft/ops/rotary.h"
#include "pyft/ops/swiglu.h"
