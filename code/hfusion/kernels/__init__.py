"""An Inception module in two launches, in Triton, and what its kernels are made of."""
