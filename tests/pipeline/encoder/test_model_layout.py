"""Folders are read as sentence-transformers reads them, or refused with the place and the cure."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conan_embedding.pipeline.encoder.encoder import dimension, encode, encode_after, load_encoder
from conan_embedding.pipeline.encoder.model_folder import ModelError, weights_fingerprint
from conan_embedding.pipeline.encoder.model_layout import MODULES, POOLING_FLAGS
from conan_embedding.pipeline.encoder.prompts import read_prompts
from conan_embedding.schemas.prompts import Prompts
from conan_embedding.schemas.settings import EncoderSettings, SourcePrompts
from model_folders import KINDS, add_modules, make_tokenizer, write_json, write_plain
from safetensors.torch import load_file, save_file
from transformers import FNetConfig, FNetModel

TEXTS = ["今天天气很好", "How Are you", "北京", "", "股市怎样?" * 30, "龘"]
MEAN = {"pooling_mode_mean_tokens": True}
IDENTITY = "torch.nn.modules.linear.Identity"
TANH = "torch.nn.modules.activation.Tanh"


def settings(folder: Path, **changes: Any) -> EncoderSettings:
    return EncoderSettings(model=str(folder), **changes)


def theirs(folder: Path, texts: list[str] = TEXTS, function: str = "encode", **options: Any) -> np.ndarray:
    """Vectors by sentence-transformers, of length 1 unless `normalize_embeddings` is given."""
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is missing")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(getattr(model, function)(texts, **{"normalize_embeddings": True, "batch_size": 3} | options))


def agree(ours: np.ndarray, expected: np.ndarray) -> bool:
    return ours.shape == expected.shape and bool(np.allclose(ours, expected, rtol=0, atol=1e-5))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_and_side_of_padding(kind: str, side: str, tmp_path: Path) -> None:
    pooling = {"pooling_mode_lasttoken": True} if kind == "qwen3" else MEAN
    folder = add_modules(write_plain(tmp_path / kind, kind, side=side), pooling)
    # One by one, as sentence-transformers' positions are shifted by padding on the left where they are learnt.
    assert agree(encode(load_encoder(settings(folder)), TEXTS), theirs(folder, batch_size=1))


@pytest.mark.parametrize("flag", POOLING_FLAGS)
@pytest.mark.parametrize("included", [True, False])
def test_every_pooling_with_and_without_the_prompt_s_tokens(flag: str, included: bool, tmp_path: Path) -> None:
    config = {"prompts": {"query": "问：", "passage": "答："}}
    folder = add_modules(write_plain(tmp_path / "m"), {flag: True, "include_prompt": included}, config=config)
    encoder = load_encoder(settings(folder))
    assert encoder.pooling == POOLING_FLAGS[flag] and encoder.prompts == Prompts("问：", "答：")
    texts = [text for text in TEXTS if text]
    assert agree(encode(encoder, texts, "问："), theirs(folder, texts, "encode_query"))
    assert agree(encode(encoder, texts, "答："), theirs(folder, texts, prompt_name="passage"))
    assert agree(encode(encoder, texts), theirs(folder, texts))
    named = flag.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
    named = {"mean_sqrt_len": "mean_sqrt_len_tokens"}.get(named, named)
    write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": 32, "pooling_mode": named})
    assert load_encoder(settings(folder)).pooling == POOLING_FLAGS[flag]


def test_no_flag_is_the_mean(tmp_path: Path) -> None:
    folder = add_modules(write_plain(tmp_path / "m"), {"pooling_mode_cls_token": False})
    assert load_encoder(settings(folder)).pooling == "mean"
    assert agree(encode(load_encoder(settings(folder)), TEXTS), theirs(folder))


@pytest.mark.parametrize(
    "dense",
    [
        [(24, IDENTITY, True)],
        [(24, TANH, False), (16, IDENTITY, True)],
        [(48, "torch.nn.modules.activation.GELU", True), (8, None, False)],
        [(24, "torch.nn.modules.activation.SiLU", True), (20, "torch.nn.modules.activation.Sigmoid", True)],
    ],
)
def test_chains_of_dense_layers(dense: list[tuple[int, str | None, bool]], tmp_path: Path) -> None:
    folder = add_modules(write_plain(tmp_path / "m"), MEAN, dense)
    encoder = load_encoder(settings(folder))
    if dense[-1][1] is None:  # which sentence-transformers takes for the name of a class
        assert dimension(encoder) == dense[-1][0]
    else:
        assert agree(encode(encoder, TEXTS), theirs(folder))


@pytest.mark.parametrize(
    "names",
    [
        "sentence_transformers.models.{0}",
        "sentence_transformers.models.{0}.{0}",
        "sentence_transformers.base.modules.{1}.{0}",
    ],
)
def test_names_of_modules_in_every_release(names: str, tmp_path: Path) -> None:
    folder = add_modules(write_plain(tmp_path / "m"), MEAN, [(24, TANH, True)], names=names)
    old = add_modules(write_plain(tmp_path / "old"), MEAN, [(24, TANH, True)])
    assert np.array_equal(encode(load_encoder(settings(folder)), TEXTS), encode(load_encoder(settings(old)), TEXTS))


def test_a_folder_saved_by_the_installed_release(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="sentence-transformers is missing")
    config = {"prompts": {"query": "问：", "document": ""}}
    folder = add_modules(write_plain(tmp_path / "m", "roberta"), MEAN, [(24, TANH, True)], config=config)
    sentence_transformers.SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "saved"))
    saved = load_encoder(settings(tmp_path / "saved"))
    assert {module["type"] for module in json.loads((tmp_path / "saved" / "modules.json").read_text())} <= set(MODULES)
    assert saved.prompts == Prompts("问：", "")
    assert agree(encode(saved, TEXTS), theirs(folder))


@pytest.mark.parametrize("asked", [512, 30, 9])
@pytest.mark.parametrize("of_tokenizer", [1_000_000, 20])
@pytest.mark.parametrize("own", [None, 12, 10_000])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_shortest_of_all_lengths_counts(
    kind: str, own: int | None, of_tokenizer: int, asked: int, tmp_path: Path
) -> None:
    """The folder's length replaces its tokenizer's; neither the recipe's nor the positions are ever exceeded."""
    transformer = {"max_seq_length": own}
    folder = add_modules(write_plain(tmp_path / "m", kind, length=of_tokenizer), MEAN, transformer=transformer)
    encoder = load_encoder(settings(folder, max_length=asked))
    assert encoder.max_length == min(own or of_tokenizer, 40, asked)
    assert np.isfinite(encode(encoder, TEXTS)).all()
    if encoder.max_length == (own or of_tokenizer):
        assert agree(encode(encoder, TEXTS), theirs(folder))


