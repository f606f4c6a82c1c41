"""What the operations do on a GPU: kernels of `csrc/cuda` and torch's matrix products, put together.

A module that has the name of one in `pyft.ops` is what that one declares for CUDA. All of it queues its work
on the current stream, allocates with torch, waits for nothing, and may be captured in a CUDA graph. None of
it depends on tensors being on CUDA: the tests run it on the CPU, where the kernels are emulated.
"""
