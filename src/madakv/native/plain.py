"""Whether a call may read the memory of its tensors."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_plain_call() -> bool:
    """Whether nobody traces or transforms what happens: a kernel is a call that neither would see."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )
