"""The command `loraretriever retrieval evaluate`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from infra.contract.adapter import Adapter
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalStrategy, Weighting
from orchestrator.cli.main import run
from retrieval_service.catalogue.points import AdapterVectors
from retrieval_service.evaluation.leave_one_out import leave_one_out
from retrieval_service.evaluation.outcomes import compute_scores
from retrieval_service.evaluation.vector_files import read_npz
from tests.support.harness.example_sets import clouds
from tests.support.servers.retrieval_server import DIM, retrieval_service


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    examples = clouds({f"app{index}": 8 for index in range(4)}, dim=20)
    arrays = {name: examples.vectors[examples.rows_of(index)] for index, name in enumerate(examples.ids)}
    np.savez(tmp_path / "vectors.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path / "vectors.npz"


def test_one_strategy_prints_its_scores_at_top_level(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_several_strategies_print_one_object_each(npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["retrieval", "evaluate", "--vectors", str(npz), "--json", "--weighting", "uniform"]
    assert run([*command, "--strategy", "all", "--weighting", "softmax"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content) == [name.value for name in RetrievalStrategy]
    assert set(content["centroid"]["weightings"]) == {"uniform", "softmax"}
    assert content["centroid"]["ece"] == content["centroid"]["weightings"]["uniform"]["ece"]
    assert run([*command, "--few", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["queries"] == 10 * 4 * 6


def test_tables_and_confusion_matrix_are_written_for_people(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        (["--kinds", "x.json"], "kinds: goes with --vectors"),
        (["--vectors", "x.npz", "--examples", "3,x"], "examples: '3,x' is not a list of numbers"),
        (["--data", "y.jsonl", "--open-set"], "do not go with --data"),
        (["--vectors", "x.npz", "--base-model", "m"], "--base-model filters the catalogue's examples or --data"),
        (["--data", "y.jsonl", "--few", "3"], "--few goes with the catalogue's examples or --vectors"),
        (["--strategy", "best"], "'best' is not a valid RetrievalStrategy"),
        (["--weighting", "heavy"], "'heavy' is not one of"),
        (["--top-k", "0"], "greater than or equal to 1"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
    ],
)
def test_invalid_options_are_reported_in_one_line(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["retrieval", "evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert len(error.strip().splitlines()) == 1


def test_missing_service_error_names_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["retrieval", "evaluate", "--retrieval-target", "127.0.0.1:9"]) == 1
    assert "does not answer at 127.0.0.1:9; start it with" in capsys.readouterr().err


def test_catalogue_of_running_service_is_evaluated(
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


def test_labelled_prompts_are_sent_to_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
