"""Questions of the evaluation tasks, in one language and joined over two.

Tasks: Belebele (multiple choice, arXiv 2308.16884), XNLI (inference, arXiv 1809.05053) and XQuAD
(extractive answers, arXiv 1910.11856). `task_files` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bridgex_jax.errors import InputError


@dataclass(frozen=True)
class Record:
    """One question of a task in one language.

    key: the question, the same in all languages. fields: its texts by name (Belebele: passage,
    question, a, b, c, d; XNLI: premise, hypothesis; XQuAD: passage, question). golds: the right
    answers: a letter A to D, an XNLI label, or the distinct answer texts. passage: the text that
    the question shares with others, the same in all languages.
    """

    key: str
    fields: Mapping[str, str]
    golds: tuple[str, ...]
    passage: str


@dataclass(frozen=True)
class Records:
    """The questions of a file, each key once, in file order.

    notes: counts, by name, of what `read_lines` met and of what was mended (`bom`, `not_nfc`,
    `outer_space`: fields), left out (`duplicate`, `no_label`, `other_language`: rows) or only
    noticed (`same_options`: questions). sha256: of the file, or of the rows of a hub.
    """

    language: str
    records: tuple[Record, ...]
    files: tuple[str, ...]
    sha256: str
    notes: Mapping[str, int]


def join(source: Records, target: Records, *, same_golds: bool) -> list[tuple[Record, Record]]:
    """The same questions in two languages, in the source's order.

    same_golds: whether the right answers must agree, as Belebele's letters and XNLI's labels do
    and XQuAD's texts do not. Raises InputError where a question is missing on either side, and
    where answers that must agree differ.
    """
    files = " and ".join(source.files + target.files)
    ours = {record.key: record for record in source.records}
    theirs = {record.key: record for record in target.records}
    lost = [[key for key in ours if key not in theirs], [key for key in theirs if key not in ours]]
    if any(lost):
        raise InputError(
            f"{len(lost[0])} of {len(ours)} questions in {source.language} are missing in "
            f"{target.language}, {len(lost[1])} of {len(theirs)} in {target.language} are missing "
            f"in {source.language}; the first is {(lost[0] + lost[1])[0]}",
            file=files,
            remedy="give the same split of the task in both languages",
        )
    pairs = [(record, theirs[key]) for key, record in ours.items()]
    for first, second in pairs:
        if same_golds and first.golds != second.golds:
            raise InputError(
                f"the right answer of {first.key} is {', '.join(first.golds)} in "
                f"{source.language} and {', '.join(second.golds)} in {target.language}",
                file=files,
                remedy="give files of the same release of the task",
            )
    return pairs
