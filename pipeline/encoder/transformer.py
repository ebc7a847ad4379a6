"""Load the transformer of a layout and its tokenizer, and check that the two fit each other."""

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from tokenizers.normalizers import Lowercase, Sequence
from transformers import AutoModel, AutoModelForTextEncoding, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from ...schemas.settings import Pooling
from .model_folder import ModelError, read_json
from .model_layout import Layout

POOLER = re.compile(r"pooler\.")
"""The weights of BERT's pooler, which no vector depends on, so that they may be missing."""

HEADS = re.compile(
    r"(cls|pooler|lm_head|head|decoder|classifier|score|qa_outputs|predictions|mlm_head|vocab_\w+|mask_predictions"
    r"|lm_predictions|generator_\w+|discriminator_predictions)\.|(.+\.)?(position_ids|inv_freq|masked_bias)$"
)
"""Weights that a folder may have in excess: heads of pre-training and other tasks, and buffers of earlier releases."""

PADDING_TOLERANCE = 0.05
"""Chosen here: relative to the largest number; bf16 rounds within 0.01 of it, and FNet differs by 0.3."""

T5_KINDS = {"t5", "mt5", "umt5"}
"""Model types with an encoder and a decoder of which transformers can load the encoder alone."""


class Transformer(NamedTuple):
    """A loaded transformer. `max_length` is the most tokens that its folder allows, whatever was asked for."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int


def load_transformer(
    layout: Layout,
    max_length: int | None,
    kind: type[Any] = AutoModel,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """Load a transformer and its tokenizer, from safetensors only; code in the folder runs only if it is trusted.

    `tokenizer.model_max_length` is at most `max_length`, the folder's own length and the model's positions; texts are
    padded on the right. `kind` is the auto class of transformers to load the model with; for any but AutoModel, every
    weight of the model must be in the folder.

    Raises:
        ModelError: transformers can't read the model; it needs code that is not trusted; weights are missing or in
            excess; or the tokenizer does not fit the model.
    """
    folder = layout.encoder
    refuse_other_kinds(layout, kind, trust_remote_code)
    model_type = read_json(folder / "config.json").get("model_type")
    kind = AutoModelForTextEncoding if kind is AutoModel and model_type in T5_KINDS else kind
    try:
        with _without_reports():
            model, loading = kind.from_pretrained(
                folder, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: no Hugging Face model with safetensors can be loaded from here: {error}"
        ) from error
    tokenizer = load_tokenizer(folder, trust_remote_code)
    has_no_head = kind in (AutoModel, AutoModelForTextEncoding)
    missing = [key for key in loading["missing_keys"] if not (has_no_head and POOLER.match(key))]
    _refuse_weights(layout, "lack", missing)
    prefix = f"{model.base_model_prefix}."
    excess = [key for key in loading["unexpected_keys"] if not HEADS.match(key.removeprefix(prefix))]
    _refuse_weights(layout, "have in excess", excess)
    _check_sizes(layout, model, tokenizer)
    _set_pad_token(layout, tokenizer)
    if has_no_head and not trust_remote_code:  # a model's own code may do with padding what it likes
        _check_padding(layout, model, tokenizer)
    if layout.lower_case:
        _lower_case(tokenizer)
    tokenizer.padding_side = "right"
    longest = _longest(layout, model, tokenizer)
    tokenizer.model_max_length = min(max_length or longest, longest)
    if tokenizer.model_max_length <= tokenizer.num_special_tokens_to_add():
        raise ModelError(
            f"{folder}: a length of {tokenizer.model_max_length} tokens has no room for a text, as the tokenizer "
            f"adds {tokenizer.num_special_tokens_to_add()} special tokens; raise max_length, or the "
            "folder's max_seq_length"
        )
    return Transformer(model, tokenizer, longest)


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a transformer.

    Raises:
        ModelError: transformers can't read it, or it has no vocabulary: where the files are missing, transformers makes
            a tokenizer that knows the special tokens alone, to which all texts of one length are the same.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder}: no tokenizer of a Hugging Face model can be loaded from here: {error}") from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) - {"▁"}:  # T5's has this space as well
        raise ModelError(
            f"{folder}: the tokenizer has no vocabulary; copy the model's tokenizer.json into the folder, or the file "
            "of its kind (vocab.txt, sentencepiece.bpe.model)"
        )
    return tokenizer


def default_pooling(layout: Layout, model_type: str) -> Pooling:
    """Return the pooling that the folder names; for an encoder without modules.json, the mean.

    The mean is what sentence-transformers takes for such folders.

    Raises:
        ModelError: the model is a decoder, which may pool in several ways, and the folder does not say how.
    """
    if layout.pooling is None and is_decoder(model_type):
        raise ModelError(
            f"{layout.encoder}: {model_type} is a decoder, and no modules.json says how its tokens become "
            "one vector; set `pooling` (most embedding models that are decoders take lasttoken)"
        )
    return layout.pooling or "mean"


def is_decoder(model_type: str) -> bool:
    """Whether models of a type are made for generating text only, so that tokens see nothing to their right."""
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def refuse_other_kinds(layout: Layout, kind: type[Any], trust_remote_code: bool) -> None:
    """Raise ModelError if a folder holds something else than a model that `kind` loads completely."""
    folder = layout.encoder
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: adapter_config.json says that this is an adapter (LoRA) of another model; merge it into its "
            "base with peft's `merge_and_unload()` and save the result"
        )
    config = read_json(folder / "config.json")
    maps = {"config.json": (config, {"AutoConfig", kind.__name__})}
    maps["tokenizer_config.json"] = read_json(folder / "tokenizer_config.json"), {"AutoTokenizer"}
    for name, (content, wanted) in maps.items():
        if not trust_remote_code and (code := wanted & set(content.get("auto_map") or {})):
            raise ModelError(
                f"{folder}/{name}: `auto_map` names code of the model's own for {', '.join(sorted(code))}; without it "
                "the vectors would be another model's. If you trust the code, set `trust_remote_code: true`, where the "
                "stage has it; training never runs a model's code"
            )
    if config.get("is_encoder_decoder") and kind is AutoModel and config.get("model_type") not in T5_KINDS:
        raise ModelError(
            f"{folder}: {config.get('model_type')} has an encoder and a decoder; of such models only T5's kinds can be "
            f"read ({', '.join(sorted(T5_KINDS))})"
        )


def _refuse_weights(layout: Layout, what: str, keys: Collection[str]) -> None:
    """Raise ModelError if there are such weights. transformers fills missing ones with random numbers."""
    if keys:
        named = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        raise ModelError(
            f"{layout.encoder}: the weights {what} {named}; save the model with `save_pretrained`, so that its keys "
            "are those that transformers expects"
        )


def _check_sizes(layout: Layout, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError if the tokenizer or the dense layers don't fit the transformer."""
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    # Added tokens that no text has, such as Gemma 3's <image_soft_token>, may lack an embedding.
    used = set(tokenizer("a")["input_ids"]) | ({tokenizer.pad_token_id} - {None})
    refuse_unknown_tokens(model, tokenizer, [*used, *([max(vocabulary.values())] if vocabulary else [])])
    if any(tokenizer("a").get("token_type_ids") or []):
        raise ModelError(
            f"{layout.encoder}: the tokenizer gives token types other than 0, which Conan does not pass on"
        )
    width = model.config.hidden_size
    for dense in layout.dense:
        if dense.weight.shape[1] != width:
            raise ModelError(
                f"{layout.encoder}: a Dense module expects {dense.weight.shape[1]} dimensions; vectors have {width}"
            )
        width = len(dense.weight)


