"""A small sweep on files of its own, for the tests of sweeps."""

import json
from pathlib import Path
from typing import Any

TEXTS = {
    "id": "Bahasa Indonesia adalah bahasa resmi negara ini dan dipakai di sekolah.",
    "he": "השפה העברית היא שפה שמית המדוברת בעיקר בישראל ובקהילות אחרות.",
    "en": "The quick brown fox jumps over the lazy dog near the river bank.",
    "de": "Der schnelle braune Fuchs springt über den faulen Hund am Fluss.",
}
WORDS = {
    "air": "מים", "api": "אש", "rumah": "בית", "batu": "אבן", "ikan": "דג", "buku": "ספר",
    "kota": "עיר", "laut": "ים", "pohon": "עץ", "langit": "שמיים",
}  # fmt: skip
SELECT = {
    "top_rate": 0.3,
    "probe_filter": "none",
    "permutations": 19,
    "resamples": 50,
    "tokens": 512,
    "row_length": 64,
}


def write_data(directory: Path) -> dict[str, Any]:
    """Writes a dictionary and four corpora; the sections of a plan that name them."""
    directory.mkdir(parents=True, exist_ok=True)
    words = directory / "id-he.txt"
    words.write_text("".join(f"{a}\t{b}\n" for a, b in WORDS.items()))
    corpus = {}
    for code, text in TEXTS.items():
        file = directory / f"{code}.txt"
        file.write_text("".join(f"{text} {n}\n" for n in range(40)))
        corpus[code] = str(file)
    return {"dictionary": {"id-he": str(words)}, "corpus": corpus, "bridges": ["en", "de"]}


def write_plan(directory: Path, models: list[Any], **changes: Any) -> Path:
    """A plan of one count unit and one select unit for each model and pair (YAML reads JSON)."""
    sections = {"models": models, "pairs": ["id-he"], "select": SELECT} | write_data(directory)
    file = directory / "plan.yaml"
    file.write_text(json.dumps(sections | changes, ensure_ascii=False, indent=1))
    return file
