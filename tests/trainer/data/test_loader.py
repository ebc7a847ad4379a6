"""Batches are built ahead, except when the data may change, and ranks divide their texts."""

import time
from typing import Any

import pytest
import torch
from conan_embedding.trainer.data.loader import load_batches, pad_chunks
from conan_embedding.trainer.loss.cbb import Batch, build_batch


class Words:
    """A tokenizer with one token per character."""

    model_max_length = 8
    pad_token_id = 0

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(character) for character in text] for text in texts]}


def load(steps: range, checks_every: int, fails_at: int = 0, rank: int = 0, ranks: int = 1) -> tuple[Any, list[str]]:
    """Batches of one pair each, with a record of when each was built."""
    built: list[str] = []

    def build(step: int) -> Batch:
        if step == fails_at:
            raise RuntimeError(f"step {step} has no text")
        built.append(f"built {step}")
        return build_batch([f"q{step}"], [f"p{step}"])

    return load_batches(build, steps, "mixed", Words(), rank, ranks, lambda step: step % checks_every == 0), built


def test_a_batch_is_built_while_another_trains_but_not_across_a_check() -> None:
    batches, built = load(range(2, 8), checks_every=3)
    for step, batch in batches:
        time.sleep(0.05)  # the next one is being built
        built.append(f"trained {step}")
        assert batch.batch.texts == [f"q{step}", f"p{step}"]
        assert sorted(batch.ids) == [[ord("p"), ord(str(step))], [ord("q"), ord(str(step))]]
    expected = (
        "built 2, built 3, trained 2, trained 3, built 4, built 5, trained 4, built 6, trained 5, trained 6, built 7"
    )
    assert built == [*expected.split(", "), "trained 7"]


def test_a_batch_that_cannot_be_built_stops_the_run() -> None:
    seen = []
    with pytest.raises(RuntimeError, match="step 3 has no text"):
        for step, _ in load(range(1, 10), 100, fails_at=3)[0]:
            seen.append(step)
    assert seen == [1, 2]


def test_ranks_share_the_texts_of_a_batch() -> None:
    parts = [next(load(range(1, 2), 9, rank=rank, ranks=2)[0])[1] for rank in range(2)]
    assert sorted(ids for part in parts for ids in part.ids) == [[ord("p"), ord("1")], [ord("q"), ord("1")]]
    assert [len(part.ids) for part in parts] == [1, 1]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_beyond_a_cpu_only_padded_texts_have_a_mask(device: str) -> None:
    """Reading a mask would make the host wait for a GPU."""
    place = torch.device(device)
    (ids, mask), (short_ids, short_mask) = pad_chunks(Words(), [[1] * 6, [2] * 6, [3] * 2, [4]], 12, place)
    assert (ids.shape, short_ids.shape) == ((2, 6), (2, 2))
    assert (mask is None) == (device == "meta")
    assert short_mask.shape == (2, 2)
    assert {each.device.type for each in (ids, short_ids, short_mask)} == {device}


def test_a_cpu_mixes_lengths_only_where_it_can_pack_them() -> None:
    ids = [[1] * 9, [2] * 6, [3] * 4]
    for packable, shapes in ((True, [(3, 9)]), (False, [(2, 9), (1, 4)])):
        chunks = pad_chunks(Words(), ids, None, torch.device("cpu"), packable)
        assert [tuple(found.shape) for found, _ in chunks] == shapes
