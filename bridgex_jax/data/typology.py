"""Typological features of languages from URIEL, as lang2vec distributes them.

URIEL (Littell et al. 2017) says of every language and source whether a feature (subject before
verb, a /p/ in the inventory) holds: 1, 0, or -1 where the source does not say. The file is the
`features.npz` of the lang2vec package, with arrays `data` [languages, features, sources], `feats`,
`langs` (ISO 639-3) and `sources`; its averages, predictions, families and coordinates have the
same form. Axes: D feature.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Num

from bridgex_jax.errors import InputError
from bridgex_jax.languages import language
from bridgex_jax.store.paths import AnyPath, read_bytes

FeatureKind = Literal["syntax", "phonology", "inventory"]
Lang2vecFile = Literal[
    "features", "feature_averages", "feature_predictions", "family_features", "geocoord_features"
]

_PREFIXES: Mapping[FeatureKind, str] = {"syntax": "S_", "phonology": "P_", "inventory": "INV_"}
_GET_FILE = "give the features.npz of the lang2vec package"
_LFS_POINTER = b"version https://git-lfs.github.com/spec"

# languages.py has the macrolanguage of these, which URIEL has too. Another file may have only the
# individual language that people mean by it (or, for hr, sr, bs, the language they were parts of).
_OTHER_CODES = {
    "ara": "arb", "aze": "azj", "bos": "hbs", "est": "ekk", "fas": "pes", "hrv": "hbs",
    "lav": "lvs", "mon": "khk", "msa": "zsm", "nep": "npi", "nor": "nob", "pus": "pbt",
    "sqi": "als", "srp": "hbs", "swa": "swh", "tgl": "fil", "uzb": "uzn", "zho": "cmn",
}  # fmt: skip


@dataclass(frozen=True)
class Typology:
    """Features of languages.

    features: by our code, each feature in 0…1, or -1 where no source knows it; several sources are
    averaged. names: of the features, in order. codes: the code under which the file has each
    language.
    """

    features: Mapping[str, Float[np.ndarray, " D"]]
    names: tuple[str, ...]
    codes: Mapping[str, str]


def read_typology(
    path: str | AnyPath, languages: Sequence[str], *, kinds: Sequence[FeatureKind] | None = None
) -> Typology:
    """The features of these languages, of some kinds or of all.

    A language that the file has under two codes, such as ara and arb, is taken from the one with
    more features known (of `kinds`), the macrolanguage's on ties. A language may be there and have
    no known feature (Slovak); its features are then all -1.

    Raises InputError for a file that is missing, empty, a Git LFS pointer, not a zip of arrays, or
    needs pickle, which is never opened; for arrays that do not fit together; for values other than
    -1 and 0…1; for a language that is not there.
    """
    for kind in kinds or ():
        if kind not in _PREFIXES:
            raise InputError(
                f"unknown features {kind!r}", remedy=f"one of {', '.join(get_args(FeatureKind))}"
            )
    data, feats, langs = _arrays(path)
    wanted = tuple(_PREFIXES[kind] for kind in kinds) if kinds else ("",)
    columns = [at for at, name in enumerate(feats) if name.startswith(wanted)]
    if not columns:
        raise InputError(
            f"holds no feature of {', '.join(kinds or ())}", file=path, remedy=_GET_FILE
        )
    rows = {code: at for at, code in enumerate(langs)}
    features, codes = {}, {}
    for given in languages:
        entry = language(given)
        names = [n for n in (entry.iso3, _OTHER_CODES.get(entry.iso3)) if n in rows]
        if not names:
            raise InputError(
                f"does not have {entry.name} ({entry.iso3})",
                file=path,
                remedy="leave the language out, or give another file",
            )
        found = {name: _mean_of_sources(data[rows[name]][columns], path) for name in names}
        best = max(found, key=lambda name: int((found[name] >= 0).sum()))
        features[entry.code], codes[entry.code] = found[best], best
    return Typology(features, tuple(feats[at] for at in columns), codes)


def lang2vec_file(name: Lang2vecFile = "features") -> Path:
    """Where an installed lang2vec package keeps a file that `read_typology` takes.

    `feature_predictions` has no missing feature: the gaps are filled by nearest neighbours.
    The package is found and not imported, since that needs pkg_resources, which setuptools no
    longer has. Raises InputError where it is not installed or has no such file.
    """
    found = importlib.util.find_spec("lang2vec")
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise InputError(
            "the package lang2vec is not installed", remedy=f"pip install lang2vec, or {_GET_FILE}"
        )
    path = Path(places[0]) / "data" / f"{name}.npz"
    if not path.is_file():
        raise InputError(
            "the installed lang2vec has no such file", file=path, remedy="pip install lang2vec"
        )
    return path


def _mean_of_sources(
    values: Num[np.ndarray, "D S"], path: str | AnyPath
) -> Float[np.ndarray, " D"]:
    known = values != -1
    if not (~known | ((values >= 0) & (values <= 1))).all():
        raise InputError("holds values other than -1 and 0…1", file=path, remedy=_GET_FILE)
    n = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1, dtype=np.float64)
    return np.where(n > 0, total / np.maximum(n, 1), -1.0)


def _arrays(path: str | AnyPath) -> tuple[Num[np.ndarray, "n D S"], list[str], list[str]]:
    """data, feats and langs of the file."""
    arrays = _unzipped(path)
    if missing := [name for name in ("data", "feats", "langs") if name not in arrays]:
        raise InputError(
            f"is a zip file without the arrays {', '.join(missing)}", file=path, remedy=_GET_FILE
        )
    data, feats, langs = arrays["data"], arrays["feats"], arrays["langs"]
    numbers = data.ndim == 3 and data.dtype.kind in "fiu"
    texts = all(a.ndim == 1 and a.dtype.kind == "U" for a in (feats, langs))
    if not (numbers and texts and data.shape[:2] == (len(langs), len(feats))):
        raise InputError(
            f"data {data.shape}, langs {langs.shape}, feats {feats.shape} do not fit together",
            file=path,
            remedy=_GET_FILE,
        )
    return data, feats.tolist(), langs.tolist()


def _unzipped(path: str | AnyPath) -> dict[str, np.ndarray]:
    content = read_bytes(path)
    if not content:
        raise InputError("is empty (0 bytes)", file=path, remedy="download it again")
    if content.startswith(_LFS_POINTER):
        raise InputError(
            "is a Git LFS pointer, not the data",
            file=path,
            remedy="run `git lfs pull` where it came from",
        )
    if not content.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise InputError("is not an .npz file", file=path, remedy=_GET_FILE)
    wanted = {"data.npy", "feats.npy", "langs.npy"}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {
                name.removesuffix(".npy"): _array(archive.read(name), name, path)
                for name in archive.namelist()
                if name in wanted
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"is a damaged zip file ({error})", file=path, remedy="download it again"
        ) from None


def _array(content: bytes, name: str, path: str | AnyPath) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, MemoryError) as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"{name} needs Python's pickle, which is never opened",
                file=path,
                remedy="save its arrays as numbers and text (dtype float and str)",
            ) from None
        raise InputError(
            f"{name} is a damaged array ({error})", file=path, remedy="download it again"
        ) from None
