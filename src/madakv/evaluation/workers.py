"""Several processes on one run: each answers its share of the samples, and one writes the report."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from madakv.errors import ConfigurationError

_PATIENCE = timedelta(days=14)
"""How long a process that is done waits for the others: as long as a run may take."""


@dataclass(frozen=True)
class Shard:
    """A share of the samples: those whose number leaves `index` - 1 when divided by `count`.

    Attributes:
        index: from 1.
        count: of all shards.
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `i/n`.

        Raises:
            ConfigurationError: not two numbers, or i outside 1 to n.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        index, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= index <= count:
            raise ConfigurationError(f"--shard takes i/n with i from 1 to n, such as 1/4; got {text!r}")
        return cls(index, count)

    def split(self, index: int, count: int) -> Shard:
        """The share of one of `count` processes, numbered from 0, in this share."""
        return Shard(self.index + self.count * index, self.count * count)

    @property
    def suffix(self) -> str:
        """For the names of this share's files; empty if it is the whole."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"

    def of(self, number: int) -> bool:
        """Whether it holds the sample of this number, counted from 0."""
        return number % self.count == self.index - 1


WHOLE = Shard()


@dataclass(frozen=True)
class Worker:
    """This process among those that torchrun has started; the only one if it has not.

    Attributes:
        rank: from 0.
        count: of all processes.
        local_rank: on this machine; picks the GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Worker:
        """As torchrun says in RANK, WORLD_SIZE and LOCAL_RANK."""
        rank, count, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
        return cls(rank, count, local)

    @property
    def leads(self) -> bool:
        """Whether it is the one that reports."""
        return self.rank == 0

    def device(self, wanted: str | None) -> str | None:
        """The device of this process: its own GPU where there are several processes and nothing else is asked for."""
        if self.count > 1 and torch.cuda.is_available() and wanted in (None, "cuda"):
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return wanted

    @contextmanager
    def together(self) -> Iterator[None]:
        """On leaving, wait until all processes have come here."""
        if self.count == 1:
            yield
            return
        # Nothing but this barrier is exchanged, and gloo needs no GPU for it.
        dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield
            dist.barrier()
        finally:
            dist.destroy_process_group()
