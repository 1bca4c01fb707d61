"""Preparation: resolution of images, tiles, embeddings, gene names."""

from __future__ import annotations

from ragst_sd._lazy import lazy_functions

__all__, __getattr__, __dir__ = lazy_functions(__name__)
