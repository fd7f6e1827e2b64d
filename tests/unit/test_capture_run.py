"""`bridgex capture` from texts to arrays: packed tightly, in the order of the input, in parts."""

import itertools

import jax
import numpy as np
import pytest

from bridgex_jax.activations.examples import Full, LastToken, TokenMean
from bridgex_jax.activations.statistics import Count, Histogram
from bridgex_jax.cli import capture
from bridgex_jax.cli.options import Parser
from bridgex_jax.data.batching import encode_prompts
from bridgex_jax.data.cldr import sentences
from bridgex_jax.data.dictionaries import Dictionary, WordPair
from bridgex_jax.data.trees import pack
from bridgex_jax.errors import InputError
from bridgex_jax.models import forward
from bridgex_jax.pipelines import capture as job
from bridgex_jax.pipelines.capture import Packing, plan_packing, run_capture, windows
from bridgex_jax.pipelines.capture_settings import (
    CaptureSettings,
    dictionary_text,
    line_text,
    parse_layers,
    parse_reducers,
)
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.inputs import cldr_dictionary
from bridgex_jax.store.activations import hash_text, open_activations

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def texts():
    lines = list(itertools.islice(sentences("sw", 1), 40))
    words = Dictionary(
        "de", "en", tuple(WordPair(f"wort{n // 2}", f"w{n}") for n in range(18)), {}, (), "0"
    )
    return [line_text("sw", lines, "1", "sw.txt"), dictionary_text(words, None, "from_word_mean")]


