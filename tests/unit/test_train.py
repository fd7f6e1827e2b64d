"""The trainer and its mix: what is held out never occurs, a killed run continues bit for bit."""

import itertools

import jax
import numpy as np
import pytest

from bridgex_jax.data.cldr import read_concepts
from bridgex_jax.train.prompt_mix import MixConfig, PromptMix, draw_plan
from bridgex_jax.train.trainer import TrainConfig, train
from tests.conftest import TINY

MIX = MixConfig(seed=3, text_lines=60, text_row_length=32)


@pytest.fixture(scope="module")
def concepts():
    return read_concepts(MIX.languages)[::12]


@pytest.fixture(scope="module")
def mix(tiny_model, concepts):
    return PromptMix(MIX, concepts, tiny_model.tokenizer, prompt_weight=0.1)


@pytest.fixture(scope="module")
def routes(mix, tiny_model):
    """(language names in order, words in order) of many prompts of the mix."""
    rows = mix.rows(np.random.default_rng(0), 6000)
    texts = [tiny_model.tokenizer.decode(ids[1:]) for ids, _ in rows]
    found = []
    for text in texts:
        if "→" in text:
            steps = [step.split(":", 1) for step in text.strip().split("→")]
            found.append(([s[0] for s in steps], [s[1].strip('"') for s in steps]))
    return found


def test_no_prompt_joins_two_poor_languages(routes):
    from bridgex_jax.languages import language

    poor = {language(code).endonym for code in MIX.poor}
    assert len(routes) > 4000
    assert not [names for names, _ in routes if len(poor & set(names)) > 1]


def test_prompts_show_a_poor_language_with_a_bridge_only_for_covered_concepts(
    routes, mix, concepts
):
    from bridgex_jax.languages import language

    codes = {language(code).endonym: code for code in MIX.languages}
    by_word = {(code, c.words[code]): c for c in concepts for code in MIX.languages}
    for names, words in routes:
        steps = [(codes[name], word) for name, word in zip(names, words, strict=True)]
        concept = by_word[steps[0]]
        assert [concept.words[code] for code, _ in steps] == words
        for (first, _), (second, _) in itertools.combinations(steps, 2):
            assert mix.seen(concept, first, second)


def test_every_poor_language_has_each_coverage_once(mix, concepts):
    plan = draw_plan(MIX)
    for poor, shares in plan.coverage.items():
        assert sorted(shares.values()) == sorted(MIX.coverage)
        for bridge, share in shares.items():
            seen = np.mean([mix.seen(c, poor, bridge) for c in concepts])
            assert abs(seen - share) < 4 * np.sqrt(share * (1 - share) / len(concepts)) + 1e-9


def test_volumes_of_bridges_differ_by_the_stated_ratio():
    volumes = draw_plan(MIX).volume.values()
    assert max(volumes) / min(volumes) == pytest.approx(MIX.volume_ratio)


def test_a_killed_training_continues_bit_for_bit(mix, tmp_path):
    config = TrainConfig(
        seed=1,
        tokens=12 * 500,
        tokens_per_step=640,
        length_multiple=32,
        warmup_steps=2,
        rows_per_shard=60,
        checkpoint_every=4,
    )
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by counts
        _train_killed_and_whole(mix, config, tmp_path)


def _train_killed_and_whole(mix, config, tmp_path):
    whole = train(TINY, config, mix.rows, tmp_path / "whole", log=lambda line: None)

    class Killed(Exception):
        pass

    drawn = itertools.count()

    def dying_rows(rng, n):
        if next(drawn) == 2:  # the probe for lengths, the first shard, then death
            raise Killed
        return mix.rows(rng, n)

    with pytest.raises(Killed):
        train(TINY, config, dying_rows, tmp_path / "killed", log=lambda line: None)
    assert list((tmp_path / "killed" / "checkpoints").glob("[0-9]*"))
    resumed = train(TINY, config, mix.rows, tmp_path / "killed", log=lambda line: None)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
