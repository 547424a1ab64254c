"""The scheduler's side: how many blocks a request holds. It is told nothing but prompts' lengths and budgets.

Blocks stay at their tokens' positions, and freed ones leave a null behind, as of sliding windows: positions, slots
and the engine's own reckoning with them are what they were.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched import output
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from madakv.integrations.vllm.settings import Settings, first_kept_block
from madakv.integrations.vllm.wrapping import wrap


@dataclass(frozen=True, kw_only=True)
class EvictedSpec(FullAttentionSpec):  # type: ignore[misc]
    """A layer that holds whole prompts until they are read.

    Attributes:
        settings: as asked for; so they reach the scheduler.
    """

    settings: Settings

    @classmethod
    def around(cls, spec: Any, settings: Settings) -> EvictedSpec:
        """What a layer would have had."""
        return cls(**_values(spec), settings=settings)

    @classmethod
    def merge(cls, specs: list[Any]) -> EvictedSpec:
        """One for all layers."""
        plain = [FullAttentionSpec(**_values(spec)) for spec in specs]
        return cls.around(FullAttentionSpec.merge(plain), specs[0].settings)


def _values(spec: Any) -> dict[str, Any]:
    return {field.name: getattr(spec, field.name) for field in fields(FullAttentionSpec)}


class EvictingManager(FullAttentionManager):  # type: ignore[misc]
    """Frees a prompt's blocks once it was read, but for those that hold what is kept."""

    def __init__(self, kv_cache_spec: EvictedSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self._settings = kv_cache_spec.settings
        self._first: dict[str, int] = {}
        wrap(output, "strip_covered_mm_data", _around_strip_covered_mm_data)
        wrap(KVCacheManager, "get_computed_blocks", _around_get_computed_blocks)

    def first_kept(self, request: Any) -> int:
        """The first block that holds pages of a request once its prompt was read; 0: it stays whole."""
        name = request.request_id
        if name not in self._first:
            budget = self._settings.budget_of(request.sampling_params.extra_args)
            self._first[name] = first_kept_block(budget, request.num_prompt_tokens, self.block_size)
        return self._first[name]

    def cache_blocks(self, request: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """Others may find what is before the pages; what lies in these, and behind them, is this request's alone."""
        if first := self.first_kept(request):
            num_tokens = min(num_tokens, first * self.block_size)
        super().cache_blocks(request, num_tokens, *args, **kwargs)

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """After the step that read the prompt's end, its first blocks are gone; see `first_kept_block`."""
        if num_prompt_tokens is None or processed_computed_tokens < num_prompt_tokens:
            return
        # It was looked at when it came in.
        self._remove_blocks_in_range(request_id, 0, self._first[request_id])

    def pop_blocks_for_free(self, request_id: str) -> Any:
        """The request is over, or preempted."""
        self._first.pop(request_id, None)
        return super().pop_blocks_for_free(request_id)


def _around_strip_covered_mm_data(features: Any, _original: Any, *_: Any, **__: Any) -> Any:
    """Workers get pictures whose blocks were found, too: tokens of them may be read once more."""
    return features


def _around_get_computed_blocks(manager: Any, original: Any, request: Any) -> tuple[Any, int, int]:
    """A request, which comes in here, takes over no block that its pages will be written into."""
    blocks, tokens, boundary = original(request)
    for own in manager.coordinator.single_type_managers:
        if isinstance(own, EvictingManager) and 0 < (limit := own.first_kept(request) * own.block_size) < tokens:
            return manager.truncate_computed_blocks(blocks, limit), limit, boundary
    return blocks, tokens, boundary


# The engine's own specs come first: where one is there, none of them would be added.
KVCacheSpecRegistry._ensure_registered()
KVCacheSpecRegistry.register(EvictedSpec, EvictingManager, uniform_type_base_spec=FullAttentionSpec)
