"""The training loop of a small decoder: optax AdamW over length-bucketed rows, resumable.

One row holds one prompt; rows of similar length share a batch, so nothing is packed and little is
padded. Batches are a function of (seed, step) alone, so a run that was killed continues
bit for bit from its last checkpoint. Axes: B T V (axes.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.decoder import init_params, run_decoder, unembed
from bridgex_jax.train.prompt_mix import Row


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation: AdamW, warm-up, constant, linear decay over the last `decay_share`."""

    seed: int
    tokens: int = 9_600_000  # real tokens seen in all
    tokens_per_step: int = 2_400  # padded tokens of a batch
    peak_learning_rate: float = 3e-3
    warmup_steps: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    length_multiple: int = 4
    max_length: int = 129
    rows_per_shard: int = 20_000
    checkpoint_every: int = 500


def optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with decay on matrices only and the trapezoid schedule of the configuration."""
    decay_steps = int(steps * config.decay_share)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.peak_learning_rate, config.warmup_steps),
            optax.constant_schedule(config.peak_learning_rate),
            optax.linear_schedule(config.peak_learning_rate, 0.0, decay_steps),
        ],
        [config.warmup_steps, steps - decay_steps],
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=0.9,
            b2=0.98,
            weight_decay=config.weight_decay,
            mask=lambda tree: jax.tree.map_with_path(
                lambda path, _: path[-1].key in ("kernel", "embedding"), tree
            ),
        ),
    )


def mean_loss(
    params: PyTree,
    config: DecoderConfig,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    weights: Float[Array, "B T"],
) -> Float[Array, ""]:
    """Weighted mean of the next token's cross-entropy, in nats."""
    # Unrolled: the backward pass of the scan stacks residuals, which costs 15 % on a CPU.
    output = run_decoder(config, params, tokens[:, :-1], mask[:, :-1], unroll=True)
    logits = unembed(params, output.hidden)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.sum(nll * weights[:, 1:]) / jnp.sum(weights[:, 1:])


def make_step(config: DecoderConfig, tx: optax.GradientTransformation) -> Callable:
    """The jitted update: (params, opt_state, batch) -> (params, opt_state, loss)."""

    def step(params, opt_state, tokens, mask, weights):
        loss, grads = jax.value_and_grad(mean_loss)(params, config, tokens, mask, weights)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def batches_of_shard(config: TrainConfig, rows: list[Row], rng: np.random.Generator) -> list:
    """Full batches of one bucket each, in random order; a bucket's remainder is dropped."""
    buckets: dict[int, list[Row]] = {}
    for row in rows:
        if len(row[0]) <= config.max_length:
            # One position more than the bucket: inputs and targets are shifted against each other.
            length = -(-(len(row[0]) - 1) // config.length_multiple) * config.length_multiple + 1
            buckets.setdefault(length, []).append(row)
    batches = []
    for length, members in sorted(buckets.items()):
        size = max(1, config.tokens_per_step // (length - 1))
        for start in range(0, len(members) - size + 1, size):
            batches.append(pad_rows(members[start : start + size], length))
    return [batches[i] for i in rng.permutation(len(batches))]


def pad_rows(rows: list[Row], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens int32, mask bool, weights float32, each [B, length], padded on the right."""
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    weights = np.zeros((len(rows), length), np.float32)
    for i, (ids, weight) in enumerate(rows):
        tokens[i, : len(ids)], mask[i, : len(ids)], weights[i, : len(ids)] = ids, True, weight
    return tokens, mask, weights


def stream(
    config: TrainConfig, draw: Callable[[np.random.Generator, int], list[Row]], start: int
) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """(step, batch) from step `start` on; the batch of a step depends on the seed alone."""
    step, shard = 0, 0
    while True:
        rng = np.random.default_rng((config.seed, shard))
        for batch in batches_of_shard(config, draw(rng, config.rows_per_shard), rng):
            if step >= start:
                yield step, batch
            step += 1
        shard += 1


def train(
    config: DecoderConfig,
    train_config: TrainConfig,
    draw: Callable[[np.random.Generator, int], list[Row]],
    directory: Path,
    log: Callable[[str], None] = print,
) -> PyTree:
    """Trains from scratch, or from the last checkpoint in `directory`; returns the parameters.

    Writes `log.jsonl` (step, tokens, loss, tokens per second) and Orbax checkpoints.
    """
    import orbax.checkpoint as ocp

    probe = np.random.default_rng((train_config.seed, 0))
    sample = batches_of_shard(train_config, draw(probe, train_config.rows_per_shard), probe)
    steps = round(train_config.tokens / np.mean([batch[1].sum() for batch in sample]))
    tx = optimizer(train_config, steps)
    params = init_params(config, jax.random.key(train_config.seed))
    state = {"params": params, "opt": tx.init(params)}
    start = 0
    with ocp.CheckpointManager(
        (directory / "checkpoints").absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)
    ) as manager:
        if (last := manager.latest_step()) is not None:
            state = manager.restore(last, args=ocp.args.StandardRestore(state))
            start = last
        log(f"{steps} steps of {train_config.tokens_per_step} tokens, from step {start}")
        update = make_step(config, tx)
        losses, tokens, clock = [], 0, time.monotonic()
        for step, (ids, mask, weights) in stream(train_config, draw, start):
            params, opt, loss = update(state["params"], state["opt"], ids, mask, weights)
            state = {"params": params, "opt": opt}
            losses.append(loss)
            tokens += int(mask.sum())
            done = step + 1
            if done % 50 == 0 or done == steps:
                mean = float(np.mean(jax.device_get(losses)))
                rate = tokens / (time.monotonic() - clock)
                entry = {"step": done, "loss": round(mean, 4), "tokens_per_s": round(rate)}
                with open(directory / "log.jsonl", "a") as file:
                    file.write(json.dumps(entry) + "\n")
                log(f"step {done}/{steps}  loss {mean:.3f}  {rate:.0f} tokens/s")
                losses, tokens, clock = [], 0, time.monotonic()
            if done % train_config.checkpoint_every == 0 or done == steps:
                manager.save(done, args=ocp.args.StandardSave(state))
            if done == steps:
                break
    return state["params"]
