"""The operations: what a model computes, over C++ kernels; `reference` has the same in plain torch."""
