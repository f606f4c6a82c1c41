# _pyft_emulated: the Python module with the CUDA kernels compiled for the CPU, where tensors of the CPU go to them.
# Each .cu is compiled as C++ through a file that includes it: under its own name it may belong to nvcc.
set(sources "")
foreach(source IN LISTS PYFT_CUDA_SOURCES)
  get_filename_component(name "${source}" NAME_WE)
  file(CONFIGURE OUTPUT "emulated/${name}.cpp" CONTENT "#include \"${CMAKE_SOURCE_DIR}/${source}\"\n")
  list(APPEND sources "${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cpp")
endforeach()
pybind11_add_module(_pyft_emulated MODULE EXCLUDE_FROM_ALL NO_EXTRAS
    ${PYFT_BINDING_SOURCES} ${PYFT_HOST_SOURCES} ${sources} csrc/cuda/device_info_none.cpp
    csrc/emulation/block.cpp csrc/emulation/fiber.cpp $<TARGET_OBJECTS:pyft_isa_baseline>)
target_include_directories(_pyft_emulated PRIVATE csrc csrc/include)
target_link_libraries(_pyft_emulated PRIVATE Threads::Threads)
target_compile_definitions(_pyft_emulated PRIVATE
    PYFT_EMULATION PYFT_MODULE=_pyft_emulated PYFT_VERSION="${PYFT_VERSION}" PYFT_COMPILER="" PYFT_CUDA_ARCHITECTURES="")
target_compile_options(_pyft_emulated PRIVATE -O1 -g1 -Wno-unknown-pragmas)
if(PYFT_SANITIZE)
  target_compile_options(_pyft_emulated PRIVATE -fsanitize=address -fno-omit-frame-pointer)
  target_link_options(_pyft_emulated PRIVATE -fsanitize=address)
endif()
