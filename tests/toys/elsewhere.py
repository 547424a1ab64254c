"""A device that is none: its tensors lie on the CPU, do not mix with those that say so, and who waits is noted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# The name of a device that every build of PyTorch has, and on which nothing is computed.
ELSEWHERE = torch.device("meta")


class Moved(Tensor):
    """A tensor that says it is elsewhere."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Moved:
        made: Moved = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=ELSEWHERE,
        )  # fmt: skip
        made.inner = inner
        return made

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the device")


class Elsewhere(TorchDispatchMode):
    """All that is done to `Moved` tensors, and making them.

    Attributes:
        waits: what would have waited for a GPU, since that was last looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given: list[Tensor] = []
        tree_map_only(Tensor, given.append, (args, kwargs))
        moved = {id(own.inner): own for own in given if isinstance(own, Moved)}
        host = [own for own in given if not isinstance(own, Moved)]
        name = func.overloadpacket.__name__
        goes = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if moved:
            self._look(name, args, kwargs, host, goes)
        if goes == ELSEWHERE:
            if host and not kwargs.get("non_blocking"):
                self.waits.append(name)
            kwargs["device"] = torch.device("cpu")
        out = func(*self._inner(args), **self._inner(kwargs))
        if goes == ELSEWHERE or (moved and goes is None):
            return tree_map_only(Tensor, lambda own: moved[id(own)] if id(own) in moved else Moved(own), out)
        return out

    def _look(self, name: str, args: Any, kwargs: Any, host: list[Tensor], goes: Any) -> None:
        indices = [own for own in args[1] if own is not None] if name in ("index", "index_put_") else []
        reads = name in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "equal",
            "is_nonzero",
            "unique_dim",
            "_unique2",
        )
        if (
            reads
            or (goes is not None and goes != ELSEWHERE)
            or (name == "repeat_interleave" and kwargs.get("output_size") is None and len(args) < 2)
            or any(own.dtype == torch.bool or not isinstance(own, Moved) for own in indices)
        ):
            self.waits.append(name)
        copies = name in ("copy_", "_to_copy") or (name == "index_put_" and all(own.dim() == 0 for own in host))
        if name == "copy_" and host and not kwargs.get("non_blocking"):
            self.waits.append(name)
        mixed = [own for own in host if own.dim() and not any(own is index for index in indices)]
        assert copies or not mixed, f"{name} of tensors here and elsewhere"

    @staticmethod
    def _inner(given: Any) -> Any:
        return tree_map_only(Moved, lambda own: own.inner, given)
