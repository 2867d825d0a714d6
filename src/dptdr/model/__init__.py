"""Backbone, prompt injection, tuning methods, encoder and task bundle."""

from dptdr.config.methods import (
    METHOD_NAMES,
    DeepPromptConfig,
    EmptyConfig,
    LoraConfig,
    MethodConfig,
    MethodName,
    ShallowPromptConfig,
    config_from,
)
from dptdr.io.startup import collector_off

with collector_off():
    from dptdr.model.backbone import Backbone, Side, Tokens
    from dptdr.model.bundle import (
        TaskManifest,
        load_encoder,
        load_task,
        read_manifest,
        save_task,
    )
    from dptdr.model.encoder import Encoder, Limits
    from dptdr.model.injection import Geometry, Injection
    from dptdr.model.methods import Method, MethodFactory
    from dptdr.model.pooling import Pooling
    from dptdr.model.prompt import DeepPrompt
    from dptdr.model.prompt_rows import AttentionRows, PromptCall

__all__ = [
    "METHOD_NAMES",
    "AttentionRows",
    "Backbone",
    "DeepPrompt",
    "DeepPromptConfig",
    "EmptyConfig",
    "Encoder",
    "Geometry",
    "Injection",
    "Limits",
    "LoraConfig",
    "Method",
    "MethodConfig",
    "MethodFactory",
    "MethodName",
    "Pooling",
    "PromptCall",
    "ShallowPromptConfig",
    "Side",
    "TaskManifest",
    "Tokens",
    "config_from",
    "load_encoder",
    "load_task",
    "read_manifest",
    "save_task",
]
