// Huge pages for large outputs. Fresh memory is mapped and cleared page by page as it is first written, and
// with pages of 4 KB that takes several times as long as computing what a memory-bound kernel writes there.
// Most Linux distributions give pages of 2 MB only to memory that asks for them.
#pragma once

#include <cstdint>

namespace pyft::cpu {

constexpr std::int64_t kHugePageBytes = 2 << 20;

// Asks for huge pages inside [data, data + bytes), which is about to be written whole; outputs of less than
// 4 MB are left alone. Memory in use already keeps its pages, and no page reaches beyond the output. A wish:
// the result does not depend on it, so a refusal is no error.
void prefer_huge_pages(void* data, std::int64_t bytes);

}  // namespace pyft::cpu