def test_texts_are_lower_cased_where_the_folder_says_so(tmp_path: Path) -> None:
    as_they_are = add_modules(write_plain(tmp_path / "cased"), MEAN)
    lowered = {"max_seq_length": 40, "do_lower_case": True}
    folder = add_modules(write_plain(tmp_path / "lower"), MEAN, transformer=lowered)
    assert agree(encode(load_encoder(settings(folder)), TEXTS), theirs(folder))
    assert not agree(encode(load_encoder(settings(folder)), TEXTS), theirs(as_they_are))


def test_vectors_are_compared_as_the_folder_says(tmp_path: Path) -> None:
    for similarity, normalize, length_1 in (("cosine", False, True), ("dot", True, True), ("dot", False, False)):
        config = {"similarity_fn_name": similarity}
        folder = add_modules(
            write_plain(tmp_path / f"{similarity}{normalize}"), MEAN, normalize=normalize, config=config
        )
        found = encode(load_encoder(settings(folder)), TEXTS)
        assert agree(found, theirs(folder, normalize_embeddings=length_1))
        assert length_1 == np.allclose(np.linalg.norm(found, axis=1), 1)


@pytest.mark.parametrize(
    ("named", "chosen", "expected"),
    [
        ({}, {}, Prompts()),
        ({"prompts": {"query": "q", "passage": "p"}}, {}, Prompts("q", "p")),
        ({"prompts": {"query": "q", "document": "", "passage": "p"}}, {}, Prompts("q", "")),
        ({"prompts": {"query": "q", "document": None, "corpus": "c"}}, {}, Prompts("q", "c")),
        ({"prompts": {"query": "q", "document": "d"}}, {"query": "", "passage": "own"}, Prompts("", "own")),
        ({"prompts": {"query": "q", "all": "a"}, "default_prompt_name": "all"}, {}, Prompts("q", "", "a")),
        ({"prompts": {"all": "a"}, "default_prompt_name": "all"}, {"sentence": ""}, Prompts()),
    ],
)
def test_prompts_are_the_settings_s_or_the_folder_s(
    named: Mapping[str, Any], chosen: Mapping[str, str], expected: Prompts, tmp_path: Path
) -> None:
    write_json(tmp_path / "config_sentence_transformers.json", named)
    assert read_prompts(tmp_path, settings(tmp_path, prompts=chosen)) == expected


