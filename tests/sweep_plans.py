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


# Short tasks, for models with a context of 128 tokens: of words and of texts.
TASKS = {
    "words": """
name: words
version: 1
data: dictionary
bridged: word
translate: "{word} {bridge_code}:"
prompt: "{word} {target_code}:"
chain: "{translation} {target_code}:"
example: " {gold} "
read: line
metrics: [exact, f1]
max_new_tokens: 6
max_translation_tokens: 6
""",
    "short": """
name: short
version: 1
data: xnli
bridged: premise
translate: "{premise} {bridge_code}:"
prompt: "{premise}? {hypothesis}:"
chain: "{translation}? {hypothesis}:"
example: " {gold}"
read: choice
choices: {entailment: " y", neutral: " m", contradiction: " n"}
metrics: [accuracy]
max_translation_tokens: 6
""",
}
PROBED = 10  # of the 30 words; the others are asked


def write_evaluation(directory: Path) -> dict[str, Any]:
    """Writes more words, questions and choosers; the sections of a plan that evaluates in them."""
    directory.mkdir(parents=True, exist_ok=True)
    words = directory / "many-id-he.txt"
    letters = "אבגדהוזחטיכלמנסעפצקר"
    extra = "".join(f"kata{a}\t{a}{b}\n" for a, b in zip(letters, letters[::-1], strict=True))
    words.write_text("".join(f"{a}\t{b}\n" for a, b in WORDS.items()) + extra)
    for name, task in TASKS.items():
        (directory / f"{name}.yaml").write_text(task)
    files = {}
    for code, text in (("id", "ini"), ("he", "זה")):
        rows = [f"{n}\t{text} {n}\t{text}{n}\t{n % 3}\n" for n in range(12)]
        (directory / f"{code}.tsv").write_text("id\tpremise\thypothesis\tlabel\n" + "".join(rows))
        files[code] = str(directory / f"{code}.tsv")
    scores = [f"{a},{b},{c},{n}\n" for a, b in (("id", "he"), ("he", "id"))
              for n, c in enumerate(("en", "de"))]  # fmt: skip
    (directory / "scores.csv").write_text("source,target,bridge,score\n" + "".join(scores))
    return {
        "dictionary": {"id-he": str(words)},
        "select": SELECT | {"words": PROBED},
        "evaluate": {
            "task": [str(directory / f"{name}.yaml") for name in TASKS],
            "limit": 9,
            "shots": 1,
            "batch_size": 4,
            "data": files,
            "scores": str(directory / "scores.csv"),
        },
    }
