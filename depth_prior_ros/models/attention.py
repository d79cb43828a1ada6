"""Attention of many queries over a fixed set of references, never holding all weights at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Queries whose weights over all references are held at once in bfloat16: at 25,000 references
# 3 MiB, which stay in a processor's cache.
_BLOCK = 64


def pad_channels(x: Tensor, width: int) -> Tensor:
    """Zeros behind the last dimension, up to `width`."""
    return F.pad(x, (0, width - x.shape[-1]))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, width) -> (heads, N, width / heads)."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1).contiguous()


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(queries keys^T) values.

    PyTorch's fused kernel holds blocks of the weights only, if queries, keys and values have the
    same number of channels, side by side in memory; otherwise it falls back, without a word, to
    one that holds them all. A map's queries are channels first and are copied. Queries in float32
    with keys and values in bfloat16 go through `attend_in_blocks`, as the fused kernel is no faster
    in bfloat16 on a CPU.

    Args:
        queries: (B, heads, Q, P), scaled.
        keys: (1, heads, N, P).
        values: (1, heads, N, P).

    Returns:
        (B, heads, Q, P) in the queries' type.
    """
    batch = queries.shape[0]
    keys, values = (t.expand(batch, -1, -1, -1) for t in (keys, values))
    if keys.dtype == torch.bfloat16 and queries.dtype == torch.float32:
        return attend_in_blocks(queries, keys, values)
    queries = queries.contiguous()
    keys, values = (t.to(queries.dtype) for t in (keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)


def attend_in_blocks(queries: Tensor, keys: Tensor, values: Tensor, block: int = _BLOCK) -> Tensor:
    """softmax(queries keys^T) values in the type of the keys, a block of queries at a time.

    Shapes as in `attend`. The products sum up in float32 and are rounded to the keys' type.
    """
    across = keys.transpose(-2, -1)
    blocks = [
        torch.softmax(part.to(keys.dtype) @ across, dim=-1) @ values
        for part in queries.split(block, dim=2)
    ]
    return torch.cat(blocks, dim=2).to(queries.dtype)
