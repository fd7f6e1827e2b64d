"""Directory, cache, download: where a model is looked for; the cache is made here, no network."""

import json

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from bridgex_jax.errors import InputError
from bridgex_jax.models import hub
from bridgex_jax.models.hub import find_model

ID, COMMIT = "someone/tiny", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and a hub that must not be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def fill(cache, *names):
    repository = cache / "models--someone--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    for name in names:
        (snapshot / name).write_text("{}", encoding="utf-8")
    return snapshot


def refuse_hub(monkeypatch, error):
    """The cache is empty and the hub answers with `error`."""

    def snapshot_download(*_, local_files_only=False, **__):
        raise errors.LocalEntryNotFoundError("not cached") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def http_error(kind):
    error = kind.__new__(kind)
    Exception.__init__(error, "from the hub")
    return error


def test_a_directory_is_used_as_it_is(tmp_path):
    source = find_model(tmp_path)
    assert (source.path, source.id, source.revision) == (str(tmp_path), None, None)


def test_a_cached_snapshot_is_found_offline_with_its_commit(cache):
    snapshot = fill(cache, "config.json", "model.safetensors")
    source = find_model(ID)
    assert (source.path, source.id, source.revision) == (str(snapshot), ID, COMMIT)
    assert find_model(ID, revision=COMMIT) == source


@pytest.mark.parametrize(
    "names", [["config.json"], ["model.safetensors"], ["config.json", hub.FILES[3]]]
)
def test_a_partial_snapshot_is_fetched_again(cache, names):
    snapshot = fill(cache, *names)
    if hub.FILES[3] in names:
        index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
        (snapshot / hub.FILES[3]).write_text(json.dumps(index), encoding="utf-8")
    assert hub._cached(ID, None) is None


def test_only_safetensors_configuration_and_tokenizer_are_downloaded():
    files = [
        *("pytorch_model.bin", "modeling_own.py", "consolidated.safetensors", "README.md"),
        *("original/model.safetensors", "config.json", "model-00001-of-00002.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json"),
    ]
    kept = huggingface_hub.utils.filter_repo_objects(files, allow_patterns=hub.FILES)
    assert list(kept) == files[5:]


@pytest.mark.parametrize(
    ("error", "what", "remedy"),
    [
        (http_error(errors.GatedRepoError), "gated", "HF_TOKEN"),
        (http_error(errors.RepositoryNotFoundError), "neither", "HF_TOKEN"),
        (http_error(errors.RevisionNotFoundError), "no revision 'v9'", "--revision"),
        (errors.LocalEntryNotFoundError("offline"), "cannot be reached", "HF_HUB_OFFLINE"),
        (OSError("No space left on device"), "No space left", "resumes"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_the_remedy(monkeypatch, error, what, remedy):
    refuse_hub(monkeypatch, error)
    with pytest.raises(InputError) as raised:
        find_model(ID, revision="v9")
    message = str(raised.value)
    assert message.startswith(f"{ID}: ")
    assert what in message
    assert remedy in message.split("; ", 1)[1]
    assert "\n" not in message


def test_offline_and_not_cached_says_how_to_get_it(cache):
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        find_model(ID)


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "a/b/c", "nothing", "../x"])
def test_a_place_that_is_neither_directory_nor_id_is_refused(cache, name):
    with pytest.raises(InputError, match="no such directory"):
        find_model(name)


def test_a_name_that_no_repository_can_have_is_refused(cache):
    with pytest.raises(InputError, match="neither a directory nor a hub id"):
        find_model("some one/tiny--model")


def test_a_file_and_a_revision_of_a_directory_are_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="not a directory"):
        find_model(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="--revision"):
        find_model(tmp_path, revision="main")
