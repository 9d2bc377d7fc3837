"""Backend 1: the SimPy driver, cost and memory models, the hardware catalogue, clusters and routers."""