@torch.no_grad()  # not inference_mode, as the model may cache tensors that training then differentiates
def _check_padding(layout: Layout, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError if a text's hidden states depend on how far it is padded: those of FNet and Funnel do."""
    ids = tokenizer("1 2", return_tensors="pt")["input_ids"]
    padding = torch.full_like(ids, tokenizer.pad_token_id)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids)], dim=1)
    alone = model(input_ids=ids).last_hidden_state.float()
    padded = model(input_ids=torch.cat([ids, padding], dim=1), attention_mask=mask).last_hidden_state.float()
    if (padded[:, : ids.shape[1]] - alone).abs().max() > PADDING_TOLERANCE * alone.abs().max():
        raise ModelError(
            f"{layout.encoder}: {model.config.model_type} gives a text other vectors if it is encoded together with a "
            "longer one, as padding is not masked; such models can't be used"
        )


def _set_pad_token(layout: Layout, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pad texts of a language model without a pad token with its end-of-text token, as is usual; masks hide it.

    Raises ModelError for embedding models without one, which sentence-transformers can't use either.
    """
    if tokenizer.pad_token is None and layout.pooling is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{layout.encoder}: the tokenizer has no pad token, so texts of different lengths can't be encoded "
            'together; name one in tokenizer_config.json, such as `"pad_token": "<|endoftext|>"`'
        )


def refuse_unknown_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: npt.ArrayLike) -> None:
    """Raise ModelError if there is a token among `ids` that the model has no embedding of."""
    rows = model.get_input_embeddings().num_embeddings
    last = int(np.max(ids, initial=0))
    if last >= rows:
        raise ModelError(
            f"{model.name_or_path}: the tokenizer's token {tokenizer.convert_ids_to_tokens(last)!r} has number {last}, "
            f"but the model has embeddings of {rows} tokens; use the tokenizer that the model was trained with, or "
            "resize the embeddings"
        )


def _longest(layout: Layout, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the longest text, in tokens, that the folder and the model's positions allow."""
    own = layout.max_length or int(tokenizer.model_max_length)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions <= 0:  # T5 has no limit; XLNet says -1
        return own
    # RoBERTa and its kin number positions from padding_idx + 1 on, so two of their 514 can't be used.
    padding = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return int(min(own, positions - (0 if padding is None else padding + 1)))


def _lower_case(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer lower-case texts first, as sentence-transformers does with `do_lower_case`."""
    backend = tokenizer.backend_tokenizer
    backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])


@contextmanager
def _without_reports() -> Iterator[None]:
    """Silence transformers' progress bar and its report of missing and unexpected weights, which is checked here."""
    logger = logging.getLogger("transformers.modeling_utils")
    had_progress_bar = is_progress_bar_enabled()

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(keep)
    disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(keep)
        if had_progress_bar:
            enable_progress_bar()
