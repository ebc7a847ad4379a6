from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from conan_embedding.schemas.training_settings import BootstrapSettings
from conan_embedding.trainer.model.bootstrap import SPECIAL, build_vocabulary, make_untrained, tiny_bert
from conan_embedding.trainer.model.embedding_model import load
from transformers import AutoModel, AutoTokenizer

TEXTS = ["天气好，天气真好", "天空 AI ai Ai café", "Привет", "天 2024年", None]


def test_a_vocabulary_is_ranked_by_frequency() -> None:
    vocabulary = build_vocabulary(pa.chunked_array([TEXTS[:2], TEXTS[2:]], pa.string()), 1000)
    assert vocabulary[:5] == SPECIAL
    assert len(set(vocabulary)) == len(vocabulary)
    assert {"a", "##a", "9", "##9", "天", "，", "ai", "cafe", "2024", "р", "##р"} <= set(vocabulary)
    assert not {"##天", "##，", "", " ", "AI", "é", "##ai"} & set(vocabulary)
    characters = Counter("".join(text for text in TEXTS if text))
    han = [token for token in vocabulary if "一" <= token <= "龥"]
    assert han == sorted(han, key=lambda token: (-characters[token], token))


def test_the_size_is_a_limit_that_frequent_pieces_win() -> None:
    texts = pa.chunked_array([TEXTS], pa.string())
    vocabulary = build_vocabulary(texts, 80)
    assert len(vocabulary) == 80
    assert vocabulary == build_vocabulary(texts, 1000)[:80]
    assert vocabulary[77] == "天"


def test_every_latin_word_can_be_spelt(tmp_path: Path) -> None:
    texts = pa.chunked_array([TEXTS], pa.string())
    tiny_bert(tmp_path, texts=texts, layers=1, hidden=16, heads=2, intermediate=32, max_length=32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("AI天气Qx7é") == ["ai", "天", "气", "q", "##x", "##7", "##e"]
    assert tokenizer.tokenize("Привет") == ["п", "##р", "##и", "##в", "##е", "##т"]
    assert tokenizer.tokenize("龘") == ["[UNK]"]
    assert tokenizer.model_max_length == 32


def test_a_vocabulary_file_gives_the_shape_asked_for(tmp_path: Path) -> None:
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join([*SPECIAL, "天", "气"]) + "\n", encoding="utf-8")
    shape = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 32, "max_length": 24}
    folder = tiny_bert(tmp_path / "model", vocab_file, **shape)
    encoder = AutoModel.from_pretrained(folder, use_safetensors=True)
    config = encoder.config
    assert (config.vocab_size, config.num_hidden_layers, config.hidden_size) == (7, 1, 16)
    assert (config.num_attention_heads, config.intermediate_size, config.max_position_embeddings) == (2, 32, 24)
    assert AutoTokenizer.from_pretrained(folder)("天气")["input_ids"] == [2, 5, 6, 3]


def test_the_seed_decides_the_weights_and_nothing_else(tmp_path: Path) -> None:
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join(SPECIAL), encoding="utf-8")
    shape = {"layers": 1, "hidden": 8, "heads": 1, "intermediate": 8, "max_length": 8}
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    folders = [tiny_bert(tmp_path / str(i), vocab_file, seed=seed, **shape) for i, seed in enumerate([1, 1, 2])]
    assert torch.equal(torch.rand(1), expected)
    one, again, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == again != other


def test_an_untrained_model_is_made_anew_when_what_makes_it_changes(
    shared_training_corpus: Path, shards: Callable[[Path, str], list[Path]], tmp_path: Path
) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, "天"]), encoding="utf-8")
    folder, pairs = tmp_path / "untrained" / "model", shards(shared_training_corpus, "pretrain")
    shape = {"layers": 1, "hidden": 8, "heads": 1, "intermediate": 8, "max_length": 8}

    def make(shards: list[Path] = pairs, training: dict[str, int] = {}, **changes: object) -> bool:  # noqa: B006
        before = folder.stat().st_ino if folder.exists() else None
        settings = BootstrapSettings.model_validate(
            {**shape, "training": {"projection_dim": 12, **training}, **changes}
        )
        make_untrained(folder, settings, shards)
        return folder.stat().st_ino != before

    assert make()
    assert not make()
    assert not make(training={"steps": 7, "batch_size": 3})
    assert make(training={"projection_dim": 6})
    assert load(folder, dimension=6)[0].dimension == 6
    assert make(training={"projection_dim": 6, "seed": 1})
    assert make(layers=2)
    assert make(pairs * 2, layers=2)
    assert make(vocabulary=str(vocabulary))
    vocabulary.write_text("\n".join([*SPECIAL, "地"]), encoding="utf-8")
    assert make(vocabulary=str(vocabulary))
    assert not make(vocabulary=str(vocabulary))


def test_without_vocabulary_or_texts_there_is_nothing_to_build(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_file"):
        tiny_bert(tmp_path)
