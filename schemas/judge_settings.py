"""Settings of `conan judge`: who judges the pools, and how many candidates."""

from .settings import EncoderSettings, setting


class JudgeSettings(EncoderSettings):
    """The judge of the pools: a model that scores pairs of a query and a passage, or a file of scores."""

    model: str = setting(
        "BAAI/bge-reranker-v2-m3",
        "Cross-encoder: a folder or hub name of a Hugging Face sequence classifier with one label, or of a CrossEncoder"
        " of sentence-transformers. Any other name is a bi-encoder, as in `mine.model`; its scores are cosines.",
        origin="chosen here: of the rerankers with an open license, the one most used for Chinese",
    )
    scores: str | None = setting(
        None,
        "File of scores that takes the place of the model: `.parquet` or `.jsonl` with the columns `query`, `passage`"
        " and `score`.",
    )
    candidates: int = setting(10, "Candidates per query to judge, the best first; positives are always judged.", ge=0)
