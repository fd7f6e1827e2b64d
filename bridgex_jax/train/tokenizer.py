"""A byte-level BPE tokenizer that never merges across the marks of a dictionary prompt.

Quotes, colon, arrow and newline are split off before merging, so ``:"`` is always two tokens and
a prompt that ends in ``:`` is on the distribution the model was trained on (many released
tokenizers merge the two). Saved as an ordinary Hugging Face ``tokenizer.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

BOS, EOS = "<s>", "</s>"
PROMPT_MARKS = ':"→\n'


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path) -> None:
    """Trains on `texts` and writes tokenizer.json and tokenizer_config.json into `directory`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"[{PROMPT_MARKS}]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 128,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
