"""`loraretriever retrieval evaluate`: figures, files, and the command itself."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.contract.adapter import Adapter
from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import Prompt
from infra.contract.retrieval import Match, RetrievalStrategy, Selection, Weighting
from orchestrator.cli.main import run
from retrieval_service.catalogue.points import AdapterVectors
from retrieval_service.evaluation.confusion_matrix import draw_confusion_matrix
from retrieval_service.evaluation.labelled_prompts import outcome_of, read_labelled_prompts
from retrieval_service.evaluation.leave_one_out import Trial, few_examples, leave_one_out
from retrieval_service.evaluation.outcomes import Outcome, as_json, compute_scores
from retrieval_service.evaluation.vector_files import read_npz
from tests.support.harness.example_sets import clouds
from tests.support.harness.images import png_part
from tests.support.servers.retrieval_server import DIM, retrieval_service


def one(truth: str, rank: int | None, first: str, weight: float) -> Outcome:
    return Outcome(truth, rank, (first, "other"), (weight, 1 - weight))


OUTCOMES = [one("a", 1, "a", 0.95), one("a", 2, "b", 0.93), one("b", 4, "a", 0.55), one("c", None, "a", 0.51)]


def test_figures_are_shares_of_prompts() -> None:
    found = compute_scores(OUTCOMES)
    assert (found.at_1, found.at_3, found.at_5) == (0.25, 0.5, 0.75)
    assert found.mrr == pytest.approx((1 + 1 / 2 + 1 / 4) / 4)
    assert found.confusion == {("a", "a"): 1, ("a", "b"): 1, ("b", "a"): 1, ("c", "a"): 1}
    assert found.confused == [("a", "b", 1), ("b", "a", 1), ("c", "a", 1)]


def test_calibration_error_compares_weights_with_how_often_they_were_right() -> None:
    found = compute_scores(OUTCOMES)
    assert found.ece == pytest.approx(0.5 * abs(0.94 - 0.5) + 0.5 * abs(0.53 - 0.0))
    assert [(bin_.count, bin_.right) for bin_ in found.bins if bin_.count] == [(2, 0.0), (2, 0.5)]


def test_json_has_confusion_matrix_by_label() -> None:
    content = as_json(compute_scores([*OUTCOMES, Outcome("c", None, (), ())]))
    assert content["confusion"]["labels"] == ["", "a", "b", "c"]
    assert content["confusion"]["counts"] == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]]


def test_equal_similarities_are_ranked_by_id() -> None:
    trial = Trial(("a", "b", "c"), np.array([[0.5, 0.5, 0.5], [0.1, 0.9, 0.9]]), np.array([1, 2]))
    found = trial.outcomes(2, Weighting.UNIFORM, 1.0)
    assert [each.rank for each in found] == [2, 2]
    assert [each.retrieved for each in found] == [("a", "b"), ("b", "c")]


def test_best_temperature_is_one_that_answers_came_from() -> None:
    generator = np.random.default_rng(0)
    similarities = generator.uniform(-1, 1, (4000, 5))
    noise = generator.gumbel(size=similarities.shape)
    truth = (similarities / 0.2 + noise).argmax(axis=1)  # drawn from softmax(s / 0.2)
    assert Trial(tuple("abcde"), similarities, truth).best_temperature() == pytest.approx(0.2, rel=0.1)


def test_leave_one_out_asks_every_example_that_has_others() -> None:
    examples = clouds({"a": 1, "b": 4, "c": 5})
    for strategy in RetrievalStrategy:
        trial = leave_one_out(strategy, examples)
        assert trial.similarities.shape == (9, 3)
        assert trial.truth.tolist() == [1] * 4 + [2] * 5


@pytest.mark.parametrize("counts", [{"a": 9}, {"a": 1, "b": 1}])
def test_nothing_to_tell_apart_is_said(counts: dict[str, int]) -> None:
    with pytest.raises(InvalidArgumentError, match="two adapters with two examples"):
        leave_one_out(RetrievalStrategy.CENTROID, clouds(counts))


def test_few_examples_are_drawn_for_all_strategies_alike_and_others_ask() -> None:
    examples = clouds({"a": 5, "b": 7})
    trials = few_examples(list(RetrievalStrategy), examples, 3, seed=1)
    for trial in trials.values():
        np.testing.assert_array_equal(trial.truth, trials[RetrievalStrategy.CENTROID].truth)
        assert len(trial.truth) == 10 * (2 + 4)
    again = few_examples([RetrievalStrategy.CALIBRATED], examples, 3, seed=1)[RetrievalStrategy.CALIBRATED]
    np.testing.assert_array_equal(again.similarities, trials[RetrievalStrategy.CALIBRATED].similarities)
    with pytest.raises(InvalidArgumentError, match="below 7, the most examples"):
        few_examples([RetrievalStrategy.CENTROID], examples, 7, seed=1)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({}, "holds no array"),
        ({"a": np.ones((2, 4)), "b": np.ones((2, 3))}, r"mixes dimensions \[3, 4\]"),
        ({"a": np.array([[1, np.nan]])}, "array 'a' .* NaN"),
        ({"a": np.ones((2, 4)), "b": np.zeros((2, 4))}, "array 'b' .* zeros"),
        ({"a": np.array(["x"])}, "array 'a' .* give numbers"),
        ({"a": np.ones((2, 2, 2))}, "give numbers"),
        ({"a": np.ones((0, 4))}, "give numbers"),
        ({"a": np.array([{}], dtype=object)}, r"not a \.npz file of numbers"),
    ],
)
def test_file_of_vectors_that_cannot_be_used_is_named(tmp_path: Path, arrays: dict[str, Any], problem: str) -> None:
    file = tmp_path / "vectors.npz"
    np.savez(file, **arrays)
    with pytest.raises(InvalidArgumentError, match=problem):
        read_npz(file)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_file_of_vectors_is_named(tmp_path: Path, write: Any) -> None:
    file = tmp_path / "vectors.npz"
    write(file, a=np.random.default_rng(0).normal(size=(3, 8)))
    whole = file.read_bytes()
    refused: list[str] = []
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5B]) + whole[place + 1 :])
        try:
            read_npz(file)
        except InvalidArgumentError as error:
            refused.append(str(error))
    assert len(refused) > len(whole) // 4
    assert all("vectors.npz" in one for one in refused)


def test_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="there is no file"):
        read_npz(tmp_path / "nowhere.npz")
    for content in (b"", b"words", b"PK\x03\x04broken"):
        (tmp_path / "file.npz").write_bytes(content)
        with pytest.raises(InvalidArgumentError, match=r"not a \.npz file of numbers"):
            read_npz(tmp_path / "file.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(InvalidArgumentError, match=r"not a \.npz file of numbers"):
        read_npz(tmp_path / "one.npy")


def test_labelled_rows_are_read_and_bad_ones_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "screen.png").write_bytes(png_part(30, 30).data)
    rows = [
        {"query": "<image>Buy shoes", "images": ["screen.png", "gone.png"], "adapter": "shop"},
        {"query": "no adapter"},
        {"query": "gone", "images": ["gone.png"], "adapter": "shop"},
        {"query": "", "adapter": "shop"},
        {"query": "x", "adapter": "../shop"},
        [],
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\nnot json\n", encoding="utf-8")
    found = read_labelled_prompts([str(file)], max_images=1)
    assert [(row.truth, row.prompt.user_text, len(row.prompt.images)) for row in found.rows] == [
        ("shop", "Buy shoes", 1)
    ]
    assert [problem.split(": ")[0] for problem in found.problems] == [f"{file}:{line}" for line in range(2, 8)]
    assert len(read_labelled_prompts([f"mail={file}"], max_images=0).rows) == 4
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_labelled_prompts([str(tmp_path / "none.jsonl")], 2)
    file.write_text("[]\n", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match=r"no row .* could be read; the first"):
        read_labelled_prompts([str(file)], 2)


def test_answer_of_service_becomes_outcome() -> None:
    matches = tuple(Match(Adapter(name, "base", ""), 0.5, 0.25) for name in "abcd")
    best = Selection(tuple(Match(Adapter(name, "base", ""), 0.5, 0.5) for name in "ab"))
    assert outcome_of("c", Selection(matches), best) == Outcome("c", 3, ("a", "b"), (0.5, 0.5))
    assert outcome_of("z", Selection(matches), best).rank is None
    assert outcome_of("z", Selection(), Selection()) == Outcome("z", None, (), ())


def test_confusion_matrix_is_drawn(tmp_path: Path) -> None:
    found = compute_scores([*OUTCOMES, one("a&<b", 1, "a&<b", 0.5)])
    draw_confusion_matrix(found, tmp_path / "matrix.svg")
    words = [element.text for element in ET.parse(tmp_path / "matrix.svg").iter() if element.tag.endswith("text")]
    assert words.count("a&<b") == 2
    assert words.count("1") == 5
    draw_confusion_matrix(found, tmp_path / "matrix.png")
    with Image.open(tmp_path / "matrix.png") as picture:
        assert picture.width == picture.height
        assert (8, 48, 107) in [colour for _, colour in picture.getcolors(1 << 16) or []]
    for wrong in ("matrix.gif", "nowhere/matrix.svg"):
        with pytest.raises(InvalidArgumentError, match="cannot"):
            draw_confusion_matrix(found, tmp_path / wrong)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    examples = clouds({f"app{index}": 8 for index in range(4)}, dim=20)
    arrays = {name: examples.vectors[examples.rows_of(index)] for index, name in enumerate(examples.ids)}
    np.savez(tmp_path / "vectors.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path / "vectors.npz"


def test_one_strategy_prints_its_figures_at_top(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["retrieval", "evaluate", "--vectors", str(npz), "--strategy", "calibrated", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    trial = leave_one_out(RetrievalStrategy.CALIBRATED, read_npz(npz))
    expected = compute_scores(trial.outcomes(3, Weighting.SOFTMAX, 0.05))
    assert {name: content[name] for name in ("at_1", "at_3", "at_5", "mrr", "ece")} == {
        "at_1": expected.at_1,
        "at_3": expected.at_3,
        "at_5": expected.at_5,
        "mrr": expected.mrr,
        "ece": expected.ece,
    }
    assert content["queries"] == 32
    assert math.isfinite(content["best_temperature"])


def test_several_strategies_print_figure_each(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["retrieval", "evaluate", "--vectors", str(npz), "--json", "--weighting", "uniform"]
    assert run([*command, "--strategy", "all", "--weighting", "softmax"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content) == [name.value for name in RetrievalStrategy]
    assert set(content["centroid"]["weightings"]) == {"uniform", "softmax"}
    assert content["centroid"]["ece"] == content["centroid"]["weightings"]["uniform"]["ece"]
    assert run([*command, "--few", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["queries"] == 10 * 4 * 6


def test_people_get_tables_and_picture(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "confusion.svg"
    assert run(["retrieval", "evaluate", "--vectors", str(npz), "--confusion", str(picture)]) == 0
    shown = capsys.readouterr().out
    for words in ("centroid", "@1", "MRR", "most confused", "retrieved first", "reliability"):
        assert words in shown
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--vectors", "nowhere.npz"], "there is no file nowhere.npz"),
        (["--vectors", "x.npz", "--data", "y.jsonl"], "not both"),
        (["--vectors", "x.npz", "--kind", "app"], "--kind filters the catalogue's examples or --data"),
        (["--vectors", "x.npz", "--base-model", "m"], "--base-model filters the catalogue's examples or --data"),
        (["--data", "y.jsonl", "--few", "3"], "--few goes with the catalogue's examples or --vectors"),
        (["--strategy", "best"], "'best' is not a valid RetrievalStrategy"),
        (["--weighting", "heavy"], "'heavy' is not one of"),
        (["--top-k", "0"], "greater than or equal to 1"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_line(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["retrieval", "evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert len(error.strip().splitlines()) == 1


def test_without_service_remedy_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["retrieval", "evaluate", "--retrieval-target", "127.0.0.1:9"]) == 1
    assert "does not answer at 127.0.0.1:9; start it with" in capsys.readouterr().err


def test_catalogue_of_running_service_is_measured(
    tmp_path: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same figures as from a file of the same vectors."""
    examples = clouds({f"app{index}": 8 for index in range(4)}, dim=DIM)
    arrays = {name: examples.vectors[examples.rows_of(index)] for index, name in enumerate(examples.ids)}
    np.savez(npz, **arrays)  # type: ignore[arg-type]
    assert run(["retrieval", "evaluate", "--vectors", str(npz), "--strategy", "calibrated", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    with retrieval_service(tmp_path / "qdrant") as service:
        command = ["retrieval", "evaluate", "--retrieval-target", service.address, "--strategy", "calibrated", "--json"]
        assert run(command) == 2
        assert "no matching adapter in the catalogue" in capsys.readouterr().err
        for name, vectors in arrays.items():
            service.catalogue.create(Adapter(name, "base", "", kind="app"), AdapterVectors.of(list(vectors), DIM))
        service.catalogue.create(Adapter("ready", "base", "", kind="other"), AdapterVectors.of([vectors[0]], DIM))
        assert run([*command, "--kind", "app"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert {name: content[name] for name in ("at_1", "mrr")} == {name: expected[name] for name in ("at_1", "mrr")}
        assert run(command) == 0
        assert json.loads(capsys.readouterr().out)["adapters_with_one_vector"] == ["ready"]
        service.catalogue.create(Adapter("foreign", "other", ""), AdapterVectors.of([vectors[0]], DIM))
        assert run(command) == 2
        assert "choose one with --base-model: base, other" in capsys.readouterr().err


def test_labelled_prompts_are_asked_of_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("red shoes", "shop"), ("blue shoes", "shop"), ("send mail", "mail"), ("read mail shoes", "nobody")]
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"query": text, "adapter": name}) for text, name in rows]
    file.write_text("\n".join([*lines, "{"]), encoding="utf-8")
    with retrieval_service(tmp_path / "qdrant") as service:
        for name, texts in (("shop", ["red shoes", "green shoes"]), ("mail", ["send mail", "read mail"])):
            vectors = service.embedder.embed([Prompt.of(text) for text in texts])
            service.catalogue.create(Adapter(name, "base", ""), AdapterVectors.of(list(vectors), DIM))
        command = ["retrieval", "evaluate", "--data", str(file), "--retrieval-target", service.address, "--json"]
        assert run([*command, "--strategy", "nearest_examples", "--top-k", "1"]) == 0
        printed = capsys.readouterr()
        content = json.loads(printed.out)
        assert (content["queries"], content["at_1"], content["mrr"]) == (4, 0.75, 0.75)
        assert [(each["adapter"], each["count"]) for each in content["confused"]] == [("nobody", 1)]
        assert f"left out {file}:5" in printed.err
