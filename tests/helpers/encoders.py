"""Encoder doubles for searching without a model."""

import hashlib

import numpy as np


class HashEncoder:
    """An encoder double: a text's vector is a pure function of the text.

    Each word adds a fixed random direction, so that texts that share words score higher.
    """

    def __init__(self, *, dim=16, name="double", prompt="p1", backbone="b1"):
        self.dim = dim
        self.name = name
        self.backbone_fingerprint = f"backbone-{backbone}"
        self.query_fingerprint = f"query-{backbone}-{prompt}"
        self.passage_fingerprint = f"passage-{backbone}-{prompt}"
        self.prompt = prompt
        self.encoded = []

    def _word(self, word):
        digest = hashlib.sha256(f"{self.prompt} {word}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        return generator.standard_normal(self.dim)

    def _encode(self, texts):
        rows = []
        for text in texts:
            row = np.sum([self._word(word) for word in text.split()] or [np.ones(self.dim)], axis=0)
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, dtype=np.float32).reshape(len(texts), self.dim)

    def encode_queries(self, texts, *, on_progress=None):
        if on_progress is not None:
            on_progress(len(texts), len(texts))
        return self._encode(texts)

    def encode_passages(self, texts, *, on_progress=None):
        self.encoded.extend(texts)
        if on_progress is not None:
            on_progress(len(texts), len(texts))
        return self._encode(texts)
