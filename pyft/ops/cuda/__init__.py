"""What the operations do on a GPU: kernels of `csrc/cuda` and torch's matrix products, put together.

Each module here belongs to the one of its name in `pyft.ops` and has a table `ON_CUDA`: operation ->
implementation, which that one registers. Every implementation queues its work on the current stream,
allocates with torch, waits for nothing, and may be captured in a CUDA graph. None depends on tensors being on
CUDA: the tests run all of it on the CPU, where the kernels are emulated.
"""
