"""executor: backend 2, a real model on PyTorch (CPU or CUDA) that runs an engine's plans."""
