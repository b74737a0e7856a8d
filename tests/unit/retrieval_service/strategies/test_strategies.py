"""Strategies: what each computes, left-out examples against refitting, and what must hold for all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.embedders.base import normalise
from retrieval_service.strategies.calibrated import Calibrated
from retrieval_service.strategies.centroid import Centroid
from retrieval_service.strategies.examples import ExampleSet, Float64Array
from retrieval_service.strategies.multi_centroid import MultiCentroid, find_exemplars
from retrieval_service.strategies.nearest_examples import NearestExamples
from retrieval_service.strategies.ranking import ranking
from retrieval_service.strategies.scale import FittedStrategy, Scale, Similarities
from retrieval_service.strategies.scatter import FITTED_EXAMPLES, nested_kinds, residuals, scatters
from tests.support.harness.example_sets import clouds

FITTED: list[type[FittedStrategy]] = [Centroid, MultiCentroid, NearestExamples, Calibrated]
UNEVEN = {"a": 1, "b": 2, "c": 3, "d": 7, "e": 12, "f": 16}


def queries(dim: int, count: int = 9, seed: int = 5) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return normalise(np.random.default_rng(seed).normal(size=(count, dim)))


def brute_force(found: FittedStrategy, row: int) -> Float64Array:
    """Fit the strategy again without the example."""
    without = found.examples.without(row)
    refitted: FittedStrategy = type(found)(without)  # type: ignore[call-arg]
    cosines: Float64Array = refitted.cosines(found.examples.vectors[[row]])[0]
    return cosines


@pytest.mark.parametrize("strategy", FITTED)
@pytest.mark.parametrize("dim", [6, 16, 80])
def test_left_out_example_does_not_affect_fit(strategy: type[FittedStrategy], dim: int) -> None:
    examples = clouds(UNEVEN, dim=dim, seed=dim)
    fitted = strategy(examples)  # type: ignore[call-arg]
    rows = examples.testable()
    assert len(rows) == sum(UNEVEN.values()) - 1
    refitted = np.stack([brute_force(fitted, int(row)) for row in rows])
    np.testing.assert_allclose(fitted.left_out(rows), refitted, atol=2e-5)


def test_left_out_examples_of_mixed_kinds_agree_with_refitting() -> None:
    kinds = {"a": "app", "b": "app", "c": "app", "d": "category", "e": "category", "f": "app"}
    examples = clouds(UNEVEN, dim=12, seed=3, kinds=kinds)
    for kind in ("", "app", "category"):
        fitted = Calibrated(examples, kind)
        rows = examples.testable()
        expected = [Calibrated(examples.without(int(row)), kind).cosines(examples.vectors[[row]])[0] for row in rows]
        np.testing.assert_allclose(fitted.left_out(rows), expected, atol=2e-5)


def test_calibrated_is_cosine_in_metric_of_shrunk_covariance() -> None:
    """Against dim x dim matrices written out, with the shrinkage as its paper prints it."""
    examples = clouds({"a": 5, "b": 6, "c": 9}, dim=10)
    parts = [examples.vectors[examples.rows_of(index)].astype(np.float64) for index in range(3)]
    freedom, dim = sum(len(part) - 1 for part in parts), 10
    covariance = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in parts) / freedom
    trace, squared = np.trace(covariance), np.trace(covariance @ covariance)
    shrinkage = ((1 - 2 / dim) * squared + trace**2) / ((freedom + 1 - 2 / dim) * (squared - trace**2 / dim))
    assert 0 < shrinkage < 1
    metric = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * trace / dim * np.eye(dim))
    means, asked = np.stack([part.mean(0) for part in parts]), queries(dim).astype(np.float64)
    lengths = np.sqrt(np.outer(np.einsum("id,de,ie->i", asked, metric, asked), np.diag(means @ metric @ means.T)))
    expected = asked @ metric @ means.T / lengths
    np.testing.assert_allclose(Calibrated(examples).cosines(queries(dim)), expected, atol=1e-5)


def test_nearest_examples_is_mean_of_three_nearest() -> None:
    examples = clouds(UNEVEN)
    asked = queries(16)
    found = NearestExamples(examples).cosines(asked)
    for index in range(len(examples.ids)):
        cosines = np.sort(asked @ examples.vectors[examples.rows_of(index)].T, axis=1)[:, ::-1]
        np.testing.assert_allclose(found[:, index], cosines[:, :3].mean(axis=1), atol=1e-6)


def test_k_means_finds_groups_deterministically() -> None:
    generator = np.random.default_rng(1)
    centres = normalise(np.eye(8)[:3])
    vectors = normalise(np.repeat(centres, 7, axis=0) + 0.05 * generator.normal(size=(21, 8)))
    shuffled = vectors[generator.permutation(21)]
    for given_vectors in (vectors, shuffled):
        found = find_exemplars(given_vectors)
        assert found.shape == (3, 8)
        assert (found @ centres.T).max(axis=1) == pytest.approx([1, 1, 1], abs=0.01)
        assert sorted((found @ centres.T).argmax(axis=1)) == [0, 1, 2]
        np.testing.assert_array_equal(found, find_exemplars(given_vectors))


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (9, 1), (10, 2), (14, 2), (15, 3), (40, 3)])
def test_few_examples_make_few_exemplars(count: int, expected: int) -> None:
    assert len(find_exemplars(queries(8, count))) == expected


def test_equal_examples_make_one_exemplar() -> None:
    np.testing.assert_allclose(find_exemplars(np.repeat(queries(8, 1), 20, axis=0)), queries(8, 1), atol=1e-6)


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_adapters_with_only_mean_are_compared_by_centroid(strategy: RetrievalStrategy) -> None:
    examples = clouds(dict.fromkeys("abcd", 1))
    expected = queries(16) @ examples.vectors.T
    np.testing.assert_allclose(Similarities(strategy, examples).of(queries(16)), expected, atol=1e-6)


def test_adapter_with_only_mean_has_no_advantage() -> None:
    """Means lie nearer to everything than examples do; on one scale that does not make them win."""
    full = clouds({f"a{index}": 20 for index in range(10)}, noise=1.2, seed=8)
    half = {name: full.vectors[full.rows_of(index)] for index, name in enumerate(full.ids)}
    stored = {name: vectors[:10] for name, vectors in half.items()}
    for name in full.ids[::2]:
        stored[name] = stored[name].mean(axis=0, keepdims=True)
    known = ExampleSet.of(stored)
    asked = np.concatenate([half[name][10:] for name in full.ids])
    truth = np.repeat(np.arange(10), 10)
    scaled = Similarities(RetrievalStrategy.NEAREST_EXAMPLES, known).of(asked).argmax(axis=1)
    raw = NearestExamples(known).cosines(asked).argmax(axis=1)
    assert abs((scaled % 2 == 0).mean() - 0.5) < abs((raw % 2 == 0).mean() - 0.5)
    assert (scaled == truth).mean() >= (raw == truth).mean()


def test_without_scatter_calibrated_equals_cosine() -> None:
    same = ExampleSet.of({name: np.repeat(queries(8, 1, seed), 4, axis=0) for seed, name in enumerate("abc")})
    np.testing.assert_allclose(Calibrated(same).cosines(queries(8)), Centroid(same).cosines(queries(8)), atol=1e-6)


@pytest.mark.parametrize("examples_an_adapter", [2, 3, 5, 20])
def test_calibrated_discounts_noise_common_to_adapters(examples_an_adapter: int) -> None:
    """At least as good as the centroid with few examples, and clearly better with twenty."""
    names = [f"a{index}" for index in range(12)]
    right = {}
    for strategy in (RetrievalStrategy.CENTROID, RetrievalStrategy.CALIBRATED):
        hits = []
        for seed in range(6):
            everything = clouds(dict.fromkeys(names, examples_an_adapter + 20), dim=64, noise=1.5, seed=seed)
            kept = np.concatenate([everything.rows_of(index)[:examples_an_adapter] for index in range(12)])
            asked = np.concatenate([everything.rows_of(index)[examples_an_adapter:] for index in range(12)])
            known = ExampleSet(everything.ids, everything.kinds, everything.vectors[kept], everything.owners[kept])
            found = Similarities(strategy, known).of(everything.vectors[asked]).argmax(axis=1)
            hits.append((found == everything.owners[asked]).mean())
        right[strategy] = float(np.mean(hits))
    gained = right[RetrievalStrategy.CALIBRATED] - right[RetrievalStrategy.CENTROID]
    assert gained >= (0.03 if examples_an_adapter == 20 else 0)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 14), min_size=1, max_size=7),
    dim=st.integers(2, 24),
    seed=st.integers(0, 1000),
    strategy=st.sampled_from(RetrievalStrategy),
)
def test_similarities_are_finite_and_independent_of_order_and_batch(
    counts: list[int], dim: int, seed: int, strategy: RetrievalStrategy
) -> None:
    names = {f"a{index}": count for index, count in enumerate(counts)}
    examples = clouds(names, dim=dim, seed=seed)
    asked = queries(dim, 5, seed)
    found = Similarities(strategy, examples).of(asked)
    assert found.shape == (5, len(counts))
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 1).all()
    turned = ExampleSet.of(
        {one: examples.vectors[examples.rows_of(index)] for index, one in reversed(list(enumerate(examples.ids)))}
    )
    assert turned.ids == examples.ids
    np.testing.assert_allclose(Similarities(strategy, turned).of(asked), found, atol=2e-6)
    np.testing.assert_allclose(Similarities(strategy, examples).of(asked[:1]), found[:1], atol=2e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), strategy=st.sampled_from(RetrievalStrategy))
def test_rotation_does_not_change_similarities(seed: int, strategy: RetrievalStrategy) -> None:
    examples = clouds({"a": 4, "b": 11, "c": 6}, dim=12, seed=seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 12)))
    turned = ExampleSet.of(
        {one: examples.vectors[examples.rows_of(index)] @ turn for index, one in enumerate(examples.ids)}
    )
    found = Similarities(strategy, turned).of((queries(12) @ turn).astype(np.float32))
    np.testing.assert_allclose(found, Similarities(strategy, examples).of(queries(12)), atol=1e-4)


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_identical_adapters_are_ordered_by_id(strategy: RetrievalStrategy) -> None:
    examples = clouds({f"a{index}": 12 for index in range(9)}, dim=33)
    arrays = {one: examples.vectors[examples.rows_of(index)] for index, one in enumerate(examples.ids)}
    found = Similarities(strategy, ExampleSet.of(arrays | {"zz": arrays["a3"]})).of(queries(33, 100))
    places = ranking(found).argsort(axis=1)
    np.testing.assert_array_equal(places[:, 3] + 1, places[:, -1])


def test_ranking_falls_up_to_rounding() -> None:
    similarities = np.array([[0.1, 0.5, 0.5 + 1e-7, 0.5 - 1e-7, 0.9], [-1.0, -1.0, 1.0, 0.0, 0.0]])
    assert ranking(similarities).tolist() == [[4, 1, 2, 3, 0], [2, 3, 4, 0, 1]]
    steps = np.array([[0.0, 1.5e-6, 3e-6, 4.5e-6]])
    assert ranking(steps).tolist() == [[2, 3, 0, 1]]
    assert ranking(np.zeros((2, 0))).shape == (2, 0)


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_mean_similarity_of_right_and_wrong_pairs_is_equal_under_all_strategies(strategy: RetrievalStrategy) -> None:
    examples = clouds({f"a{index}": 15 for index in range(6)}, dim=32)
    rows = examples.testable()
    right = np.zeros((len(rows), 6), bool)
    right[np.arange(len(rows)), examples.owners[rows]] = True
    found = Similarities(strategy, examples).left_out(rows)
    plain = Centroid(examples).left_out(rows)
    assert found[right].mean() == pytest.approx(plain[right].mean(), abs=0.02)
    assert found[~right].mean() == pytest.approx(plain[~right].mean(), abs=0.02)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9), st.tuples(*[st.floats(-0.99, 0.99)] * 4))
def test_scale_keeps_order(cosines: list[float], points: tuple[float, float, float, float]) -> None:
    scale = Scale.through((points[0], points[1]), (points[2], points[3]))
    mapped = scale.apply(np.sort(cosines))
    assert (np.diff(mapped) >= -1e-12).all()  # interpolation rounds; similarities closer than 2e-6 are ties anyway
    assert scale.apply(np.array([-1.0, 1.0])).tolist() == [-1, 1]


def test_scale_is_identity_unless_right_is_above_wrong() -> None:
    assert Scale.through((0.5, 0.4), (0.1, 0.2)) == Scale()
    assert Scale.through((0.1, 0.2), (0.5, 0.5)) == Scale()
    assert Scale.through((0.1, 0.3), (0.5, 0.9)).apply(np.array([0.2])) == pytest.approx([0.7])


def categories() -> ExampleSet:
    """Six apps in two directions each of noise, and two categories of three apps."""
    apps = clouds({f"app{index}": 10 for index in range(6)}, dim=24, noise=0.4)
    arrays = {one: apps.vectors[apps.rows_of(index)] for index, one in enumerate(apps.ids)}
    for index in range(2):
        arrays[f"category{index}"] = np.concatenate([arrays[f"app{3 * index + one}"][:5] for one in range(3)])
    return ExampleSet.of(arrays, {name: name.rstrip("0123456789") for name in arrays})


def test_differences_between_apps_of_category_count_when_apps_are_told_apart() -> None:
    examples = categories()
    found = scatters(examples)
    assert found["category"].width > found["app"].width
    assert nested_kinds(found, "app") == nested_kinds(found, "") == nested_kinds(found, "unknown") == {"app"}
    assert nested_kinds(found, "category") == {"app", "category"}


def test_kind_with_few_examples_does_not_decide_discounting() -> None:
    generous = clouds({"a": 20, "b": 20, "twin": 2}, kinds={"a": "app", "b": "app", "twin": "odd"})
    arrays = {one: generous.vectors[generous.rows_of(index)] for index, one in enumerate(generous.ids)}
    arrays["twin"] = arrays["twin"][:1].repeat(2, axis=0)
    examples = ExampleSet.of(arrays, dict(zip(generous.ids, generous.kinds, strict=True)))
    assert nested_kinds(scatters(examples), "") == {"app", "odd"}


def test_without_deciding_kind_all_scatter_is_discounted() -> None:
    counts = {f"a{index}": 4 for index in range(12)} | {"single": 1}
    kinds = {name: name for name in counts}
    found = scatters(clouds(counts, kinds=kinds))
    assert nested_kinds(found, "") == nested_kinds(found, "a3") == kinds.keys() - {"single"}
    queries = clouds({"query": 5}, seed=7).vectors
    mixed, plain = clouds(counts, kinds=kinds), clouds(counts)
    np.testing.assert_allclose(Calibrated(mixed).cosines(queries), Calibrated(plain).cosines(queries), atol=1e-6)
    assert not np.allclose(Calibrated(mixed).cosines(queries), Centroid(mixed).cosines(queries), atol=1e-3)


def test_scatter_is_sum_of_squares_within_adapters() -> None:
    examples = categories()
    for kind, found in scatters(examples).items():
        parts = [
            examples.vectors[examples.rows_of(index)].astype(np.float64)
            for index, one in enumerate(examples.kinds)
            if one == kind
        ]
        assert found.freedom == sum(len(part) - 1 for part in parts)
        assert found.squares == pytest.approx(sum(((part - part.mean(0)) ** 2).sum() for part in parts), rel=1e-5)


def test_number_of_fitted_examples_is_bounded() -> None:
    examples = clouds({f"a{index}": 20 for index in range(1000)}, dim=48)
    found = residuals(examples, frozenset({""}))
    assert len(found.vectors) <= FITTED_EXAMPLES
    assert found.freedom == len(found.vectors) - len(np.unique(examples.owners[found.positions >= 0]))
    row = int(np.flatnonzero(found.positions >= 0)[7])
    mean = examples.vectors[examples.rows_of(int(examples.owners[row]))[: found.counts[found.positions[row]]]].mean(
        axis=0
    )
    np.testing.assert_allclose(found.vectors[found.positions[row]], examples.vectors[row] - mean, atol=1e-6)
    fitted = Calibrated(examples)
    assert (fitted.cosines(examples.vectors).argmax(axis=1) == examples.owners).mean() > 0.9
    assert fitted.left_out(examples.testable(20)).shape == (20, 1000)


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_no_adapters_give_no_similarities(strategy: RetrievalStrategy) -> None:
    empty = ExampleSet((), (), np.zeros((0, 8), np.float32), np.zeros(0, np.int64))
    assert Similarities(strategy, empty).of(queries(8, 3)).shape == (3, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(1, 12))
def test_top_k_is_prefix_of_full_ranking(steps: list[int], top_k: int) -> None:
    similarities = np.array([[step * 0.7e-6 for step in steps], [step * 0.1 for step in steps]])
    order = ranking(similarities)
    assert sorted(order[0]) == list(range(len(steps)))
    np.testing.assert_array_equal(ranking(similarities, top_k), order[:, :top_k])
    assert order[1].tolist() == sorted(range(len(steps)), key=lambda column: (-steps[column], column))
