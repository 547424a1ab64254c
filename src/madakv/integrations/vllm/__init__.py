"""Eviction inside vLLM: `--additional-config '{"madakv": {"budget": 0.2}}'`; without it, nothing changes.

vLLM finds `register` through the entry point group `vllm.general_plugins`, in every process. Nothing of vLLM is
imported before that.
"""

from __future__ import annotations


def register() -> None:
    """What vLLM calls when it loads its plug-ins."""
    from madakv.integrations.vllm.plugin import install

    install()
