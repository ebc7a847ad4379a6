"""Settings of parts of the loss that are off by default; settings.py says what a field's description and origin are."""

from typing import Any, Self

from pydantic import Field, model_validator

from .settings import Settings, setting


class FalseNegativeMask(Settings):
    """A limit above which other queries' passages are not negatives, under the current weights: `margin` or `share`."""

    margin: float | None = setting(
        None,
        "Leave out another query's passage if its cosine exceeds the positive's by more than this; 0.1 in"
        " Qwen3-Embedding (arXiv 2506.05176). A lower one leaves out more; below 0 also passages that score under the"
        " positive.",
        ge=-2,
        le=2,
    )
    share: float | None = setting(
        None,
        "Leave out another query's passage if its cosine is above this share of the positive's, such as 0.95.",
        gt=0,
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.margin is None) == (self.share is None):
            raise ValueError("expected one of `margin` and `share`, such as `{margin: 0.1}`")
        return self

    def ceiling(self, positive: Any) -> Any:
        """Return the highest cosine that another query's passage may have, given the positive's: arrays or tensors."""
        if self.margin is not None:
            return positive + self.margin
        assert self.share is not None
        return positive - (1 - self.share) * abs(positive)  # as `topk-percpos`: for a negative cosine, too, lower


class DistillSettings(Settings):
    """Learning from the scores that a judge gave to the pools (`conan judge`), as one more term of the loss."""

    temperature: float = Field(
        gt=0,
        description="Divides the judge's scores. It has no default, as every judge has a scale of its own: 1 suits the"
        " logits of a cross-encoder, about 0.1 its probabilities, 0.02 the cosines of a bi-encoder. A lower one makes"
        " the judge surer.",
    )
    judge: str | None = setting(
        None,
        "Beginning of the judge's name, as in the column `judge` of `pools.judgements`; needed only if several have"
        " judged the pools.",
    )
    loss: str = setting(
        "kl",
        "kl: KL divergence of the model's softmax over a query's positive and negatives from the judge's. margin_mse:"
        " mean squared error of the margins between the positive and the negatives. Or a name that a plugin registers.",
        origin="chosen here: as FlagEmbedding's `kd_loss_type`",
    )
    weight: float = setting(1.0, "Weight of the term in the loss.", origin="chosen here: as in FlagEmbedding", gt=0)
