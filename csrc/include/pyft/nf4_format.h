// NF4: how a weight lies in memory, and the constants of the format. Equal to bitsandbytes 0.50 to the bit,
// so that its checkpoints load as they are and its CPU implementation can check ours.
//
//   weight [N, K], flattened row by row, in blocks of 64 that know nothing of rows (the last may be short):
//
//     element    0     1     2     3          62    63  |  64    65
//             +-----+-----+-----+-----+ ... +-----+-----+-----+-----+ ...
//     codes   | hi  | lo  | hi  | lo  |     | hi  | lo  | hi  | lo  |     two to a byte, the even element
//             +-----+-----+-----+-----+ ... +-----+-----+-----+-----+ ... in the high nibble; an odd end
//                byte 0      byte 1           byte 31     byte 32         has 7 in the low nibble
//
//     value = kNf4Codebook[code] * absmax[block]       a float32 product, then rounded to the wanted dtype
//
//   Double quantisation stores absmax in 8 bits, again in blocks, of 256:
//
//     absmax[b] = kDynamicMap[absmax_codes[b]] * nested_absmax[b / 256] + offset
//                                                      product rounded to float32, then the sum
//
//   offset is the mean of all absmax, so that what is stored is small and signed. Bytes per weight:
//   4 / 8 + 1 / 64 + 4 / (64 * 256) = 0.516.
#pragma once

#include <cstdint>

namespace pyft {

constexpr int kNf4BlockSize = 64;
constexpr int kNestedBlockSize = 256;
constexpr float kSmallestAbsmax = 1e-38f;  // divisors are never smaller

// Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero (Dettmers et al. 2023, appendix
// E).
constexpr float kNf4Codebook[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// A value takes the code whose bounds hold it: code = number of bounds below the value.
struct Nf4Bounds {
  constexpr Nf4Bounds() : data() {
    for (int i = 0; i < 15; ++i) data[i] = (kNf4Codebook[i] + kNf4Codebook[i + 1]) / 2.0f;
  }
  float data[15];
};
constexpr Nf4Bounds kNf4Bounds;

// The positive half of the signed 8-bit "dynamic" type (Dettmers 2015): an exponent of 0 to 6 zeros, then a
// linear fraction. The negative half mirrors it; 0 and 1 complete the 256.
constexpr float kDynamicMapPositive[127] = {
    5.5000004e-7f, 3.2500002e-6f, 7.75e-6f,      2.1249998e-5f, 4.375e-5f,    6.625e-5f,     8.875e-5f,
    1.5625001e-4f, 2.6875004e-4f, 3.8125002e-4f, 4.9375003e-4f, 6.062501e-4f, 7.1875006e-4f, 8.3125e-4f,
    9.437501e-4f,  0.0012812499f, 0.00184375f,   0.00240625f,   0.00296875f,  0.0035312497f, 0.00409375f,
    0.0046562497f, 0.0052187503f, 0.00578125f,   0.00634375f,   0.00690625f,  0.00746875f,   0.00803125f,
    0.00859375f,   0.009156249f,  0.00971875f,   0.01140625f,   0.01421875f,  0.01703125f,   0.019843752f,
    0.02265625f,   0.02546875f,   0.028281251f,  0.03109375f,   0.03390625f,  0.036718752f,  0.03953125f,
    0.042343747f,  0.04515625f,   0.04796875f,   0.05078125f,   0.05359375f,  0.05640625f,   0.059218753f,
    0.06203125f,   0.06484375f,   0.067656256f,  0.070468746f,  0.07328125f,  0.07609375f,   0.07890625f,
    0.08171876f,   0.08453125f,   0.08734375f,   0.09015625f,   0.092968754f, 0.09578126f,   0.09859375f,
    0.107031256f,  0.12109375f,   0.13515624f,   0.14921875f,   0.16328125f,  0.17734376f,   0.19140625f,
    0.20546874f,   0.21953125f,   0.23359375f,   0.24765624f,   0.26171875f,  0.27578127f,   0.28984374f,
    0.30390626f,   0.31796873f,   0.33203125f,   0.34609374f,   0.36015624f,  0.37421876f,   0.38828123f,
    0.40234375f,   0.41640624f,   0.43046874f,   0.44453126f,   0.45859373f,  0.47265625f,   0.4867187f,
    0.50078124f,   0.5148437f,    0.5289062f,    0.54296875f,   0.5570313f,   0.5710938f,    0.58515626f,
    0.5992187f,    0.61328125f,   0.6273438f,    0.6414063f,    0.65546876f,  0.6695312f,    0.68359375f,
    0.6976563f,    0.7117188f,    0.72578126f,   0.7398437f,    0.75390625f,  0.7679688f,    0.78203124f,
    0.79609376f,   0.8101562f,    0.82421875f,   0.8382813f,    0.85234374f,  0.86640626f,   0.8804687f,
    0.89453125f,   0.9085938f,    0.92265624f,   0.93671876f,   0.9507812f,   0.96484375f,   0.9789063f,
    0.99296874f,
};

struct DynamicMap {
  constexpr DynamicMap() : data() {
    for (int i = 0; i < 127; ++i) {
      data[128 + i] = kDynamicMapPositive[i];
      data[126 - i] = -kDynamicMapPositive[i];
    }
    data[255] = 1.0f;
  }
  float data[256];
};
constexpr DynamicMap kDynamicMap;

}  // namespace pyft
