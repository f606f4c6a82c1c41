// info.h's CUDA functions in a build for CPU only; CMake compiles this file or device_info.cu.
#include "pyft/error.h"
#include "pyft/info.h"

namespace pyft {

CudaStatus cuda_status() {
  CudaStatus status{};
  status.problem = "pyft was built for CPU only";
  return status;
}

void cuda_probe(int, std::uintptr_t) {
  fail(ErrorKind::kRuntime,
       "cuda_probe: pyft was built for CPU only; install the CUDA toolkit and build again");
}

}  // namespace pyft
