"""What one new token costs on a CPU, near the speed of its memory: kernels that the machine's C++ compiler builds.

Attention over kept entries (called by `madakv.attention.cpu`), products with weights (by `madakv.linears`).
"""
