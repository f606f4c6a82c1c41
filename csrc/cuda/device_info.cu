// The CUDA side of info.h, and the smallest kernel there is. Linked with the static CUDA runtime, which finds
// the driver when the first call is made: without one, importing the module works and these functions say so.
//
//   probe_kernel   one block of kProbeThreads threads, each writes its index plus kProbeOffset
#include "cuda/device/platform.h"
#include "pyft/info.h"

namespace pyft {
namespace {

using cuda::check_cuda;
using cuda::DeviceGuard;

constexpr int kProbeThreads = 32;
constexpr int kProbeOffset = 1000;

__global__ void probe_kernel(int* out) { out[threadIdx.x] = static_cast<int>(threadIdx.x) + kProbeOffset; }

void launch_probe(int* out, cudaStream_t stream) {
  probe_kernel<<<1, kProbeThreads, 0, stream>>>(out);
  check_cuda("cuda_probe: launching probe_kernel [32]", cudaGetLastError());
}

}  // namespace

CudaStatus cuda_status() {
  CudaStatus status{};
  if (cudaRuntimeGetVersion(&status.runtime_version) != cudaSuccess) status.runtime_version = CUDART_VERSION;
  if (cudaDriverGetVersion(&status.driver_version) != cudaSuccess) status.driver_version = 0;
  int num_devices = 0;
  const cudaError_t counted = cudaGetDeviceCount(&num_devices);
  if (counted != cudaSuccess) {
    cudaGetLastError();  // clears it: the next launch must not report it
    status.problem = cudaGetErrorString(counted);
    return status;
  }
  if (num_devices == 0) status.problem = "the driver shows no device";
  for (int i = 0; i < num_devices; ++i) {
    cudaDeviceProp properties;
    check_cuda("cuda_status: reading a device", cudaGetDeviceProperties(&properties, i));
    status.devices.push_back({properties.name, properties.major, properties.minor,
                              static_cast<std::int64_t>(properties.totalGlobalMem)});
  }
  return status;
}

void cuda_probe(int device, std::uintptr_t raw_stream) {
  const DeviceGuard guard("cuda_probe: choosing the device", device);
  const cudaStream_t stream = reinterpret_cast<cudaStream_t>(raw_stream);
  int* out = nullptr;
  check_cuda("cuda_probe: allocating", cudaMallocAsync(&out, kProbeThreads * sizeof(int), stream));
  int found[kProbeThreads] = {};
  launch_probe(out, stream);
  check_cuda("cuda_probe: copying",
             cudaMemcpyAsync(found, out, sizeof found, cudaMemcpyDeviceToHost, stream));
  check_cuda("cuda_probe: freeing", cudaFreeAsync(out, stream));
  check_cuda("cuda_probe: running probe_kernel [32]", cudaStreamSynchronize(stream));
  for (int i = 0; i < kProbeThreads; ++i) {
    if (found[i] != i + kProbeOffset) {
      fail(ErrorKind::kRuntime, "cuda_probe: element ", i, " is ", found[i], ", expected ", i + kProbeOffset);
    }
  }
}

}  // namespace pyft
