"""How much each prompt token matters to a head: psi and the choice of whose queries measure it."""

from madakv.scoring.attention import (
    GroupReduction,
    attention_paid,
    over_groups,
    proxy_attention,
    proxy_attention_reference,
)
from madakv.scoring.context import context_attention_reference, proxy_and_context_attention
from madakv.scoring.most import most_and_attended, most_attention, most_attention_reference
from madakv.scoring.projection import OutputProjection
from madakv.scoring.proxies import ProxyRule, proxy_mask, spread_mask
from madakv.scoring.rotary import Rotary
from madakv.scoring.view import LayerView

__all__ = [
    "GroupReduction",
    "LayerView",
    "OutputProjection",
    "ProxyRule",
    "Rotary",
    "attention_paid",
    "context_attention_reference",
    "most_and_attended",
    "most_attention",
    "most_attention_reference",
    "over_groups",
    "proxy_and_context_attention",
    "proxy_attention",
    "proxy_attention_reference",
    "proxy_mask",
    "spread_mask",
]
