"""Packed attention, as the server uses it; it lives in the model room."""

from dptdr.model.packing import (
    NAME,
    SHORT_TEXT,
    Group,
    PackedCall,
    PromptRows,
    Run,
    attend,
    feed_forward_spans,
    packed_attention,
    plan,
    register,
)

__all__ = [
    "NAME",
    "SHORT_TEXT",
    "Group",
    "PackedCall",
    "PromptRows",
    "Run",
    "attend",
    "feed_forward_spans",
    "packed_attention",
    "plan",
    "register",
]
