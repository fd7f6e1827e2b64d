"""Strict JAX for all tests: no silent promotion of rank or dtype, no cache on disk."""

import atexit
import os
import shutil
import signal
import tempfile

# A shell starts background jobs with SIGINT ignored, and their children would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What models answered before, in the user's cache, must not answer a test.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="bridgex-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from bridgex_jax.models.config import plain_llama  # noqa: E402
from bridgex_jax.models.decoder import init_params  # noqa: E402
from bridgex_jax.models.load import Model, load_model  # noqa: E402
from bridgex_jax.models.weights import save_model  # noqa: E402
from bridgex_jax.runtime import drop_programs  # noqa: E402
from bridgex_jax.train.tokenizer import train_tokenizer  # noqa: E402

TINY = plain_llama(
    vocab_size=320,
    n_layers=4,
    d_model=32,
    d_ff=64,
    n_heads=4,
    n_kv_heads=2,
    context=128,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=1,
)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """One process compiles what all tests need."""
    yield
    drop_programs()


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of a random Llama with a byte-level tokenizer."""
    directory = tmp_path_factory.mktemp("tiny")
    train_tokenizer(["Deutsch English Indonesia kiswahili suomi " * 4], TINY.vocab_size, directory)
    save_model(directory, TINY, init_params(TINY, jax.random.key(0)))
    return directory


@pytest.fixture(scope="session")
def tiny_model(tiny_directory: Path) -> Model:
    """That model, loaded."""
    return load_model(tiny_directory, quiet=True)
