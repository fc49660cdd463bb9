"""Numbers over ranks. With one rank, or no process group, everything stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dualenc.model.ranks import rank_and_ranks


def rows_to_first(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The rows of all ranks, the first rank's first, on the first rank; None on the others.

    parts: arrays (N,) or (N, D) by the same names on every rank, of any N each. What travels is as long as the longest.
    """
    rank, ranks = rank_and_ranks()
    if ranks == 1:
        return dict(parts)
    own = torch.tensor([len(rows) for rows in parts.values()], device=_device())
    counts = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(counts, own)
    lengths = torch.stack(counts).tolist()  # (ranks, names)
    whole = {}
    for place, (name, rows) in enumerate(parts.items()):
        longest = max(each[place] for each in lengths)
        padded = torch.zeros((longest, *rows.shape[1:]), dtype=torch.from_numpy(rows[:0]).dtype, device=_device())
        padded[: len(rows)] = torch.from_numpy(rows).to(padded.device)
        found = [torch.empty_like(padded) for _ in range(ranks)] if rank == 0 else None
        dist.gather(padded, found, dst=0)
        if found is not None:
            whole[name] = np.concatenate(
                [x[: each[place]].cpu().numpy() for x, each in zip(found, lengths, strict=True)]
            )
    return whole if rank == 0 else None


def total(rows: np.ndarray) -> np.ndarray:
    """The sum of all ranks' arrays, of one shape."""
    if rank_and_ranks()[1] == 1:
        return rows
    tensor = torch.from_numpy(rows).to(_device())
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()


def from_first(compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the first rank computes, in JSON's types, on every rank; a ValueError of its own is every rank's."""
    rank, ranks = rank_and_ranks()
    if ranks == 1:
        return compute()
    text, error = "", None
    if rank == 0:
        try:
            text = json.dumps({"found": compute()})
        except Exception as caught:  # the others would wait for ever
            text, error = json.dumps({"error": f"{caught}"}), caught
    length = torch.tensor([len(text.encode())], device=_device())
    dist.broadcast(length, src=0)
    data = torch.zeros(int(length), dtype=torch.uint8, device=_device())
    if rank == 0:
        data.copy_(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
    dist.broadcast(data, src=0)
    if error is not None:
        raise error
    said = json.loads(data.cpu().numpy().tobytes())
    if "error" in said:
        raise ValueError(said["error"])
    return said["found"]


def _device() -> torch.device:
    """Where the default group's collectives want their tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def of_all(value: Any) -> list[Any]:
    """The value of every rank, on every rank; only arrays and plain types of our own pass through."""
    ranks = rank_and_ranks()[1]
    if ranks == 1:
        return [value]
    parts: list[Any] = [None] * ranks
    dist.all_gather_object(parts, value)
    return parts
