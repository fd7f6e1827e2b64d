"""Trains the model that ships with bridgex_jax, from nothing but the words of the CLDR.

    python experiments/builtin_model.py --out runs/builtin --seed 1

Writes a Hugging Face directory to OUT/model (config.json, model.safetensors in bf16,
tokenizer.json, tokenizer_config.json, recipe.json). Killed, it continues from its last checkpoint.
The mix is described in bridgex_jax/train/prompt_mix.py. One pilot (seed 100, 4M tokens, batches of
4,800 tokens, initial deviation 0.02, one line of text a row) learned too slowly (hop 1 right for
18 %); batches, initial deviation, length and the packing of text were changed by that evaluation
alone, coverage and volumes were not, and nothing was decided by looking at HSIC. The model that
ships is seed 1, the first run after that.

Run time: 82 minutes, 78 of them on one core of two (1,950 tokens/s; both cores: 3,400).
Loss (answers weight 1, prompts 0.1): see builtin_model.log.jsonl beside this file.
Held-out directions, all 5,758 words of the 12 (`bridgex demo --words 1000`): zero-shot .590, best
fixed bridge .749, mean of bridges .686, oracle .749; hop 1 right .86, hop 2 after a right hop 1
.79. The bridge that HSIC chose translated 1.6 points (.9 to 2.3) worse than a random one: on this
model the method does not help, and the demo says so.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags

from bridgex_jax.data.cldr import Concept, concepts_digest, read_concepts, sentences
from bridgex_jax.languages import language
from bridgex_jax.models.config import plain_llama
from bridgex_jax.models.load import read_tokenizer
from bridgex_jax.train.prompt_mix import MixConfig, PromptMix
from bridgex_jax.train.tokenizer import train_tokenizer
from bridgex_jax.train.trainer import TrainConfig, train

_OUT = flags.DEFINE_string("out", None, "Directory of checkpoints and of the model.", required=True)
_SEED = flags.DEFINE_integer("seed", 1, "Seed of coverage, volumes, initial weights and batches.")
_TOKENS = flags.DEFINE_integer("tokens", TrainConfig(seed=0).tokens, "Tokens to train on.")

MODEL = plain_llama(
    vocab_size=3072,
    n_layers=6,
    d_model=128,
    d_ff=1536,
    n_heads=4,
    n_kv_heads=4,
    context=128,
    initializer_range=0.05,
    bos_token_id=0,
    eos_token_id=1,
)
PROMPT_WEIGHT = 0.1  # of the loss on the given part of a prompt, against 1 on its answers


def tokenizer_texts(mix: MixConfig, concepts: list[Concept]) -> Iterator[str]:
    """What merges are counted on: every word four times in its prompt, and monolingual lines."""
    for concept, _ in itertools.product(concepts, range(4)):
        for code, word in concept.words.items():
            yield f'{language(code).endonym}:"{word}"→'
    for code in mix.languages:
        yield from itertools.islice(sentences(code, mix.seed), 500)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    import babel

    from bridgex_jax.models.weights import save_model

    out = Path(_OUT.value)
    mix_config, train_config = MixConfig(_SEED.value), TrainConfig(_SEED.value, _TOKENS.value)
    concepts = read_concepts(mix_config.languages)
    model_dir = out / "model"
    if not (model_dir / "tokenizer.json").exists():
        train_tokenizer(tokenizer_texts(mix_config, concepts), MODEL.vocab_size, model_dir)
    mix = PromptMix(mix_config, concepts, read_tokenizer(model_dir), PROMPT_WEIGHT)
    recipe = {
        "mix": dataclasses.asdict(mix_config),
        "plan": mix.plan.to_json(),
        "training": dataclasses.asdict(train_config),
        "prompt_weight": PROMPT_WEIGHT,
        "concepts": len(concepts),
        "concepts_sha256": concepts_digest(concepts),
        "babel": babel.__version__,
    }
    (model_dir / "recipe.json").write_text(json.dumps(recipe, indent=1, ensure_ascii=False) + "\n")
    params = train(MODEL, train_config, mix.rows, out)
    save_model(model_dir, MODEL, params, dtype="bfloat16")


if __name__ == "__main__":
    app.run(main)
