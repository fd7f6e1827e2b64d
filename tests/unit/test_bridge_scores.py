"""A user's table of bridge scores: its forms, and rows that are refused by file and line."""

import math

import pytest

from bridgex_jax.bridge.choosers import pick, table
from bridgex_jax.data.bridge_scores import read_bridge_scores
from bridgex_jax.errors import InputError

HEADER = "source,target,bridge,score\n"


def read(tmp_path, text):
    path = tmp_path / "scores.csv"
    path.write_text(text, encoding="utf-8")
    return read_bridge_scores(path)


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "id,he,en,0.5\nid,he,de,-1e-3\nhe,id,en,nan\n",
        "\ufeffsource\ttarget\tbridge\tscore\r\nid\the\ten\t0.5\r\nid\the\tde\t-1e-3\r\n"
        "he\tid\ten\tnan\r\n",
        'Score, Bridge ,note,target,source\n\n0.5,"en","a, b",he,id\n-0.001,de,,iw,ind\n'
        "NaN,eng,,id,he\n",
    ],
)
def test_columns_order_delimiter_and_codes_do_not_matter(tmp_path, text):
    found = read(tmp_path, text)
    assert list(found) == [("id", "he"), ("he", "id")]
    assert found["id", "he"] == {"en": 0.5, "de": -0.001}
    assert math.isnan(found["he", "id"]["en"])
    assert pick(table(found, "id", "he", ["de", "en"])) == "en"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n", ": holds no scores; begin with a line source,target,bridge,score"),
        (HEADER, ": holds no scores; write a row"),
        ("id,he,en,0.5\n", ":1: has no column source, target, bridge, score, or two; begin"),
        ("source,target,bridge,score,score\n", ":1: has no column score, or two"),
        (HEADER + "id,he,en,0.5\n\nid,he,0.5\n", ":4: 3 fields instead of 4; fill the columns"),
        (HEADER + "id,he,en,0,5\n", ":2: 5 fields instead of 4"),
        (HEADER + "id,he,q7q,1\n", ":2: unknown language code 'q7q'; "),
        (HEADER + "id,he,heb,1\n", ":2: id, he and he are not three languages; leave"),
        (HEADER + "id,he,en,high\n", ":2: score 'high' is not a finite number; write"),
        (HEADER + "id,he,en,\n", ":2: score '' is not a finite number"),
        (HEADER + "id,he,en,inf\n", ":2: score 'inf' is not a finite number"),
        (HEADER + "id,he,en,1\nid,heb,eng,2\n", ":3: en from id to he has a score already, in "
         "line 2; keep"),
        (HEADER + 'id,he,"en"x,1\n', ":2: is not well-formed CSV"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_refused_by_file_and_line(tmp_path, text, said):
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.removeprefix(str(tmp_path / "scores.csv")).startswith(said)
    assert len(message.splitlines()) == 1 and caught.value.remedy


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match="is a Git LFS pointer"):
        read_bridge_scores(path)
