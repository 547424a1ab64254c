"""What one new token costs on a CPU, near the speed of its memory: kernels that the machine's C++ compiler builds.

Attention over kept entries (`attention`), and products with the model's weights (`linear`).
"""

from madakv.native.attention import native_partial
from madakv.native.linear import native_linears

__all__ = ["native_linears", "native_partial"]
