#include "bindings/tensor_caster.h"

#include <cstring>
#include <string>

namespace py = pybind11;

namespace pyft::bindings {
namespace {

// torch's dtype objects are singletons that live as long as the process, so a few pointers seen before answer
// nearly every call. Guarded by the GIL.
struct SeenDType {
  const PyObject* object;
  DType dtype;
};
SeenDType seen_dtypes[kNumDTypes];
int num_seen_dtypes = 0;

// A tensor's attributes by names that Python has interned once: a name given as text is made a new string,
// and hashed, at every look-up. Never freed, as Python may be gone before static objects are.
struct Names {
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* device = PyUnicode_InternFromString("device");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* stride = PyUnicode_InternFromString("stride");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
};

const Names& names() {
  static const Names interned;
  return interned;
}

py::object attribute(py::handle object, PyObject* name) {
  PyObject* found = PyObject_GetAttr(object.ptr(), name);
  if (!found) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}

py::object call(py::handle object, PyObject* method) {
  PyObject* result = PyObject_CallMethodNoArgs(object.ptr(), method);
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

DType read_dtype(py::handle tensor, const char* name) {
  if (const auto object = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor.ptr(), names().dtype))) {
    for (int i = 0; i < num_seen_dtypes; ++i) {
      if (seen_dtypes[i].object == object.ptr()) return seen_dtypes[i].dtype;
    }
  }
  PyErr_Clear();
  check(PyObject_HasAttr(tensor.ptr(), names().data_ptr) && PyObject_HasAttr(tensor.ptr(), names().dtype),
        name, " is a ", py::cast<std::string>(py::type::of(tensor).attr("__name__")),
        ", expected a torch tensor");
  const py::object object = attribute(tensor, names().dtype);
  const std::string text = py::str(object);
  for (int i = 0; i < kNumDTypes; ++i) {
    if (text != std::string("torch.") + kDTypeNames[i]) continue;
    seen_dtypes[num_seen_dtypes++] = {object.ptr(), static_cast<DType>(i)};
    return static_cast<DType>(i);
  }
  fail(ErrorKind::kValue, name, ".dtype is ", text, ", no operation takes it");
}

void read_device(py::handle tensor, TensorRef& ref) {
  if (attribute(tensor, names().is_cpu).ptr() == Py_True) {
    ref.device = DeviceType::kCpu;
    ref.device_index = 0;
    return;
  }
  const py::object device = attribute(tensor, names().device);
  const std::string type = py::cast<std::string>(device.attr("type"));
  check(type == "cuda", ref.name, " is on device ", type, ", expected cpu or cuda");
  ref.device = DeviceType::kCuda;
  const py::object index = device.attr("index");
  ref.device_index = index.is_none() ? 0 : py::cast<int>(index);
}

}  // namespace

TensorRef tensor_argument(py::handle tensor, const char* name) {
  TensorRef ref;
  ref.name = name;
  if (tensor.is_none()) return ref;
  ref.dtype = read_dtype(tensor, name);
  read_device(tensor, ref);
  const py::tuple shape(attribute(tensor, names().shape));
  const py::tuple strides(call(tensor, names().stride));
  check(shape.size() <= static_cast<std::size_t>(TensorRef::kMaxDims), name, " has ", shape.size(),
        " dimensions, at most ", TensorRef::kMaxDims, " are supported");
  ref.num_dims = static_cast<int>(shape.size());
  for (int i = 0; i < ref.num_dims; ++i) {
    ref.shape[i] = py::cast<std::int64_t>(shape[i]);
    ref.strides[i] = py::cast<std::int64_t>(strides[i]);
  }
  ref.data = reinterpret_cast<void*>(py::cast<std::uintptr_t>(call(tensor, names().data_ptr)));
  ref.defined = true;
  return ref;
}

}  // namespace pyft::bindings
