"""The class that lmms-eval runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from tqdm import tqdm

from madakv.api import evict
from madakv.errors import ConfigurationError, UnsupportedOptionError
from madakv.integrations.lmms_eval.generation import cut, options_of
from madakv.integrations.lmms_eval.messages import inputs_of
from madakv.loading import load
from madakv.methods import from_text


class MadaKV(lmms):  # type: ignore[misc]
    """Any model that madakv can evict, on any task of lmms-eval that is answered by generating text.

    Args:
        pretrained: see `madakv.loading.load`.
        method: as on the command line of madakv, options behind colons: `madakv:draft=8`.
        budget: see `madakv.evict`.
        device: such as "cuda" or "cpu"; under several processes each takes its own.
        dtype: see `madakv.loading.load`.
        batch_size: 1.
        max_batch_size: not used; lmms-eval hands it to every model.
        unknown: refused by name.

    Raises:
        ConfigurationError: an unknown argument, method or model.
        UnsupportedOptionError: another batch size.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        method: str = "madakv",
        budget: float | int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,  # noqa: ARG002
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise ConfigurationError(
                f"the model 'madakv' has no argument {', '.join(unknown)}; it has pretrained, method, budget, device "
                "and dtype. Options of a method follow its name: method=madakv:draft=8"
            )
        if str(batch_size) != "1":
            raise UnsupportedOptionError(f"batch_size={batch_size}: the model 'madakv' answers one request at a time")
        if pretrained is None:
            raise ConfigurationError("name a model: --model_args pretrained=...")
        self._method = from_text(method, budget)
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        self._model, self._processor = load(pretrained, device=self._place(device), dtype=dtype)

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts the tensors that processes exchange."""
        device: torch.device = self.accelerator.device if self.world_size > 1 else self._model.device
        return device

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with an evicted cache of its own."""
        results = []
        tokens, share, begun = 0, 0.0, time.perf_counter()
        with evict(self._model, self._method) as run:
            for request in tqdm(requests, desc=self._method.label, disable=self.rank != 0):
                _, to_messages, settings, index, task, split = request.args
                result = self._answer(to_messages(self.task_dict[task][split][index]), settings)
                results.append(result)
                tokens += result.token_counts.output_tokens
                share += run.last.kept_share if run.last else 0.0
        seconds = time.perf_counter() - begun
        log_metrics(seconds, tokens, tokens / seconds, {"kept_share": share / max(1, len(requests))})
        return results

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:  # noqa: ARG002
        """Refused."""
        raise UnsupportedOptionError(
            "the model 'madakv' answers tasks that generate text (output_type: generate_until); this one compares "
            "likelihoods of given answers, which are read after the prompt and would not be evicted"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:  # noqa: ARG002
        """Refused."""
        raise UnsupportedOptionError(
            "the model 'madakv' answers tasks of one round (output_type: generate_until); this one has several rounds"
        )

    def _place(self, device: str | None) -> str | None:
        if self.world_size == 1:
            return device
        own: torch.device = self.accelerator.device
        if device is not None and torch.device(device).type != own.type:
            raise ConfigurationError(
                f"device={device}, but accelerate gave this process {own}; for the CPU, start with "
                "`accelerate launch --cpu` or set ACCELERATE_USE_CPU=1"
            )
        return str(own)

    def _answer(self, messages: Sequence[Any], settings: dict[str, Any]) -> Any:
        inputs = inputs_of(self._processor, messages).to(self._model.device)
        out = self._model.generate(**inputs, **options_of(settings))
        read = inputs["input_ids"].shape[1]
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        text = tokenizer.decode(out[0, read:], skip_special_tokens=True).strip()
        counts = TokenCounts(input_tokens=read, output_tokens=out.shape[1] - read)
        return GenerationResult(cut(text, settings.get("until")), counts)
