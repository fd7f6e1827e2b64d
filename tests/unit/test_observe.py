"""Every reducer at every site against NumPy float64 on the whole activations of `forward`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridgex_jax.activations import observe as module
from bridgex_jax.activations.examples import Full, LastToken, TokenMean
from bridgex_jax.activations.observe import InMemory, Observed, observe
from bridgex_jax.activations.statistics import Count, Histogram, Sum, SumOfSquares
from bridgex_jax.data.batching import Encoded, bucketed
from bridgex_jax.data.trees import tree_batches
from bridgex_jax.errors import InputError
from bridgex_jax.models import forward
from bridgex_jax.models.decoder import GLOBAL_SITES, SITES

EPS = 64 * np.finfo(np.float32).eps
BINS = Histogram("mlp_act", bins=24, low=-2.0, high=4.0)


@pytest.fixture(scope="module")
def encoded():
    """Some with a common beginning, one twice; the first token is never in scope."""
    rng = np.random.default_rng(0)
    ids = [tuple(rng.integers(2, 300, n)) for n in (3, 9, 2, 17, 12, 5, 30)]
    ids += [(*ids[3][:8], 7, 8), ids[1]]
    return [Encoded(i, (False,) + (True,) * (len(i) - 1)) for i in ids]


@pytest.fixture(scope="module")
def whole(tiny_model, encoded):
    """For every site [L, tokens in scope, *F] float64 of every example, alone in its row."""
    (batch,) = bucketed(encoded, 16, multiple=32)
    _, taps = forward(tiny_model, batch.tokens, batch.mask, taps=SITES)
    taps = {s: np.asarray(v[None] if s in GLOBAL_SITES else v, np.float64) for s, v in taps.items()}
    return [
        {site: value[:, row][:, batch.scope[row]] for site, value in taps.items()}
        for row in range(len(encoded))
    ]


def packed(kind, encoded):
    rows = bucketed(encoded, 4, multiple=32)
    return list(rows if kind == "rows" else tree_batches(encoded, 4))


def token_counts(encoded):
    return np.array([sum(item.scope) for item in encoded])


def close(found, reference, scale):
    return (np.abs(found - reference) <= EPS * scale).all()


@pytest.mark.parametrize("kind", ["rows", "trees"])
def test_statistics_of_all_sites_are_those_of_the_whole_activations(
    tiny_model, encoded, whole, kind
):
    reducers = {}
    for site in SITES:
        reducers |= {(site, r.__name__): r(site) for r in (Count, Sum, SumOfSquares)}
    found = observe(tiny_model, packed(kind, encoded), reducers)
    assert found.tokens == token_counts(encoded).sum()
    for site in SITES:
        values = np.concatenate([taps[site] for taps in whole], axis=1)
        scale = np.abs(values).max()
        # A value within rounding of 0 may have the other sign.
        nearly_zero = (np.abs(values) <= EPS * scale).sum(1)
        flips = np.abs(found.statistics[site, "Count"] - (values > 0).sum(1))
        assert (flips <= nearly_zero).all() and flips.sum() <= 4
        assert close(found.statistics[site, "Sum"], values.sum(1), np.abs(values).sum(1) + scale)
        squares = (values**2).sum(1)
        assert close(found.statistics[site, "SumOfSquares"], squares, squares + scale**2)


@pytest.mark.parametrize("kind", ["rows", "trees"])
def test_results_of_examples_are_those_of_the_whole_activations(tiny_model, encoded, whole, kind):
    reducers = {}
    for site in SITES:
        layers = None if site in GLOBAL_SITES else (1, 3)
        reducers[site, "mean"] = TokenMean(site)
        reducers[site, "last"] = LastToken(site, layers)
        reducers[site, "full"] = Full(site, layers)
    sink = InMemory(len(encoded), token_counts(encoded))
    observe(tiny_model, packed(kind, encoded), reducers, sink=sink)
    for (site, which), values in sink.values.items():
        chosen = slice(None) if which == "mean" or site in GLOBAL_SITES else [1, 3]
        for i, taps in enumerate(whole):
            reference = taps[site][chosen]
            if which == "full":
                own = values[:, sink.offsets[i] : sink.offsets[i + 1]]
            else:
                reference = reference.mean(1) if which == "mean" else reference[:, -1]
                own = values[:, i]
            assert own.shape == reference.shape
            assert close(own, reference, np.abs(taps[site]).max())


def test_chosen_neurons_may_differ_in_number_between_layers(tiny_model, encoded, whole):
    reducer = TokenMean("mlp_act", layers=(0, 2), neurons=((4, 40, 63), (9,)))
    sink = InMemory(len(encoded))
    observe(tiny_model, packed("trees", encoded), {"x": reducer}, sink=sink)
    for i, taps in enumerate(whole):
        means = taps["mlp_act"].mean(1)
        scale = np.abs(taps["mlp_act"]).max()
        assert close(sink.values["x"][0, i], means[0, [4, 40, 63]], scale)
        assert close(sink.values["x"][1, i, :1], means[2, [9]], scale)


def test_counts_are_bit_equal_in_any_order_and_grouping(tiny_model, encoded):
    reducers = {"count": Count("z"), "bins": BINS, "sum": Sum("mlp_out")}
    batches = packed("rows", encoded)
    at_once = observe(tiny_model, batches, reducers)
    backwards = observe(tiny_model, batches[::-1], reducers)
    thirds = [observe(tiny_model, batches[i::3], reducers) for i in range(3)]
    left = (thirds[0] + thirds[1]) + thirds[2]
    right = Observed() + thirds[2] + (thirds[0] + thirds[1])
    for other in (backwards, left, right):
        assert other.tokens == at_once.tokens
        for name in ("count", "bins"):
            np.testing.assert_array_equal(at_once.statistics[name], other.statistics[name])
        np.testing.assert_allclose(at_once.statistics["sum"], other.statistics["sum"], 1e-6, 1e-6)


def test_sums_over_many_batches_lose_no_digits():
    reducer = Sum()
    values = np.float32([1e8, 1.0, -1e8, 1e-3] * 250).reshape(-1, 1, 1)
    add = jax.jit(reducer.add)
    state = reducer.start((1,))
    for value in values:
        state = add(state, value, np.ones(1, np.int32))
    exact = values.astype(np.float64).sum()
    assert abs(reducer.finish(jax.device_get(state))[0] - exact) < 1e-5 * exact


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_percentiles_of_a_histogram_are_right_within_a_bin(tiny_model, encoded, whole, share):
    found = observe(tiny_model, packed("trees", encoded), {"bins": BINS})
    counts = found.statistics["bins"]
    values = np.concatenate([taps["mlp_act"] for taps in whole], axis=1)
    assert (counts.sum(-1) == found.tokens).all()
    exact = np.quantile(values, share, axis=1, method="inverted_cdf")
    percentile = BINS.percentile(counts, share)
    inside = (exact > BINS.low) & (exact < BINS.high)
    width = (BINS.high - BINS.low) / BINS.bins
    assert inside.sum() > 50
    assert (np.abs(percentile - exact)[inside] <= width * 1.001).all()
    assert (percentile[exact < BINS.low - 1e-4] == -np.inf).all()
    assert (percentile[exact > BINS.high + 1e-4] == np.inf).all()


def test_a_histogram_loses_no_value():
    reducer = Histogram(bins=4, low=0.0, high=1.0)
    values = jnp.array([-1e30, -0.0, 0.24, 0.25, 0.99, 1.0, jnp.inf, jnp.nan])[:, None]
    weight = jnp.array([1, 1, 1, 1, 1, 1, 1, 2], jnp.int32)
    counts = reducer.add(reducer.start((1, 6)), values, weight)
    np.testing.assert_array_equal(counts[0], [1, 2, 1, 0, 1, 4])


def test_nothing_is_transferred_unasked_and_each_shape_compiles_once(tiny_model, encoded, caplog):
    caplog.set_level("WARNING", logger="jax")  # the command line keeps it quieter
    reducers = {"count": Count(), "last": LastToken("resid_post", (2,))}
    batches = packed("trees", encoded)[:1] * 3
    sink = InMemory(len(encoded))
    with jax.transfer_guard("disallow"), jax.log_compiles():
        observe(tiny_model, batches, reducers, sink=sink)
    assert sum("Compiling jit(_step)" in record.message for record in caplog.records) == 1


def test_only_chosen_layers_are_in_memory_and_statistics_are_renewed_in_place(tiny_model, encoded):
    reducers = {"full": Full("mlp_act", (1, 2, 3)), "bins": BINS}
    mesh = tiny_model.mesh
    plan, chosen = module._plan(tiny_model, reducers, mesh, "float32")
    batch = packed("trees", encoded)[0]
    state = plan.start()
    rows = module._put(batch, mesh)
    compiled = module._step.lower(tiny_model, rows, state, chosen, plan).compile()
    size = ",".join(map(str, batch.tokens.shape))
    assert f"f32[3,{size},64]" in compiled.as_text()
    assert f"f32[4,{size},64]" not in compiled.as_text()
    n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes == n_bytes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_kept_of_examples_comes_in_the_dtype_that_was_named(tiny_model, encoded, dtype):
    wide, narrow = InMemory(len(encoded)), InMemory(len(encoded))
    reducers = {"x": LastToken("resid_post")}
    observe(tiny_model, packed("rows", encoded), reducers, sink=wide)
    observe(tiny_model, packed("rows", encoded), reducers, sink=narrow, dtype=dtype)
    assert narrow.values["x"].dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(narrow.values["x"], wide.values["x"].astype(dtype))


def test_more_tokens_than_an_int32_can_count_are_refused(tiny_model, encoded, monkeypatch):
    monkeypatch.setattr(module, "MOST_TOKENS", 20)
    with pytest.raises(InputError, match="too many to count; observe the text in parts"):
        observe(tiny_model, packed("rows", encoded), {"count": Count()})


@pytest.mark.parametrize(
    ("reducer", "message"),
    [
        (Count("mlp"), "unknown site 'mlp'"),
        (LastToken("mlp_act", (4,)), "the model has 4"),
        (LastToken("final_norm", (0,)), "no layers to choose"),
        (TokenMean("z", neurons=((1,),) * 4), "no single axis"),
        (TokenMean("mlp_act", neurons=((64,),) * 4), "a layer has 64"),
        (TokenMean("mlp_act", neurons=((1,),)), "neurons of 1 layers, 4 are kept"),
    ],
)
def test_reducers_that_do_not_fit_the_model_are_refused(tiny_model, encoded, reducer, message):
    with pytest.raises(ValueError, match=message):
        observe(tiny_model, packed("rows", encoded), {"x": reducer}, sink=InMemory(9))


def test_results_of_examples_need_somewhere_to_go(tiny_model, encoded):
    with pytest.raises(ValueError, match="need a sink"):
        observe(tiny_model, packed("rows", encoded), {"x": TokenMean()})
