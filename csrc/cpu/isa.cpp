#include "cpu/isa.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "pyft/error.h"
#include "pyft/info.h"

namespace pyft::cpu {

#ifdef PYFT_AVX512_BF16
namespace avx512_bf16 {
extern const KernelTable kTable;
}
#endif
#ifdef PYFT_X86_ISAS
namespace avx512 {
extern const KernelTable kTable;
}
namespace avx2 {
extern const KernelTable kTable;
}
#endif
namespace baseline {
extern const KernelTable kTable;
}

namespace {

struct Isa {
  const KernelTable* table;
  bool supported;
};

// In the order in which they are picked. avx512_bf16 comes after avx512: on a Sapphire Rapids its products
// took 1.7 times as long, and vdpbf16ps takes subnormal numbers for zero.
std::vector<Isa> all_isas() {
  std::vector<Isa> isas;
#ifdef PYFT_X86_ISAS
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  isas.push_back({&avx512::kTable, has_avx512});
#ifdef PYFT_AVX512_BF16
  isas.push_back({&avx512_bf16::kTable, has_avx512 && __builtin_cpu_supports("avx512bf16")});
#endif
  isas.push_back({&avx2::kTable, has_avx2});
#endif
  isas.push_back({&baseline::kTable, true});
  return isas;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const KernelTable& choose() {
  const char* wanted = std::getenv("PYFT_CPU_ISA");
  if (wanted && !*wanted) wanted = nullptr;
  for (const Isa& isa : all_isas()) {
    if (wanted ? wanted == std::string(isa.table->name) && isa.supported : isa.supported) return *isa.table;
  }
  fail(ErrorKind::kRuntime, "PYFT_CPU_ISA is '", wanted,
       "', this machine can run: ", joined(supported_cpu_isas()), " (built: ", joined(built_cpu_isas()), ")");
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& chosen = choose();
  return chosen;
}

}  // namespace pyft::cpu

namespace pyft {

std::string cpu_isa() { return cpu::kernels().name; }

std::vector<std::string> built_cpu_isas() {
  std::vector<std::string> names;
  for (const cpu::Isa& isa : cpu::all_isas()) names.push_back(isa.table->name);
  return names;
}

std::vector<std::string> supported_cpu_isas() {
  std::vector<std::string> names;
  for (const cpu::Isa& isa : cpu::all_isas()) {
    if (isa.supported) names.push_back(isa.table->name);
  }
  return names;
}

}  // namespace pyft
