// What was built and what this machine has; python -m pyft.env prints it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pyft {

std::string cpu_isa();                          // the one in use; throws when PYFT_CPU_ISA cannot be
std::vector<std::string> built_cpu_isas();      // in the order in which they are picked
std::vector<std::string> supported_cpu_isas();  // those of them that this processor has

struct CudaDevice {
  std::string name;
  int capability_major;
  int capability_minor;
  std::int64_t memory_bytes;
};

struct CudaStatus {
  int runtime_version;  // e.g. 13000; 0 when built for CPU only
  int driver_version;   // the newest CUDA the driver speaks; 0 without a driver
  std::string problem;  // why there are no devices; "" when there are
  std::vector<CudaDevice> devices;
};

CudaStatus cuda_status();

// Launches a small kernel on `stream` of `device` and waits for it: shows that the binary has code for the
// device and that launch errors are seen. Throws what went wrong.
void cuda_probe(int device, std::uintptr_t stream);

}  // namespace pyft
