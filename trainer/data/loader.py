"""Tokenises this rank's part of each batch, and prepares the next batch while the current one is trained on."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...schemas.training_settings import CBBPartition
from ..loss.cbb import Batch, partition_rows, sts_only_mask
from ..loss.gradcache import MIXED_TOKENS, chunks_of
from ..transfer import to_device


@dataclass(frozen=True)
class RankBatch:
    """A batch, and this rank's part of its texts as token ids, longest first.

    Two permutations put embeddings back in order. `own[places]` turns this rank's embeddings from the order of `ids`
    into the order in which texts were divided. `gathered[restore]` turns those of all ranks (`counts` of each rank)
    into the order of the batch's texts.
    """

    batch: Batch
    ids: list[list[int]]
    places: Tensor
    counts: list[int]
    restore: Tensor

    @property
    def tokens(self) -> int:
        """The number of tokens in this rank's texts."""
        return sum(len(each) for each in self.ids)


def load_batches(
    build: Callable[[int], Batch],
    steps: range,
    partition: CBBPartition,
    tokenizer: Any,
    rank: int,
    world_size: int,
    changes_data: Callable[[int], bool],
) -> Iterator[tuple[int, RankBatch]]:
    """Yield each step with its batch. A thread builds the next batch, unless the step before it may change the data."""

    def load(step: int) -> RankBatch:
        batch = build(step)
        # Divide by characters rather than tokens, so that each rank tokenises only its own texts.
        characters = [min(len(text), tokenizer.model_max_length) for text in batch.texts]
        parts = partition_rows(world_size, characters, sts_only_mask(batch, partition))
        texts = [batch.texts[row] for row in parts[rank]]
        ids: list[list[int]] = []
        if texts:  # a tokenizer rejects an empty list
            tokens = tokenizer(
                texts, truncation=True, max_length=tokenizer.model_max_length, return_attention_mask=False
            )
            ids = tokens["input_ids"]
        longest_first = np.argsort([-len(each) for each in ids], kind="stable")
        return RankBatch(
            batch,
            [ids[place] for place in longest_first],
            torch.from_numpy(np.argsort(longest_first)),
            [len(part) for part in parts],
            torch.from_numpy(np.argsort(np.concatenate(parts))),
        )

    with ThreadPoolExecutor(max_workers=1) as thread:
        ahead = None
        for step in steps:
            batch = ahead.result() if ahead else load(step)
            ahead = thread.submit(load, step + 1) if step + 1 in steps and not changes_data(step) else None
            yield step, batch


def pad_chunks(
    tokenizer: Any, ids: list[list[int]], gradcache_tokens: int | None, device: torch.device, packable: bool = True
) -> list[tuple[Tensor, Tensor | None]]:
    """Split texts, given longest first, into chunks that are encoded together: token ids and attention mask [n, L].

    A rank without texts has one empty chunk, because it still takes part in the forward pass. On a GPU, a chunk without
    padding has no mask; reading one to find that nothing is padded would make the host wait for the GPU. On a CPU, the
    chunks of a model that can't pack them are of texts of similar length, as padding would take longer than a pass.
    """
    mixed_tokens = MIXED_TOKENS if packable or device.type != "cpu" else 0
    return [
        _padded(tokenizer, ids[chunk], device) if ids[chunk] else empty_chunk(device)
        for chunk in chunks_of([len(each) for each in ids], gradcache_tokens, mixed_tokens)
    ]


def empty_chunk(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask of a chunk without texts, [0, 1]."""
    nothing = torch.zeros(0, 1, dtype=torch.long, device=device)
    return nothing, nothing


def _padded(tokenizer: Any, ids: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Pad on the right, whatever the tokenizer's own side, as inference does: poolings and positions rely on it."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))[:, None]
    there = np.arange(lengths.max()) < lengths
    padded = np.full(there.shape, tokenizer.pad_token_id, np.int64)
    padded[there] = np.concatenate(ids)
    needs_mask = device.type == "cpu" or not there.all()
    mask = to_device(torch.from_numpy(there.astype(np.int64)), device) if needs_mask else None
    return to_device(torch.from_numpy(padded), device), mask
