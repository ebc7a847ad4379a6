"""Training, validation, mining during training, inference and exported folders give the vectors of one model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conan_embedding.pipeline.encoder.encoder import encode, load_encoder
from conan_embedding.pipeline.encoder.model_folder import ModelError
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.settings import EncoderSettings, PromptSettings, SourcePrompts
from conan_embedding.trainer.data.loader import pad_chunks
from conan_embedding.trainer.loss.cbb import build_batch
from conan_embedding.trainer.model.embedding_model import EmbeddingModel, encoder_of, load
from conan_embedding.trainer.model.export import export
from model_folders import KINDS, add_modules, write_plain

QUERIES = ["今天天气很好", "How Are you", "北京", "股市怎样?" * 30]
PASSAGES = ["天气", "很好很好很好", "上海", "泡绿茶"]
CONFIG = {"prompts": {"query": "问：", "document": "答："}}
FLAGS = {
    "qwen3": "lasttoken",
    "modernbert": "cls_token",
    "roberta": "max_tokens",
}


def trained_on(model: EmbeddingModel, tokenizer: object) -> np.ndarray:
    """Vectors of queries and passages as the training loop computes them, of length 1."""
    batch = build_batch(QUERIES, PASSAGES, prompts=model.prompts)
    tokens = tokenizer(batch.texts, truncation=True, max_length=tokenizer.model_max_length)["input_ids"]  # type: ignore[operator,attr-defined]
    order = np.argsort([-len(each) for each in tokens], kind="stable")
    chunks = pad_chunks(tokenizer, [tokens[place] for place in order], 64, torch.device("cpu"))
    with torch.no_grad():
        vectors = torch.cat([model.eval()(*chunk) for chunk in chunks])[np.argsort(order)]
    rows = torch.cat([batch.query_rows, batch.positive_rows])
    return torch.nn.functional.normalize(vectors[rows], dim=1).numpy()


def inferred(encoder: object) -> np.ndarray:
    prompts = encoder.prompts  # type: ignore[attr-defined]
    return np.concatenate([encode(encoder, QUERIES, prompts.query), encode(encoder, PASSAGES, prompts.passage)])  # type: ignore[arg-type]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_give_sentence_transformers_vectors(kind: str, side: str, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is missing")
    pooling = {"pooling_mode_" + FLAGS.get(kind, "mean_tokens"): True}
    folder = add_modules(write_plain(tmp_path / "base", kind, side=side), pooling, config=CONFIG)

    def theirs(path: Path) -> np.ndarray:
        model = sentence_transformers.SentenceTransformer(str(path), device="cpu", local_files_only=True)
        one = {"batch_size": 1, "normalize_embeddings": True}
        return np.concatenate([model.encode_query(QUERIES, **one), model.encode_document(PASSAGES, **one)])

    expected = theirs(folder)
    model, tokenizer = load(folder)
    exported = export(model, tokenizer, tmp_path / "exported")
    found = {
        "training": trained_on(model, tokenizer),
        "validation": inferred(encoder_of(model, tokenizer)),
        "inference": inferred(load_encoder(EncoderSettings(model=str(folder)))),
        "exported": inferred(load_encoder(EncoderSettings(model=str(exported)))),
        "exported, by sentence-transformers": theirs(exported),
    }
    differences = {way: float(np.abs(vectors - expected).max()) for way, vectors in found.items()}
    assert max(differences.values()) < 1e-5, differences


def test_an_encoder_without_modules_is_pooled_alike_everywhere(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "m")
    model, tokenizer = load(folder)
    assert model.pooling == load_encoder(EncoderSettings(model=str(folder))).pooling == "mean"
    assert np.allclose(trained_on(model, tokenizer), inferred(encoder_of(model, tokenizer)), rtol=0, atol=1e-5)


def test_training_can_not_leave_prompts_out_of_the_pooling(tmp_path: Path) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    folder = add_modules(write_plain(tmp_path / "m"), pooling, config=CONFIG)
    with pytest.raises(ModelError, match="include_prompt: false"):
        load(folder)
    empty = PromptSettings(query="", passage="")
    load(folder, prompts=empty, sources={"qa": SourcePrompts(query="")})
    with pytest.raises(ModelError, match="`instruction` and `prompts` of sources"):
        load(folder, prompts=empty, sources={"qa": SourcePrompts(instruction="Find it")})


def test_a_text_with_a_prompt_keeps_its_group() -> None:
    """A query that is also a passage is never its own negative, although their texts differ by the prompts."""
    bare = build_batch(["a", "b"], ["b", "c"])
    prompted = build_batch(["a", "b"], ["b", "c"], prompts=Prompts("q", "p"))
    assert prompted.texts == ["qa", "qb", "pb", "pc"]
    assert len(set(bare.groups.tolist())) == len(set(prompted.groups.tolist())) == 1
    apart = build_batch(["a", "b"], ["x", "y"], [["b"], []], prompts=Prompts("q", "p"))
    assert apart.groups[apart.query_rows[1]] == apart.groups[apart.negative_rows[0, 0]]
