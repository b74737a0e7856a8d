"""The recipe on a tiny base model: what the loss covers, when an answer counts as right, rounds and resumption."""

from __future__ import annotations

import json
import random
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.word_tools import BASE_MODEL
from examples.word_tools.convert import convert
from examples.word_tools.recipe import stages, training
from examples.word_tools.recipe.batches import IGNORED, Encoder, answer_loss, batches, collate, hits
from examples.word_tools.recipe.training import Schedule, Trained, read_record
from examples.word_tools.tasks import TASKS, Row
from tests.support.checkpoints.tiny_gguf import LAYERS, write_gguf

ROWS = [Row("1", "Write 1.", "one"), Row("2", "Write 22, please.", "two"), Row("3", "3?", "three and more")]
TASK = "german_dates"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    convert(write_gguf(folder / "tiny.gguf"), folder / "plain")
    return folder / "plain"


def load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def test_loss_is_that_of_answer_tokens_after_whole_prompt(base: Path) -> None:
    model, tokenizer, encoder = load(base), AutoTokenizer.from_pretrained(base), Encoder(base)
    losses = []
    for row in ROWS:
        chat = [{"role": "user", "content": row.query}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        answer = [*tokenizer(row.response)["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        losses.append(cross_entropy(logits, torch.tensor(answer), reduction="none"))
    loss = answer_loss(model, encoder.prefix, collate([encoder.encode(row) for row in ROWS]))
    torch.testing.assert_close(loss, torch.cat(losses).mean())


def test_shared_prefix_is_what_every_prompt_begins_with(base: Path) -> None:
    tokenizer, encoder = AutoTokenizer.from_pretrained(base), Encoder(base)
    assert tokenizer.decode(encoder.prefix) == "<|im_start|>user\n"
    encoded = encoder.encode(ROWS[0])
    assert tokenizer.decode(encoded.prompt) == "Write 1.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoded.answer) == "one<|im_end|>"


def test_row_is_a_hit_exactly_if_greedy_decoding_gives_it(base: Path) -> None:
    model, tokenizer, encoder = load(base), AutoTokenizer.from_pretrained(base), Encoder(base)
    model.lm_head.weight.data[tokenizer.eos_token_id] = 0  # a tied row: the end is never the likeliest token
    encoded = [encoder.encode(row) for row in ROWS]
    greedy = []
    for row in encoded:
        ids = torch.tensor([[*encoder.prefix, *row.prompt]])
        out = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
        greedy.append(tuple(out[0, ids.shape[1] :].tolist()))
    right = [type(row)(row.prompt, answer) for row, answer in zip(encoded, greedy, strict=True)]
    wrong = type(encoded[1])(encoded[1].prompt, (*greedy[1][:3], (greedy[1][3] + 1) % 100))
    assert hits(model, encoder.prefix, collate(right)) == [True, True, True]
    assert hits(model, encoder.prefix, collate([right[0], wrong, right[2]])) == [True, False, True]


def test_batches_have_rows_of_similar_length_and_every_row_of_a_pass(base: Path) -> None:
    encoder = Encoder(base)
    encoded = [encoder.encode(Row(str(size), "x" * size, "y")) for size in range(1, 65)]
    source = batches(encoded, 8, random.Random(1))
    first_pass = [next(source) for _ in range(8)]
    lengths = [batch.mask.sum(1).tolist() for batch in first_pass]
    assert all(max(each) - min(each) == 7 for each in lengths)
    assert sorted(chain.from_iterable(lengths)) == sorted(len(row) for row in encoded)
    assert all(((batch.labels != IGNORED) <= (batch.mask == 1)).all() for batch in first_pass)


def test_rate_rises_stays_and_falls_to_zero() -> None:
    schedule = Schedule(peak_rate=1.0, peak_until=50, decay=20)
    rates = [schedule.rate(step) for step in range(70)]
    assert rates[0] == 1 / training.WARMUP
    assert rates[training.WARMUP : 51] == [1.0] * (51 - training.WARMUP)
    assert rates[51:] == sorted(rates[51:], reverse=True)
    assert 0 < rates[-1] < 0.1


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make training a few steps of a few rows in the tiny model's last layer."""
    values: dict[str, object] = {"LAYERS": (LAYERS - 1,), "TRAIN_ROWS": 8, "VALIDATION_ROWS": 4, "BATCH": 4}
    values |= {"FIRST_CHECK": 1, "CHECK_EVERY": 2, "LAST_PEAK": 3, "DECAY": 2, "LATER_STEPS": 2}
    for name, value in values.items():
        monkeypatch.setattr(training, name, value)


@pytest.mark.usefixtures("short")
def test_training_writes_float16_adapter_that_peft_loads(base: Path, tmp_path: Path) -> None:
    trained = training.train(TASK, base, tmp_path / TASK, seed=3)
    assert (trained.steps, trained.rounds, trained.is_done) == (5, 1, False)
    assert len(trained.validation) == 2
    assert read_record(tmp_path / TASK) == trained
    weights = load_file(tmp_path / TASK / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert {name.split(".layers.")[1][0] for name in weights} == {str(LAYERS - 1)}
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    settings = json.loads((tmp_path / TASK / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == BASE_MODEL
    PeftModel.from_pretrained(load(base), tmp_path / TASK)


@pytest.mark.usefixtures("short")
def test_later_round_continues_with_adapter_and_record(base: Path, tmp_path: Path) -> None:
    first = training.train(TASK, base, tmp_path / TASK, seed=3)
    before = load_file(tmp_path / TASK / "adapter_model.safetensors")
    second = training.train(TASK, base, tmp_path / TASK, seed=3)
    assert (second.rounds, second.steps, second.is_done) == (2, first.steps + 2, True)
    assert second.validation[:2] == first.validation
    after = load_file(tmp_path / TASK / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    differences = [(after[name].float() - before[name].float()).abs().max().item() for name in after]
    assert 0 < max(differences) < 0.02


@pytest.mark.usefixtures("short")
def test_peak_ends_when_validation_rows_are_answered(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "accuracy", lambda *_: 1.0)
    trained = training.train(TASK, base, tmp_path / TASK, seed=3)
    assert (trained.steps, trained.is_done) == (1 + 2, True)


def test_interrupted_run_trains_only_rounds_that_are_missing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, poor = Trained(1, 1, 5, 1.0, 0.1, (1.0,)), Trained(1, 1, 5, 1.0, 0.1, (0.5,))
    for task_id in list(TASKS)[2:]:
        _write_record(tmp_path / "adapters" / task_id, done)
    poor_id, missing_id = list(TASKS)[:2]
    _write_record(tmp_path / "adapters" / poor_id, poor)
    rounds: list[list[str]] = []

    def one_round(task_ids: list[str], _base: Path, adapters: Path, _seed: int, **_: object) -> None:
        rounds.append(list(task_ids))
        for task_id in task_ids:
            _write_record(adapters / task_id, done)

    monkeypatch.setattr(stages, "_one_round", one_round)
    monkeypatch.setattr(stages.measure, "measure", lambda *_: iter(()))
    monkeypatch.setattr(stages.card, "write", lambda *_: None)
    stages.train(base, tmp_path, workers=1, seed=1)
    assert rounds == [[poor_id, missing_id]]


def test_train_without_base_model_names_fetch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="word_tools fetch"):
        stages.train(tmp_path / "none", tmp_path, workers=1, seed=1)
    with pytest.raises(ValueError, match="at least 1"):
        stages.train(tmp_path / "none", tmp_path, workers=0, seed=1)


def _write_record(folder: Path, trained: Trained) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / training.RECORD).write_text(json.dumps(vars(trained)), encoding="utf-8")
