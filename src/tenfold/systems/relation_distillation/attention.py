"""What the room offers of the ground floor's `tenfold.attention`, under the names that its users know."""

from tenfold.attention.heads import heads_per_block, regrouped, relation_heads, set_heads, set_heads_per_block
from tenfold.attention.layers import AttentionLayer, Tap, attention_layers
from tenfold.attention.taps import tap, tap_layers
from tenfold.attention.tokens import common_tokens

__all__ = [
    "AttentionLayer",
    "Tap",
    "attention_layers",
    "common_tokens",
    "heads_per_block",
    "regrouped",
    "relation_heads",
    "set_heads",
    "set_heads_per_block",
    "tap",
    "tap_layers",
]
