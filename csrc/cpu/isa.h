// Instruction sets: the kernel sources (`*_kernels.cpp`) are compiled once for each, and one is picked at run
// time.
#pragma once

#include "cpu/kernels.h"

namespace pyft::cpu {

// The kernels of the instruction set in use: the first one built that this processor has, in the order
// avx512, avx512_bf16, avx2, baseline, or the one named by the environment variable PYFT_CPU_ISA. Read once,
// at the first call. Throws when the named one cannot run here.
const KernelTable& kernels();

}  // namespace pyft::cpu