@pytest.mark.parametrize(
    ("named", "chosen", "before"),
    [
        ({}, {}, "Instruct: Find it\nQuery: "),  # multilingual-e5-instruct, whose folder has no prompts
        ({"query": "Instruct: Search\nQuery:"}, {}, "Instruct: Find it\nQuery:"),  # Qwen3-Embedding
        ({"query": "Instruct: Search\nQuery:"}, {"query": ""}, "Instruct: Find it\nQuery:"),
        ({"query": "Instruct: Search\nQuery: "}, {}, "Instruct: Find it\nQuery: "),
        ({"query": "q: "}, {"query": "Instruct: Search\nQuery:"}, "Instruct: Find it\nQuery:"),
        ({"query": "Query:"}, {}, "Instruct: Find it\nQuery: "),
    ],
)
def test_an_instruction_has_the_form_of_the_model_s(
    named: Mapping[str, str], chosen: Mapping[str, str], before: str, tmp_path: Path
) -> None:
    write_json(tmp_path / "config_sentence_transformers.json", {"prompts": {"document": "d"} | named})
    sources = {"qa": SourcePrompts(instruction="Find it"), "web": SourcePrompts(passage="")}
    prompts = read_prompts(tmp_path, settings(tmp_path, prompts=chosen), sources)
    assert (prompts.of("qa").query, prompts.of("qa").passage, prompts.of("qa").sentence) == (before, "d", before)
    assert (prompts.of("web").query, prompts.of("web").passage) == (prompts.query, "")


@pytest.mark.parametrize("included", [True, False])
def test_each_text_comes_after_its_own_prompt(included: bool, tmp_path: Path) -> None:
    folder = add_modules(write_plain(tmp_path / "m"), {"pooling_mode_mean_tokens": True, "include_prompt": included})
    texts, prompts = [text for text in TEXTS if text] * 3, ["问：", "", "答："] * (len(TEXTS) - 1)
    found = encode_after(load_encoder(settings(folder)), pl.Series(prompts), pl.Series(texts))
    for place, prompt in enumerate(prompts[:3]):
        assert agree(found[place::3], theirs(folder, texts[place::3], prompt=prompt or None))


def test_bge_s_own_instruction_is_for_retrieval_alone(tmp_path: Path) -> None:
    folder = tmp_path / "bge-large-zh-v1.5"
    write_json(folder / "config_sentence_transformers.json", {})
    assert read_prompts(folder, settings(folder)).query.startswith("为这个句子")
    assert read_prompts(folder, settings(folder), retrieves=False) == Prompts()
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": ""}})
    assert read_prompts(folder, settings(folder)) == Prompts()


