"""The filters that benchmarks/filter.py compares Conan with. Runs without Conan, in their environment.

Run by benchmarks/filter.py as `python filter.py TOOL TEXTS`, where TEXTS is a JSON array of texts. Each input line
starts a turn of passes over all texts, and is answered with a line: the CPU seconds per pass.
"""

import json
import os
import resource
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

TURN = 0.5  # seconds at least, as in benchmarks/filter.py
Pass = Callable[[], object]


def datatrove(texts: list[str]) -> Pass:
    """Three filters in sequence, as in a datatrove pipeline: the next one does not see what one has dropped.

    Thresholds and stop words are FineWeb 2's for Chinese (huggingface/fineweb-2, configs/cmn_Hani.yml).
    """
    from datatrove.data import Document
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Characters(WordTokenizer):
        """Treats characters as words: a fair unit for Chinese n-grams, and much faster than segmentation.

        The filters accept a tokenizer instead of a language; datatrove's default for Chinese is jieba within spaCy.
        """

        def word_tokenize(self, text: str) -> list[str]:
            return [character for character in text if not character.isspace()]

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    characters = Characters()
    steps = [
        GopherRepetitionFilter(
            language=characters,
            dup_line_frac=0.287,
            top_n_grams=((2, 0.256), (3, 0.201), (4, 0.171)),
            dup_n_grams=((5, 0.198), (6, 0.182), (7, 0.167), (8, 0.154), (9, 0.14), (10, 0.127)),
        ),
        FineWebQualityFilter(language=characters, line_punct_thr=0.106, new_line_ratio=0.178),
        GopherQualityFilter(
            language=characters,
            min_doc_words=10,  # with its default of 50, it would skip most of the work on short pairs
            min_avg_word_length=1,
            max_avg_word_length=5,
            max_non_alpha_words_ratio=0.735,
            stop_words=list("的年在月是和日了於·為有被人中为他與後也而由"),
        ),
    ]

    def once() -> int:
        documents: Iterable[Document] = [Document(text=text, id=str(place)) for place, text in enumerate(texts)]
        for step in steps:
            documents = step.run(documents)
        return sum(1 for _ in documents)

    return once


def _data_juicer_filters() -> list[object]:
    """The filters of its Chinese recipe (modelscope/data-juicer, alpaca-cot-zh-refine.yaml) with its thresholds.

    Left out are `flagged_words_filter`, which downloads its words and a SentencePiece model, and the recipe's two
    deduplicators.
    """
    from data_juicer.ops.filter import AlphanumericFilter, CharacterRepetitionFilter, TextLengthFilter

    return [
        AlphanumericFilter(tokenization=False, min_ratio=0.1, num_proc=1),
        CharacterRepetitionFilter(rep_len=10, max_ratio=0.6, num_proc=1),
        TextLengthFilter(min_len=10, num_proc=1),
    ]


def data_juicer(texts: list[str]) -> Pass:
    """The filters in a plain loop over batches of 1,000, their default; later filters do not see dropped texts."""
    filters = _data_juicer_filters()
    from data_juicer.utils.constant import Fields

    def once() -> int:
        kept = 0
        for start in range(0, len(texts), 1000):
            batch = {"text": texts[start : start + 1000]}
            batch[Fields.stats] = [{} for _ in batch["text"]]
            for each in filters:
                batch = each.compute_stats(batch)
                keep = list(each.process(batch))
                batch = {name: [value for value, good in zip(batch[name], keep, strict=True) if good] for name in batch}
            kept += len(batch["text"])
        return kept

    return once


def data_juicer_engine(texts: list[str]) -> Pass:
    """The same filters, run by data-juicer's own dataset class."""
    filters = _data_juicer_filters()
    from data_juicer.core.data import NestedDataset
    from datasets import disable_caching

    disable_caching()

    def once() -> int:
        return len(NestedDataset.from_list([{"text": text} for text in texts]).process(filters))

    return once


TOOLS = {"datatrove": datatrove, "data-juicer": data_juicer, "data-juicer-engine": data_juicer_engine}


def _cpu_seconds() -> float:
    """Return user and system time, including that of finished children."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Answer each line with the seconds per pass. Standard output is redirected to standard error for the tools."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    once = TOOLS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text("utf-8")))
    answers.write("ready\n")
    for _ in sys.stdin:
        started, passes = _cpu_seconds(), 0
        while passes == 0 or _cpu_seconds() - started < TURN:
            once()
            passes += 1
        answers.write(f"{(_cpu_seconds() - started) / passes}\n")


if __name__ == "__main__":
    main()
