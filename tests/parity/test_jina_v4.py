"""The native jina-v4 loader against an independent float64 implementation, on tiny random folders."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infra.contract.errors import CheckpointError, ConfigurationError, InternalError, InvalidArgumentError
from infra.contract.prompt import ImagePart, Message, Prompt, Role, TextPart
from retrieval_service.embedders.jina_v4 import JinaV4Embedder, JinaV4Options, Task, TextPrefix
from retrieval_service.embedders.late_fusion import LateFusion
from tests.parity.jina_v4_reference import ReferenceJina
from tests.support.checkpoints.jina_v4 import LINEARS, TASKS, TinyJina, tiny_jina

MAX_PIXELS = 100_000
TEXTS = ("a", "Tap the heart, else the bag.", "naïve déjà vu 東京 🙂", "x " * 90, "<|image_pad|> is only text here")
SIZES = ((140, 140), (300, 90), (57, 211), (20, 30), (900, 700))


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)


def png(image: Image.Image) -> ImagePart:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return ImagePart(buffer.getvalue(), "image/png")


@pytest.fixture(scope="module")
def tiny() -> TinyJina:
    return tiny_jina()


@pytest.fixture(scope="module")
def folder(tiny: TinyJina, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("jina"))


@pytest.fixture(scope="module")
def embedder(folder: Path) -> JinaV4Embedder:
    return JinaV4Embedder(folder, JinaV4Options())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("prefix", TextPrefix)
def test_texts_equal_reference_for_each_task_and_prefix(
    tiny: TinyJina, folder: Path, task: str, prefix: TextPrefix
) -> None:
    embedder = JinaV4Embedder(folder, JinaV4Options(task=Task(task), prefix=prefix))
    tiny.tokenizer.encode_special_tokens = True
    spoken = "Passage: " if prefix is TextPrefix.PASSAGE and task != "text-matching" else "Query: "
    expected = np.stack([ReferenceJina(tiny, task, MAX_PIXELS).text(text, spoken).numpy() for text in TEXTS])
    tiny.tokenizer.encode_special_tokens = False
    np.testing.assert_allclose(embedder.embed_texts(TEXTS), expected, atol=2e-6)


@pytest.mark.parametrize("task", TASKS)
def test_images_of_any_shape_equal_reference_for_each_task(tiny: TinyJina, folder: Path, task: str) -> None:
    embedder = JinaV4Embedder(folder, JinaV4Options(task=Task(task), batch_size=3))
    reference = ReferenceJina(tiny, task, MAX_PIXELS)
    images = [picture(size, seed) for seed, size in enumerate(SIZES)]
    expected = np.stack([reference.image(image).numpy() for image in images])
    np.testing.assert_allclose(embedder.embed_images(images), expected, atol=2e-5)


def test_reference_distinguishes_tasks_texts_and_images(tiny: TinyJina) -> None:
    """What the comparisons above rest on: a wrong task, window or position would show."""
    reference, other = ReferenceJina(tiny, "retrieval", MAX_PIXELS), ReferenceJina(tiny, "code", MAX_PIXELS)
    image = picture((140, 140))
    assert float(reference.text("a") @ other.text("a")) < 0.99
    assert float(reference.image(image) @ other.image(image)) < 0.99
    assert float(reference.image(image) @ reference.image(image.rotate(90))) < 0.9999


@pytest.mark.parametrize("dim", [8, 16])
def test_truncated_vector_is_normalised_prefix(
    tiny: TinyJina, folder: Path, embedder: JinaV4Embedder, dim: int
) -> None:
    short = JinaV4Embedder(folder, JinaV4Options(dim=dim))
    reference = ReferenceJina(tiny, "retrieval", MAX_PIXELS)
    np.testing.assert_allclose(short.embed_texts(["hello"])[0], reference.text("hello", dim=dim).numpy(), atol=2e-6)
    image = picture((140, 140))
    np.testing.assert_allclose(short.embed_images([image])[0], reference.image(image, dim=dim).numpy(), atol=2e-5)
    start = embedder.embed_texts(["hello"])[0][:dim]
    np.testing.assert_allclose(short.embed_texts(["hello"])[0], start / np.linalg.norm(start), atol=1e-6)


def test_prompt_vector_is_weighted_sum_of_text_and_first_images(tiny: TinyJina, folder: Path) -> None:
    late_fusion = LateFusion(text_weight=0.6, image_weight=0.5, max_images=2)
    embedder = JinaV4Embedder(folder, JinaV4Options(late_fusion=late_fusion))
    reference = ReferenceJina(tiny, "retrieval", MAX_PIXELS)
    images = [picture((140, 140), seed) for seed in range(3)]
    text, first, second = (v.numpy() for v in (reference.text("go"), *map(reference.image, images[:2])))
    expected = 0.6 * text + 0.5 * (first + second) / 2
    both = Prompt.of("<image>\n<image>go", [png(image) for image in images])
    np.testing.assert_allclose(embedder.embed([both])[0], expected / np.linalg.norm(expected), atol=2e-5)
    of_images = (first + second) / np.linalg.norm(first + second)
    image_only = Prompt.of("<image>", [png(image) for image in images])
    vectors = embedder.embed([Prompt.of("go"), image_only, both])
    np.testing.assert_allclose(vectors[0], text, atol=2e-5)
    np.testing.assert_allclose(vectors[1], of_images, atol=2e-5)
    np.testing.assert_allclose(vectors[2], expected / np.linalg.norm(expected), atol=2e-5)


def test_rslora_and_patterns_scale_like_peft(tmp_path: Path) -> None:
    tiny = tiny_jina(3, rank=4, alpha=5, use_rslora=True)
    embedder = JinaV4Embedder(tiny.write(tmp_path / "rs"), JinaV4Options())
    expected = ReferenceJina(tiny, "retrieval", MAX_PIXELS).text("hi").numpy()
    np.testing.assert_allclose(embedder.embed_texts(["hi"])[0], expected, atol=2e-6)
    tiny.adapter_config |= {"use_rslora": False, "lora_alpha": 8, "alpha_pattern": {"q_proj": 4, r"layers\.1\..*": 8}}
    vector = JinaV4Embedder(tiny.write(tmp_path / "pattern"), JinaV4Options()).embed_texts(["hi"])[0]
    halved = {key: value / 2 if "q_proj.lora_B" in key else value for key, value in tiny.adapter.items()}
    plain = TinyJina(tiny.config, tiny.base, halved, {**tiny.adapter_config, "alpha_pattern": {}}, tiny.tokenizer)
    np.testing.assert_allclose(vector, ReferenceJina(plain, "retrieval", 1).text("hi").numpy(), atol=2e-6)


def test_both_key_spellings_and_shards_give_same_vectors(
    tiny: TinyJina, embedder: JinaV4Embedder, tmp_path: Path
) -> None:
    image = picture((140, 140))
    # PEFT strips the adapter's name when it saves; tools that save by themselves may not.
    named = {
        key.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."): value
        for key, value in tiny.adapter.items()
    }
    kept = TinyJina(tiny.config, tiny.base, named, tiny.adapter_config, tiny.tokenizer)
    for name, content, shards in (("new", tiny.newer_spelling(), 1), ("sharded", tiny, 3), ("named", kept, 1)):
        other = JinaV4Embedder(content.write(tmp_path / name, shards=shards), JinaV4Options())
        np.testing.assert_array_equal(other.embed_texts(["hi"]), embedder.embed_texts(["hi"]))
        np.testing.assert_array_equal(other.embed_images([image]), embedder.embed_images([image]))
        assert other.fingerprint == embedder.fingerprint


def test_late_interaction_projector_is_ignored(tiny: TinyJina, embedder: JinaV4Embedder, tmp_path: Path) -> None:
    base = {key: value for key, value in tiny.base.items() if not key.startswith("multi_vector_projector")}
    adapter = {key: value for key, value in tiny.adapter.items() if "multi_vector_projector" not in key}
    assert len(base) < len(tiny.base)
    assert len(adapter) < len(tiny.adapter)
    without = TinyJina(tiny.config, base, adapter, tiny.adapter_config, tiny.tokenizer).write(tmp_path)
    other = JinaV4Embedder(without, JinaV4Options())
    np.testing.assert_array_equal(other.embed_texts(TEXTS), embedder.embed_texts(TEXTS))
    assert other.fingerprint == embedder.fingerprint


def test_texts_are_truncated_at_limit(folder: Path, embedder: JinaV4Embedder) -> None:
    short = JinaV4Embedder(folder, JinaV4Options(max_text_tokens=12, batch_tokens=20))
    left = 12 - len("Query: ")
    expected = embedder.embed_texts(["abcdefghij"[:left], "ab", "x"])
    np.testing.assert_allclose(short.embed_texts(["abcdefghij", "ab", "x"]), expected, atol=2e-6)


def test_vector_does_not_depend_on_what_it_is_batched_with(embedder: JinaV4Embedder) -> None:
    prompts = [Prompt.of(text, [png(picture(SIZES[i]))] if i % 2 else []) for i, text in enumerate(TEXTS)]
    alone = np.concatenate([embedder.embed([prompt]) for prompt in prompts])
    np.testing.assert_allclose(embedder.embed(prompts), alone, atol=2e-6)
    np.testing.assert_allclose(embedder.embed(prompts[::-1])[::-1], alone, atol=2e-6)
    assert embedder.embed([]).shape == (0, embedder.dim)


def test_fingerprint_names_weights_and_settings(tiny: TinyJina, folder: Path, tmp_path: Path) -> None:
    def fingerprint(where: Path, options: JinaV4Options) -> str:
        return JinaV4Embedder(where, options).fingerprint

    same = fingerprint(folder, JinaV4Options())
    assert same == fingerprint(folder, JinaV4Options(batch_size=1, dtype="float32"))
    base = {**tiny.base, "model.norm.weight": tiny.base["model.norm.weight"] + 1e-3}
    retrained = TinyJina(tiny.config, base, tiny.adapter, tiny.adapter_config, tiny.tokenizer)
    others = {
        fingerprint(folder, JinaV4Options(task=Task.CODE)),
        fingerprint(folder, JinaV4Options(dim=8)),
        fingerprint(folder, JinaV4Options(prefix=TextPrefix.PASSAGE)),
        fingerprint(folder, JinaV4Options(max_image_pixels=5000)),
        fingerprint(folder, JinaV4Options(late_fusion=LateFusion(0.5, 0.5))),
        fingerprint(retrained.write(tmp_path), JinaV4Options()),
    }
    assert same not in others
    assert len(others) == 6


def test_bfloat16_is_close_to_float32(folder: Path, embedder: JinaV4Embedder) -> None:
    half = JinaV4Embedder(folder, JinaV4Options(dtype="bfloat16"))
    cosines = (half.embed_texts(TEXTS) * embedder.embed_texts(TEXTS)).sum(-1)
    assert cosines.min() > 0.999


@pytest.mark.gpu
def test_gpu_and_cpu_vectors_agree(folder: Path, embedder: JinaV4Embedder) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = [picture(size) for size in SIZES]
    for dtype, tolerance in (("float32", 1e-3), ("bfloat16", 3e-2)):
        on_gpu = JinaV4Embedder(folder, JinaV4Options(device="cuda", dtype=dtype))
        np.testing.assert_allclose(on_gpu.embed_texts(TEXTS), embedder.embed_texts(TEXTS), atol=tolerance)
        np.testing.assert_allclose(on_gpu.embed_images(images), embedder.embed_images(images), atol=tolerance)


def test_overflow_is_error(tiny: TinyJina, tmp_path: Path) -> None:
    base = {**tiny.base, "model.norm.weight": tiny.base["model.norm.weight"] * 1e5}
    TinyJina(tiny.config, base, tiny.adapter, tiny.adapter_config, tiny.tokenizer).write(tmp_path)
    with pytest.raises(InternalError, match="overflow; run it with --dtype bfloat16 or float32"):
        JinaV4Embedder(tmp_path, JinaV4Options(dtype="float16")).embed_texts(["hi"])


@pytest.mark.parametrize(
    ("key", "change", "named"),
    [
        ("model.norm.weight", None, "language_model.norm.weight is missing"),
        ("visual.merger.mlp.2.bias", None, "visual.merger.mlp.2.bias is missing"),
        ("model.layers.0.self_attn.q_proj.scale", torch.ones(1), "q_proj.scale is not a tensor of the model"),
        ("lonely.weight", torch.ones(1), "lonely.weight is not a tensor of the model"),
        ("model.layers.1.mlp.up_proj.weight", torch.ones(2, 2), "up_proj.weight has shape [2, 2], not [48, 32]"),
        ("model.language_model.norm.weight", torch.ones(32), "appears twice"),
    ],
)
def test_base_tensors_that_do_not_bind_are_refused_by_name(
    tiny: TinyJina, tmp_path: Path, key: str, change: torch.Tensor | None, named: str
) -> None:
    base = {name: tensor for name, tensor in tiny.base.items() if name != key}
    if change is not None:
        base[key] = change
    TinyJina(tiny.config, base, tiny.adapter, tiny.adapter_config, tiny.tokenizer).write(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        JinaV4Embedder(tmp_path, JinaV4Options())
    assert named in str(caught.value)


PREFIX = "base_model.model.model.language_model.layers"


@pytest.mark.parametrize(
    ("removed", "added", "named"),
    [
        ([f"{PREFIX}.0.mlp.up_proj.lora_B.code.weight"], {}, "up_proj.lora_B.code.weight is missing"),
        (
            [f"{PREFIX}.1.self_attn.q_proj.lora_{f}.{t}.weight" for f in "AB" for t in TASKS],
            {},
            "layers.1.self_attn.q_proj has no LoRA",
        ),
        (
            [f"{PREFIX}.0.{m}.lora_{f}.{t}.weight" for m in LINEARS for f in "AB" for t in TASKS],
            {},
            "layers.0.mlp.down_proj has no LoRA",
        ),
        ([], {f"{PREFIX}.7.mlp.up_proj.lora_A.code.weight": torch.ones(4, 32)}, "does not adapt a linear layer"),
        ([], {f"{PREFIX}.0.mlp.up_proj.lora_A.code.weight": torch.ones(3, 32)}, "has shape [3, 32], not [4, 32]"),
        ([], {f"{PREFIX}.0.mlp.up_proj.lora_magnitude_vector.code": torch.ones(3)}, "is not a LoRA factor"),
        ([], {"base_model.model.model.layers.0.mlp.up_proj.lora_A.code.weight": torch.ones(4, 32)}, "appears twice"),
    ],
)
def test_adapter_tensors_that_do_not_bind_are_refused_by_name(
    tiny: TinyJina, tmp_path: Path, removed: list[str], added: dict[str, torch.Tensor], named: str
) -> None:
    adapter = {key: tensor for key, tensor in tiny.adapter.items() if key not in removed} | added
    TinyJina(tiny.config, tiny.base, adapter, tiny.adapter_config, tiny.tokenizer).write(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        JinaV4Embedder(tmp_path, JinaV4Options())
    assert named in str(caught.value)


def test_adapter_without_task_names_those_it_has(tiny: TinyJina, tmp_path: Path) -> None:
    adapter = {key: tensor for key, tensor in tiny.adapter.items() if ".code." not in key}
    TinyJina(tiny.config, tiny.base, adapter, tiny.adapter_config, tiny.tokenizer).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no task 'code'; it has retrieval, text-matching"):
        JinaV4Embedder(tmp_path, JinaV4Options(task=Task.CODE))


@pytest.mark.parametrize("change", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}, {"r": 0}])
def test_adapters_of_other_kinds_are_refused(tiny: TinyJina, tmp_path: Path, change: dict[str, object]) -> None:
    config = {**tiny.adapter_config, **change}
    TinyJina(tiny.config, tiny.base, tiny.adapter, config, tiny.tokenizer).write(tmp_path)
    with pytest.raises(CheckpointError, match=next(iter(change))):
        JinaV4Embedder(tmp_path, JinaV4Options())


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "model.safetensors",
        "adapters/adapter_config.json",
        "adapters/adapter_model.safetensors",
    ],
)
def test_missing_or_truncated_file_is_named(tiny: TinyJina, tmp_path: Path, name: str) -> None:
    path = tiny.write(tmp_path) / name
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(CheckpointError, match=path.name):
        JinaV4Embedder(tmp_path, JinaV4Options())
    path.unlink()
    with pytest.raises(CheckpointError, match=r"is missing; download the model again"):
        JinaV4Embedder(tmp_path, JinaV4Options())


def test_missing_folder_is_named_with_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder .*nowhere'; download jina-embeddings-v4 .*--embedder-path"):
        JinaV4Embedder(tmp_path / "nowhere", JinaV4Options())


def test_missing_or_truncated_shard_is_named(tiny: TinyJina, tmp_path: Path) -> None:
    tiny.write(tmp_path, shards=3)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    promised = content["weight_map"] | {"model.more.weight": "model-00002-of-00003.safetensors"}
    index.write_text(json.dumps(content | {"weight_map": promised}))
    with pytest.raises(CheckpointError, match=r"model.more.weight"):
        JinaV4Embedder(tmp_path, JinaV4Options())
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'model-00002-of-00003.safetensors' is missing"):
        JinaV4Embedder(tmp_path, JinaV4Options())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (JinaV4Options(dim=7), "truncate_dim 7 is not one of this model's dimensions: 8, 16, 32"),
        (JinaV4Options(max_image_pixels=3000), "max_image_pixels 3000 is below"),
        (JinaV4Options(dtype="int8"), "dtype 'int8'"),
        (JinaV4Options(device="cuda:77"), "device 'cuda:77' is not available"),
    ],
)
def test_options_that_do_not_fit_are_configuration_errors(folder: Path, options: JinaV4Options, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        JinaV4Embedder(folder, options)
    assert named in str(caught.value)


def test_invalid_prompt_is_named_by_field_path(embedder: JinaV4Embedder) -> None:
    good, thin = Prompt.of("hi"), Prompt.of("x", [png(picture((1, 300)))])
    broken = Prompt((Message(Role.USER, (TextPart("x"), ImagePart(png(picture((90, 90))).data[:200]))),))
    for prompt, path in ((broken, "[1].messages[0].parts[1].image"), (thin, "[1].messages[0].parts[0].image")):
        with pytest.raises(InvalidArgumentError) as caught:
            embedder.embed([good, prompt])
        assert caught.value.field.startswith(path)
    with pytest.raises(InvalidArgumentError, match="no text but placeholders"):
        embedder.embed([Prompt.of("<image>")])
