"""LLM2Vec (arXiv 2404.05961): decoder-only LLMs as text encoders, reproduced.

``LLM2Vec`` is imported on first use, so that reading results or ``--help`` never waits for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm2vec.encoder import LLM2Vec

__all__ = ["LLM2Vec"]


def __getattr__(name: str) -> Any:
    if name == "LLM2Vec":
        from llm2vec.encoder import LLM2Vec

        return LLM2Vec
    raise AttributeError(f"module 'llm2vec' has no attribute {name!r}")
