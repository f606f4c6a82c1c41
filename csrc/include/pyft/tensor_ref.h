// A tensor as a kernel sees it: pointer, dtype, shape, strides, device, and the name it had in the call.
// It owns nothing; whoever made the call keeps the storage alive.
#pragma once

#include <cstdint>
#include <string>

#include "pyft/dtype.h"
#include "pyft/error.h"

namespace pyft {

enum class DeviceType { kCpu, kCuda };

constexpr const char* device_name(DeviceType device) { return device == DeviceType::kCpu ? "cpu" : "cuda"; }

struct TensorRef {
  static constexpr int kMaxDims = 8;

  void* data = nullptr;
  DType dtype = DType::kFloat32;
  DeviceType device = DeviceType::kCpu;
  int device_index = 0;
  int num_dims = 0;
  std::int64_t shape[kMaxDims] = {};
  std::int64_t strides[kMaxDims] = {};  // in elements
  const char* name = "";                // of the argument, for errors
  bool defined = false;                 // false: the caller passed None

  std::int64_t num_elements() const {
    std::int64_t count = 1;
    for (int i = 0; i < num_dims; ++i) count *= shape[i];
    return count;
  }

  bool is_contiguous() const {
    std::int64_t expected = 1;
    for (int i = num_dims - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return num_elements() == 0;
      expected *= shape[i];
    }
    return true;
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  // The element that lies `index` elements behind the first.
  char* at(std::int64_t index) const { return as<char>() + index * dtype_bytes(dtype); }
};

inline std::string shape_text(const TensorRef& tensor) {
  std::string text = "[";
  for (int i = 0; i < tensor.num_dims; ++i) text += (i ? ", " : "") + std::to_string(tensor.shape[i]);
  return text + "]";
}

// Checks shared by every operation; `op` begins the message.
inline void check_defined(const char* op, const TensorRef& tensor) {
  check(tensor.defined, op, ": ", tensor.name, " is None, a tensor is needed");
}

inline void check_dtype(const char* op, const TensorRef& tensor, DType expected) {
  check_defined(op, tensor);
  check(tensor.dtype == expected, op, ": ", tensor.name, ".dtype is ", dtype_name(tensor.dtype),
        ", expected ", dtype_name(expected));
}

inline void check_float_dtype(const char* op, const TensorRef& tensor) {
  check_defined(op, tensor);
  check(tensor.dtype == DType::kFloat32 || tensor.dtype == DType::kBFloat16, op, ": ", tensor.name,
        ".dtype is ", dtype_name(tensor.dtype), ", expected float32 or bfloat16");
}

inline void check_num_dims(const char* op, const TensorRef& tensor, int expected) {
  check_defined(op, tensor);
  check(tensor.num_dims == expected, op, ": ", tensor.name, " has shape ", shape_text(tensor), ", expected ",
        expected, expected == 1 ? " dimension" : " dimensions");
}

// `whose` says where the expected size comes from, e.g. "weight expects".
inline void check_size(const char* op, const TensorRef& tensor, int dim, std::int64_t expected,
                       const char* whose) {
  check(tensor.shape[dim] == expected, op, ": ", tensor.name, ".shape[", dim, "] is ", tensor.shape[dim],
        ", ", whose, " ", expected);
}

inline void check_contiguous(const char* op, const TensorRef& tensor) {
  check(tensor.is_contiguous(), op, ": ", tensor.name, " of shape ", shape_text(tensor),
        " is not contiguous");
}

}  // namespace pyft
