"""executor.attention: attention over the paged KV cache, on the CPU and on CUDA."""
