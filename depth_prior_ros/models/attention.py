"""Attention of many queries over a fixed set of references, never holding all weights at once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_channels(x: Tensor, width: int) -> Tensor:
    """Zeros behind the last dimension, up to `width`."""
    return F.pad(x, (0, width - x.shape[-1]))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, width) -> (heads, N, width / heads)."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(queries keys^T) values.

    PyTorch's fused kernel holds blocks of the weights only, if queries, keys and values have the
    same number of channels; otherwise it falls back to one that holds them all.

    Args:
        queries: (B, heads, Q, P), scaled.
        keys: (1, heads, N, P).
        values: (1, heads, N, P).

    Returns:
        (B, heads, Q, P) in the queries' type.
    """
    batch = queries.shape[0]
    keys, values = (t.expand(batch, -1, -1, -1).to(queries.dtype) for t in (keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
