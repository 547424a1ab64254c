"""What is compared: transformers' caches, and madakv's methods at their budgets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import Cache, CompileConfig, DynamicCache, QuantizedCache, StaticCache
from transformers.utils.import_utils import is_flash_attn_2_available

from madakv.api import evict
from madakv.bench.prompt import Prompt
from madakv.bench.subject import Subject
from madakv.errors import ConfigurationError
from madakv.hf.cache import RaggedCache
from madakv.hf.replay import ReadPrompt
from madakv.kept import Kept
from madakv.linears import fast_linears
from madakv.markdown import budget_text
from madakv.methods import Method
from madakv.run import Run
from madakv.scoring import LayerView

BASELINE = "DynamicCache"
STATIC = "StaticCache"
_COMPILED = ", compiled"
_FAST = ", fast linears"
_FLASH = f"{BASELINE}, FlashAttention 2"

_GRAPHS = CompileConfig(fullgraph=True)
"""As `generate` compiles steps on a GPU: by inductor, into CUDA graphs; but a graph that breaks is an error."""


@dataclass(frozen=True, eq=False)
class Read:
    """A prompt that has been read.

    Attributes:
        cache: what the next tokens are read with.
        kept: what eviction kept; None without eviction.
        output: [B, X] of the last token; None if the cache was filled without the model.
    """

    cache: Any
    kept: Kept | None
    output: Tensor | None


class Contender(ABC):
    """A way to hold the KV cache.

    Attributes:
        label: its name in tables.
        exact: whether it must answer as the full cache in full precision does.
        described: what it is in full, for result files.
        compiled: how its steps are compiled; None if they run as they are.
        fast_linears: whether it multiplies inside `madakv.fast_linears`.
    """

    label: str
    exact: bool
    described: str
    compiled: CompileConfig | None = None
    fast_linears: bool = False

    def like(self, label: str) -> str:
        """The label of a cache of transformers that differs in nothing but the cache."""
        compiled = _COMPILED if self.compiled is not None and label == STATIC else ""
        return label + compiled + (_FAST if self.fast_linears else "")

    @property
    def settling(self) -> int:
        """Tokens that it reads before its speed is what it stays."""
        # With CUDA graphs: one step makes tables, one warms up, one is recorded, and one is replayed.
        return 1 if self.compiled is None else 4

    @abstractmethod
    def inside(self, subject: Subject) -> AbstractContextManager[Run | None]:
        """The context that its passes run in."""

    @abstractmethod
    def read(self, subject: Subject, prompt: Prompt, room: int, run: Run | None) -> Read:
        """Read a prompt with the model, inside the context, with room for so many later tokens per row."""

    @abstractmethod
    def fill(self, subject: Subject, views: Sequence[LayerView], room: int, run: Run | None) -> Read:
        """Take in what the layers' attention would have seen of a prompt, without running the model."""


class Stock(Contender):
    """A cache of transformers.

    Args:
        label: its name in tables.
        make: from the model's config and the most tokens that it has to hold.
        exact, compiled: see `Contender`.
        attention: which of transformers' attention functions the model uses; None = its own choice.
    """

    def __init__(
        self,
        label: str,
        make: Callable[[Any, int], Cache],
        *,
        exact: bool,
        compiled: CompileConfig | None = None,
        attention: str | None = None,
    ) -> None:
        self.label = self.described = label
        self.exact, self.compiled = exact, compiled
        self._make, self._attention = make, attention

    def inside(self, subject: Subject) -> AbstractContextManager[Run | None]:
        """The unchanged model, or with another attention function."""
        return nullcontext() if self._attention is None else _attending(subject.model, self._attention)

    def read(self, subject: Subject, prompt: Prompt, room: int, run: Run | None) -> Read:  # noqa: ARG002
        """A plain pass."""
        cache = self._make(subject.model.config, prompt.width + room)
        output, cache = subject.output(**prompt.inputs, past_key_values=cache)
        return Read(cache, None, output)

    def fill(self, subject: Subject, views: Sequence[LayerView], room: int, run: Run | None) -> Read:  # noqa: ARG002
        """All keys and values."""
        cache = self._make(subject.model.config, views[0].key.shape[2] + room)
        for number, view in enumerate(views):
            cache.update(view.key, view.value, number)
        return Read(cache, None, None)


