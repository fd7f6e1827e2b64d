"""From what the user writes, a directory or a Hugging Face hub id, to where the model lies.

A directory wins, then the hub's cache, then a download through huggingface_hub of safetensors,
configuration and tokenizer files only: neither pickles nor code come along. Of a directory in an
object store the small files are copied; the weights stay there until they are read.
"""

import contextlib
import functools
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bridgex_jax.errors import InputError
from bridgex_jax.models.weights import TOKENIZER_FILES, model_files, model_hash
from bridgex_jax.store.files import disk_errors, write_bytes
from bridgex_jax.store.paths import as_path, cache_directory, files_below, read_bytes

SMALL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
FILES = [*SMALL_FILES, "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model lies: its directory; its hub id and the commit, if it is from the hub.

    copy: local directory of its configuration and tokenizer, where `path` is remote. sha256: its
    hash, where another process has computed it.
    """

    path: str
    id: str | None = None
    revision: str | None = None
    copy: str | None = None
    sha256: str | None = None

    @property
    def small_files(self) -> Path:
        """Where configuration and tokenizer lie."""
        return Path(self.copy or self.path)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of configuration, tokenizer and weights (`model_hash`), when first asked for."""
        return self.sha256 or model_hash(self.path)


def find_model(
    path_or_hub_id: str | Path, *, revision: str | None = None, quiet: bool = False
) -> ModelSource:
    """The directory of a model, downloaded if it is neither local nor in the hub's cache.

    A cached snapshot is used without asking the hub whether there is a newer one. Raises
    InputError, with the remedy, for a place that does not exist, a gated or unknown repository, an
    unknown revision, and a hub that cannot be reached.
    """
    name = str(path_or_hub_id)
    if "://" in name:
        return _remote(name, revision)
    directory = Path(name).expanduser()
    if directory.is_dir():
        if revision is not None:
            remedy = "leave --revision out for a local directory"
            raise InputError(f"revision {revision!r} of a directory", file=name, remedy=remedy)
        return ModelSource(str(directory))
    if directory.exists():
        raise InputError("is not a directory", file=name, remedy="give the model's directory")
    if isinstance(path_or_hub_id, Path) or name.count("/") != 1 or name[0] in "./~":
        remedy = "give a directory in Hugging Face format, or a hub id such as Qwen/Qwen3-0.6B"
        raise InputError("no such directory", file=name, remedy=remedy)
    snapshot = _cached(name, revision) or _download(name, revision, quiet)
    return ModelSource(str(snapshot), name, snapshot.name)


def _remote(name: str, revision: str | None) -> ModelSource:
    """A model in an object store, its small files copied anew into the user's cache."""
    place = as_path(name)
    if revision is not None:
        remedy = "leave --revision out for a directory"
        raise InputError(f"revision {revision!r} of a directory", file=name, remedy=remedy)
    found = files_below(place)
    if found is None:
        raise InputError("no such directory", file=name, remedy="check the bucket and the path")
    copy = cache_directory() / "models" / hashlib.sha256(name.encode()).hexdigest()[:16]
    small = [file for file in found if file in SMALL_FILES]
    with disk_errors(copy, remedy="set XDG_CACHE_HOME to another disk"):
        copy.mkdir(parents=True, exist_ok=True)
        for file in SMALL_FILES:
            (copy / file).unlink(missing_ok=True)
        for file in small:
            write_bytes(copy / file, read_bytes(place / file))
    return ModelSource(name, copy=str(copy))


def _cached(hub_id: str, revision: str | None) -> Path | None:
    """The cached snapshot, if configuration and all weight files are in it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        snapshot = Path(
            snapshot_download(
                hub_id, revision=revision, allow_patterns=FILES, local_files_only=True
            )
        )
        model_files(snapshot)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        remedy = "give a directory in Hugging Face format, or a hub id such as Qwen/Qwen3-0.6B"
        raise InputError("neither a directory nor a hub id", file=hub_id, remedy=remedy) from error
    except InputError:  # only some of the files were ever fetched
        return None
    return snapshot if (snapshot / "config.json").is_file() else None


def _download(hub_id: str, revision: str | None, quiet: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        with _progress_bars(quiet):
            path = snapshot_download(hub_id, revision=revision, allow_patterns=FILES)
    except errors.GatedRepoError as error:
        what = "the repository is gated"
        remedy = (
            f"accept its terms at https://huggingface.co/{hub_id}, "
            "then run `hf auth login` or set HF_TOKEN"
        )
        raise InputError(what, file=hub_id, remedy=remedy) from error
    except errors.RevisionNotFoundError as error:
        what = f"the repository has no revision {revision!r}"
        raise InputError(what, file=hub_id, remedy="give another --revision") from error
    except errors.RepositoryNotFoundError as error:
        what = "neither a directory nor a repository on the hub that you may read"
        remedy = "check the name; if it is private, run `hf auth login` or set HF_TOKEN"
        raise InputError(what, file=hub_id, remedy=remedy) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        what = "neither a directory nor in the hub's cache, and the hub cannot be reached"
        remedy = (
            "connect, unset HF_HUB_OFFLINE, "
            f"or fetch it elsewhere with `hf download {hub_id}` and give the directory"
        )
        raise InputError(what, file=hub_id, remedy=remedy) from error
    except (errors.HTTPError, OSError) as error:
        what = f"the download failed: {error}"
        raise InputError(what, file=hub_id, remedy="run again: it resumes") from error
    return Path(path)


@contextlib.contextmanager
def _progress_bars(quiet: bool) -> Iterator[None]:
    """Lets huggingface_hub draw its bars on a terminal only."""
    from huggingface_hub import utils

    silence = (quiet or not sys.stderr.isatty()) and not utils.are_progress_bars_disabled()
    if silence:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            utils.enable_progress_bars()
