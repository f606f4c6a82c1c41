// The kernel table of one instruction set: this file is compiled once for each, with PYFT_ISA as its name.
#include "cpu/kernel_table.h"

#include "cpu/vector.h"

#define PYFT_TEXT_OF(name) #name
#define PYFT_TEXT(name) PYFT_TEXT_OF(name)

namespace pyft::cpu::PYFT_ISA {

extern const KernelTable kTable;
const KernelTable kTable = {
    PYFT_TEXT(PYFT_ISA),
    PYFT_VECTOR_BYTES,
    gemm,
    nf4_quantize,
    nf4_dequantize,
    nf4_dequantize_floats,
    dropout_factors,
    row_max_and_sum,
    row_sum,
    row_softmax,
    row_logits,
    rms_norm_rows,
    rms_norm_rows_backward,
    swiglu,
    swiglu_backward,
    rotate_heads,
};

}  // namespace pyft::cpu::PYFT_ISA