def change_json(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        write_json(path, content | changes)

    return change


def change_module(place: int, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
        modules[place] |= changes
        write_json(folder / "modules.json", modules)

    return change


def reorder(*places: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
        write_json(folder / "modules.json", [modules[place] for place in places])

    return change


POOLING, DENSE, MODEL = "1_Pooling/config.json", "2_Dense/config.json", "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_module(1, type="my_code.Pooling"), r"module 2, .*my_code.Pooling.* is not understood"),
        (change_module(0, type="custom_st.Transformer"), "module 1"),
        (change_module(3, type="sentence_transformers.models.LayerNorm"), "module 4"),
        (change_module(2, type="pylate.models.Dense.Dense"), "module 3"),
        (change_module(0, kwargs=["task"]), "module 1"),
        (change_module(1, path="../elsewhere"), "outside the model's folder"),
        (reorder(0, 2, 1, 3), "Dense follows Transformer"),
        (reorder(0, 1, 3, 2), "Dense follows Normalize"),
        (reorder(1, 2, 3), "Pooling follows nothing"),
        (reorder(0), "no Pooling follows"),
        (change_json(TRANSFORMER, max_seq_length=0), "max_seq_length: 0"),
        (change_json(TRANSFORMER, max_seq_length="512"), 'max_seq_length: "512"'),
        (change_json(TRANSFORMER, transformer_task="fill-mask"), "transformer_task"),
        (change_json(TRANSFORMER, query_length=32), "query_length: 32"),
        (change_json(TRANSFORMER, query_expansion={"strategy": "fixed", "length": 32}), "query_expansion"),
        (change_json(TRANSFORMER, model_args={"add_pooling_layer": False, "rotary_scaling": 2}), "model_args"),
        (change_json(TRANSFORMER, something_new=1), "something_new: 1.* remove the key"),
        (change_json(POOLING, pooling_mode_cls_token=True), "not cls and mean|not mean and cls"),
        (change_json(POOLING, pooling_mode_mean_tokens="yes"), "pooling_mode_mean_tokens"),
        (change_json(POOLING, pooling_mode="attention"), "not attention"),
        (change_json(POOLING, pooling_heads=4), "pooling_heads"),
        (change_json(DENSE, use_residual=True), "use_residual"),
        (change_json(DENSE, module_input_name="token_embeddings"), "module_input_name"),
        (change_json(DENSE, in_features=99), "does not hold the layer"),
        (change_json(DENSE, activation_function="torch.nn.modules.activation.SELU"), "the activation must be one of"),
        (change_json(MODEL, similarity_fn_name="euclidean"), "similarity_fn_name"),
        (change_json(MODEL, model_type="SparseEncoder"), "model_type"),
        (change_json(MODEL, truncate_dim=8), "truncate_dim"),
        (change_json(MODEL, prompts={"query": 3}), "prompts"),
        (change_json(MODEL, default_prompt_name="query"), "default_prompt_name: query` is not among"),
        (change_json("adapter_config.json", base_model_name_or_path="base"), "adapter .LoRA. .*merge"),
        (change_json("config.json", auto_map={"AutoModel": "own.Model"}), "auto_map.*trust_remote_code"),
        (change_json("config.json", auto_map={"AutoConfig": "x/y--own.Config"}), "auto_map.*trust_remote_code"),
        (change_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Words", None]}), "auto_map"),
        (change_json("config.json", is_encoder_decoder=True, model_type="bart"), "has an encoder and a decoder"),
    ],
)
def test_what_is_not_understood_is_refused(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = add_modules(write_plain(tmp_path / "m"), MEAN, [(24, TANH, True)])
    load_encoder(settings(folder))
    change(folder)
    with pytest.raises(ModelError, match=message):
        load_encoder(settings(folder))


@pytest.mark.parametrize(
    "change",
    [
        change_json(TRANSFORMER, model_args={"torch_dtype": "bfloat16"}, tokenizer_args={}, unpad_inputs=None),
        change_json(TRANSFORMER, config_args={"trust_remote_code": True}, processing_kwargs={}),
        change_json(POOLING, pooling_mode_max_tokens=False, include_prompt=True),
        change_json(MODEL, __version__={"pytorch": "2"}, model_type="SentenceTransformer", similarity_fn_name=None),
        change_json("config.json", auto_map={"AutoModelForMaskedLM": "own.Model"}),
    ],
)
def test_what_no_vector_depends_on_is_passed_over(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = add_modules(write_plain(tmp_path / "m"), MEAN, [(24, TANH, True)])
    before = encode(load_encoder(settings(folder)), TEXTS)
    change(folder)
    assert np.array_equal(encode(load_encoder(settings(folder)), TEXTS), before)


def test_a_decoder_without_modules_needs_a_pooling(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "m", "qwen3")
    with pytest.raises(ModelError, match=r"qwen3 is a decoder, and no modules.json says how"):
        load_encoder(settings(folder))
    assert load_encoder(settings(folder, pooling="lasttoken")).pooling == "lasttoken"


def test_a_pad_token_is_needed(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "m", "qwen3")
    change_json("tokenizer_config.json", pad_token=None)(folder)
    encoder = load_encoder(settings(folder, pooling="lasttoken"))
    assert encoder.tokenizer.pad_token == encoder.tokenizer.eos_token  # of a language model
    alone = np.concatenate([encode(encoder, [text]) for text in TEXTS])
    assert agree(encode(encoder, TEXTS), alone)
    add_modules(folder, {"pooling_mode_lasttoken": True})
    with pytest.raises(ModelError, match="the tokenizer has no pad token"):
        load_encoder(settings(folder))


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "m")
    held = load_file(folder / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    save_file(held | {name: held[name][:20].clone()}, folder / "model.safetensors", {"format": "pt"})
    change_json("config.json", vocab_size=20)(folder)
    with pytest.raises(ModelError, match=r"the tokenizer's token .* but the model has embeddings of 20 tokens"):
        load_encoder(settings(folder))


def test_a_model_that_does_not_mask_padding_is_refused(tmp_path: Path) -> None:
    words = make_tokenizer("bert")
    words.save_pretrained(tmp_path)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "initializer_range": 0.3}
    FNetModel(FNetConfig(vocab_size=len(words), **shape)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="fnet gives a text other vectors if it is encoded together with a longer one"):
        load_encoder(settings(tmp_path))


def test_a_length_without_room_for_a_text_is_refused(tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "m")
    with pytest.raises(ModelError, match="a length of 2 tokens has no room"):
        load_encoder(settings(folder, max_length=2))


def test_every_file_that_decides_vectors_is_in_the_fingerprint(tmp_path: Path) -> None:
    folder = add_modules(write_plain(tmp_path / "m"), MEAN, [(24, TANH, True)])
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model", "own.py"):
        (folder / name).write_text("1")
    (folder / "README.md").write_text("1")
    seen = {weights_fingerprint(folder)}
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "README.md"]
    for file in files:
        file.write_bytes(file.read_bytes() + b" ")
        seen.add(weights_fingerprint(folder))
    assert len(seen) == 1 + len(files)
    (folder / "README.md").write_text("2")
    assert weights_fingerprint(folder) in seen
