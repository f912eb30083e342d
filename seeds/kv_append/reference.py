"""New rows of a preallocated cache, changed in place; each sequence is filled up to a position of its own.

It returns nothing: the answer is what the caches hold. Memory-bound in every size, and a launch where S is 1.
"""

import torch
from torch import Tensor


def reference(k_cache: Tensor, v_cache: Tensor, k_new: Tensor, v_new: Tensor, input_pos: Tensor) -> None:
    """k_cache, v_cache: [B, Hkv, L, D]; k_new, v_new: [B, Hkv, S, D]; input_pos: [B].

    Row s of k_new[b] and v_new[b] goes to position input_pos[b] + s; all other rows stay as they are.
    """
    B, _, S, _ = k_new.shape
    sequences = torch.arange(B, device=k_new.device)[:, None]
    positions = input_pos.long()[:, None] + torch.arange(S, device=k_new.device)
    # Indices on both sides of a slice put their dimensions first: [B, S, Hkv, D].
    k_cache[sequences, :, positions] = k_new.transpose(1, 2)
    v_cache[sequences, :, positions] = v_new.transpose(1, 2)