@pytest.mark.parametrize("kind", ["sentences", "prompts"])
def test_hardly_anything_is_padding(tiny_model, kind):
    texts = []
    for code in ("id", "sw", "fi"):
        if kind == "sentences":
            lines = list(itertools.islice(sentences(code, 0), 400))
            texts.append(line_text(code, lines, "", ""))
        else:
            texts.append(dictionary_text(cldr_dictionary(code, "en"), None, "from_word_mean"))
    encoded = [encode_prompts(tiny_model.tokenizer, t.prompts, t.scope) for t in texts]
    packing = plan_packing(encoded, tiny_model.mesh, None)
    slots = used = 0
    for items in encoded:
        for start, stop in windows(items, packing, job.PART_BATCHES * packing.rows):
            rows = pack(items[start:stop], packing.slots, packing.prompts)
            slots += -(-len(rows) // packing.rows) * packing.rows * packing.slots
            used += sum(len(row.tokens) for row in rows)
    assert 1 - used / slots < 0.10


@pytest.mark.parametrize("n_rows", [1, 3, 1000])
def test_windows_hold_every_example_once_and_in_order(tiny_model, texts, n_rows):
    items = encode_prompts(tiny_model.tokenizer, texts[0].prompts, "prompt_mean")
    packing = Packing(1, 256, 16)
    found = list(windows(items, packing, n_rows))
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == len(items)
    for start, stop in found:
        assert len(pack(items[start:stop], 256, 16)) <= n_rows


def test_a_run_holds_what_the_model_gives_for_every_example(
    tiny_model, texts, tmp_path, monkeypatch
):
    monkeypatch.setattr(job, "PART_BYTES", 1)  # a part a batch
    reducers = {
        "count": Count("mlp_act"),
        "mean": TokenMean("mlp_gate_act"),
        "last": LastToken("resid_post", (1, 3)),
        "full": Full("z", (1, 3)),
        "final": LastToken("final_norm"),
    }
    settings = CaptureSettings(reducers, batch_size=4)
    found = open_activations(run_capture(tiny_model, texts, settings, tmp_path / "run", QUIET))
    assert found.texts == ("sw", "de-en")
    assert found.axes("full").keys() == {"chosen_layer", "token", "head", "head_dim"}
    assert found.axes("count") == {"text": 2, "layer": 4, "neuron": 64}
    assert found.axes("final") == {"example": 49, "embed": 32}
    prompts = [prompt for text in texts for prompt in text.prompts]
    sites = ("mlp_gate_act", "resid_post", "z", "mlp_act", "final_norm")
    counts = np.zeros((2, 4, 64), int)
    for i, prompt in enumerate(prompts):
        text = int(i >= 40)
        (item,) = encode_prompts(tiny_model.tokenizer, [prompt], texts[text].scope)
        tokens, scope = np.zeros((1, 96), np.int32), np.zeros(96, bool)
        tokens[0, : len(item.ids)] = item.ids
        scope[: len(item.ids)] = item.scope
        mask = np.arange(96)[None] < len(item.ids)
        _, taps = forward(tiny_model, tokens, mask, taps=sites)
        taps = {site: np.asarray(v, np.float64)[..., 0, scope, :] for site, v in taps.items()
                if site != "z"} | {"z": np.asarray(taps["z"])[:, 0, scope]}  # fmt: skip
        counts[text] += (taps["mlp_act"] > 0).sum(1)
        expected = {
            "mean": taps["mlp_gate_act"].mean(1, keepdims=True),
            "last": taps["resid_post"][[1, 3], -1:],
            "full": taps["z"][[1, 3]],
            "final": taps["final_norm"][-1:],
        }
        for name, reference in expected.items():
            np.testing.assert_allclose(
                found.numpy(name, examples=[i]), reference, 0, 2e-5 * np.abs(reference).max()
            )
        assert found.numpy("text_hash")[i] == hash_text(prompt.text)
        np.testing.assert_array_equal(
            found.numpy("token_id")[slice(*found.offsets()[i : i + 2])],
            np.array(item.ids)[item.scope,],
        )
    assert np.abs(found.numpy("count") - counts).sum() <= 4
    np.testing.assert_array_equal(found.numpy("example_text"), [0] * 40 + [1] * 9)
    np.testing.assert_array_equal(found.numpy("entry"), [*range(40), *range(9)])


def test_a_text_longer_than_the_context_is_named(tiny_model, tmp_path):
    text = line_text("en", ["short", "long " * 90], "0", "en.txt")
    with pytest.raises(InputError, match="tokens, the model's context is 128") as caught:
        run_capture(tiny_model, [text], CaptureSettings({"x": Count()}), tmp_path / "x", QUIET)
    assert caught.value.file == "en.txt" and list(tmp_path.iterdir()) == []


def test_sites_and_reducers_are_read_from_the_command_line():
    items = ["mlp_gate_act=count,count:0.2,histogram:8:-1:1", "z=full,sum_of_squares"]
    found = parse_reducers([*items, "final_norm=last_token"], (1, 2))
    assert found["mlp_gate_act_count_0.2"] == Count(threshold=0.2)
    assert found["mlp_gate_act_histogram"] == Histogram(bins=8, low=-1, high=1)
    assert found["z_full"] == Full("z", (1, 2))
    assert found["final_norm_last_token"] == LastToken("final_norm")
    assert parse_layers(["3", "7-9", "8"], 10) == (3, 7, 8, 9)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["mlp_gate_act"], "is not SITE=REDUCER"),
        (["gate=count"], "unknown site 'gate'; the sites are"),
        (["z=mean"], "unknown reducer 'mean'; the reducers are"),
        (["z=full"], "keeps every token of every layer; choose layers"),
        (["z=count", "z=count"], "given twice"),
        (["z=count:x"], "takes no such numbers"),
        (["z=sum:1"], "takes no such numbers"),
        (["z=histogram:4:1:1"], "has no bins"),
        (["z=histogram:4:0:1", "mlp_in=histogram:5:0:1"], "histograms of 4 and 5 bins"),
        ([], "--site is missing"),
    ],
)
def test_a_bad_site_is_one_line(items, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_reducers(items, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("items", "message"), [(["x"], "is no layer"), (["3-12"], "layers 0 to 9"), (["4-3"], "0 to 9")]
)
def test_bad_layers_are_one_line(items, message):
    with pytest.raises(InputError, match=message):
        parse_layers(items, 10)


def test_bfloat16_is_kept_where_it_was_asked_for(tiny_model, texts, tmp_path):
    reducers = {"last": LastToken("mlp_in")}
    both = [
        open_activations(
            run_capture(
                tiny_model, texts, CaptureSettings(reducers, dtype), tmp_path / dtype, QUIET
            )
        ).numpy("last")
        for dtype in ("float32", "bfloat16")
    ]
    np.testing.assert_array_equal(both[1], both[0].astype(jax.numpy.bfloat16))


def call(*arguments):
    """The verb alone, as the command line calls it."""
    parser = Parser(prog="bridgex")
    capture.add(parser.add_subparsers(parser_class=Parser))
    args = parser.parse_args(["capture", *map(str, arguments)])
    return args.run(args)


def test_the_verb_says_what_was_captured_and_how_to_open_it(tiny_directory, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("one\n\ntwo words\nthree\n")
    out = tmp_path / "run"
    options = ["--text", tmp_path / "lines.txt", "--corpus", "sw=cldr", "--examples", 2]
    options += ["--dictionary", "cldr", "--source", "id", "--target", "he"]
    options += ["--site", "mlp_act=count,full", "z=token_mean", "--layers", "1-2"]
    assert call(tiny_directory, *options, "--quiet", "--out", out) == 0
    said = capsys.readouterr().out
    assert "mlp_act_count [text 3, layer 4, neuron 64] int64" in said
    assert "z_token_mean [chosen_layer 2, example 6, head 4, head_dim 8] float32" in said
    assert f"open_activations({str(out)!r})" in said
    assert open_activations(out).texts == ("lines.txt", "sw", "id-he")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to read; give --text"),
        (["--dictionary", "cldr"], "needs a pair; give --source"),
        (["--corpus", "sw=cldr", "sw=cldr"], "two corpora of sw"),
        (["--corpus", "sw=cldr", "--layers", "1"], "--layers chooses nothing"),
        (["--corpus", "sw=cldr", "--site", "x=count"], "unknown site 'x'"),
    ],
)
def test_a_bad_command_is_one_line(tiny_directory, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        call(tiny_directory, *options, "--site", "z=sum", "--quiet", "--out", tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