class Evicted(Contender):
    """A method of madakv at a budget.

    Args:
        method: reads the prompt once; neither drafts nor looks ahead.
        compiled: see `Contender`.

    Raises:
        ConfigurationError: another method.
    """

    def __init__(self, method: Method, *, compiled: CompileConfig | None = None) -> None:
        if method.draft or method.lookahead:
            raise ConfigurationError(f"{method.label}: methods that draft or look ahead are not measured here")
        self.method = method
        self.described = repr(method)
        entries = "" if isinstance(method.budget, float) else " entries"
        # Rows are kept by label: no two budgets may read alike.
        self.label = f"{method.label} {budget_text(method.budget)}{entries}" + (_COMPILED if compiled else "")
        self.compiled = compiled
        self.exact = method.keeps_everything and method.merge is None

    def inside(self, subject: Subject) -> AbstractContextManager[Run | None]:
        """`madakv.evict`."""
        return evict(subject.model, self.method)

    def read(self, subject: Subject, prompt: Prompt, room: int, run: Run | None) -> Read:
        """A pass that evicts."""
        output, cache = subject.output(**prompt.inputs, **prompt.told)
        return Read(self._with_room(cache, room), None if run is None else run.last, output)

    def _with_room(self, cache: Cache, room: int) -> Cache:
        if self.compiled is not None and isinstance(cache, RaggedCache):
            cache.reserve(room)
        return cache

    def fill(self, subject: Subject, views: Sequence[LayerView], room: int, run: Run | None) -> Read:
        """The method's own scores and plans, of what is given."""
        if run is None:
            raise RuntimeError("an evicted cache is filled inside `madakv.evict`")
        if self.method.echoes and getattr(self.method, "echo", None) != "auto":
            raise ConfigurationError(f"{self.label}: an echo is read by the model; use --fill prefill")
        seen = ReadPrompt(tuple(views), views[0].modality, logits=torch.empty(0), ids=[])
        return Read(self._with_room(seen.evicted(subject.model, run), room), run.last, None)


class Fast(Contender):
    """Another contender, with products of madakv's own."""

    fast_linears = True

    def __init__(self, of: Contender) -> None:
        self.label, self.described = of.label + _FAST, of.described + _FAST
        self.exact, self.compiled = of.exact, of.compiled
        self._of = of

    @contextmanager
    def inside(self, subject: Subject) -> Iterator[Run | None]:
        """Its context, and `madakv.fast_linears`."""
        with fast_linears(subject.model), self._of.inside(subject) as run:
            yield run

    def read(self, subject: Subject, prompt: Prompt, room: int, run: Run | None) -> Read:
        """As it does."""
        return self._of.read(subject, prompt, room, run)

    def fill(self, subject: Subject, views: Sequence[LayerView], room: int, run: Run | None) -> Read:
        """As it does."""
        return self._of.fill(subject, views, room, run)


def baseline() -> Contender:
    """The full cache that transformers uses by default; all ratios are against it, with the same products."""
    return Stock(BASELINE, lambda config, _: DynamicCache(config=config), exact=True)


def contenders(
    config: Any,
    methods: Sequence[Method],
    *,
    rivals: bool = True,
    timed: Subject | None = None,
    fast_linears: bool = False,
) -> tuple[list[Contender], list[str]]:
    """Everything to compare, the baseline first.

    Args:
        config: of the model.
        methods: of madakv.
        rivals: whether transformers' other caches take part.
        timed: whose decoding is timed; on a GPU compiled steps and FlashAttention take part. None if it is not.
        fast_linears: whether all take part a second time, with products of madakv's own.

    Returns:
        The contenders; and for each cache that cannot run here a line that says why.
    """
    found, missing = [baseline()], []
    if rivals:
        found.append(_static())
        for backend in ("quanto", "hqq", "fp8"):
            try:
                QuantizedCache(backend, config)
            except (ImportError, ValueError) as error:
                missing.append(f"QuantizedCache({backend}) is not measured: {' '.join(str(error).split())}")
            else:
                found.append(_quantized(backend))
    found += [Evicted(method) for method in methods]
    if timed is not None and timed.device.type == "cuda":
        if rivals:
            found.append(_static(_GRAPHS))
            if timed.dtype not in (torch.bfloat16, torch.float16):
                missing.append(f"{_FLASH} is not measured: it takes bf16 and fp16, not {timed.dtype}")
            elif is_flash_attn_2_available():
                found.append(_flash())
            else:
                missing.append(f"{_FLASH} is not measured: the package flash-attn is missing")
        found += [Evicted(method, compiled=_GRAPHS) for method in methods]
    if fast_linears:
        found += [Fast(contender) for contender in found if contender.compiled is None]
    return found, missing


def _static(compiled: CompileConfig | None = None) -> Contender:
    label = STATIC + (_COMPILED if compiled else "")
    return Stock(label, lambda config, room: StaticCache(config, max_cache_len=room), exact=True, compiled=compiled)


def _flash() -> Contender:
    return Stock(_FLASH, lambda config, _: DynamicCache(config=config), exact=True, attention="flash_attention_2")


@contextmanager
def _attending(model: Any, attention: str) -> Iterator[None]:
    """With another of transformers' attention functions."""
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _quantized(backend: str) -> Contender:
    return Stock(f"QuantizedCache({backend})", lambda config, _: QuantizedCache(backend, config), exact=False)


def live_bytes(cache: Any) -> int:
    """Bytes of all storages that a cache holds, spare capacity and padding included."""
    if isinstance(cache, RaggedCache):
        return cache.nbytes + cache.other_nbytes
    storages = {}
    for layer in cache.layers:
        for tensor in _tensors(list(vars(layer).values())):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        if is_traceable_wrapper_subclass(value):
            return _tensors([getattr(value, name) for name in value.__tensor_flatten__()[0]])
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [x for item in value for x in _tensors(item)] if isinstance(value, list | tuple) else []
