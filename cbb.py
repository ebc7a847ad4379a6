"""Cross-GPU batch balance for your own training loops (Conan-embedding, arXiv 2408.15710, §2.3)."""

from .trainer.loss.cbb import Batch, Losses, build_batch, cbb_loss, partition_texts, sts_only_mask

__all__ = ["Batch", "Losses", "build_batch", "cbb_loss", "partition_texts", "sts_only_mask"]
