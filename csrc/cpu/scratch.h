// Working memory of kernels: one growing, 64-byte aligned buffer per thread and slot, kept between calls
// because first touch of fresh pages costs more than the work done in them.
#pragma once

#include <cstdint>

namespace pyft::cpu {

// Who uses a buffer; two live at the same time on one thread must have different slots.
enum class Scratch { kGemmA, kGemmB, kGemmRows, kTile, kTileOther, kPanel, kRow, kCount };

// At least `num_floats` uninitialised floats, valid until this thread asks for the same slot again.
float* scratch_floats(Scratch slot, std::int64_t num_floats);

}  // namespace pyft::cpu
