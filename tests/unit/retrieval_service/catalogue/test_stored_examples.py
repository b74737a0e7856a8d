"""The examples stored for later re-indexing."""

from __future__ import annotations

import io
import json
from contextlib import closing

import pytest
from PIL import Image

from infra.contract.adapter import Adapter
from infra.contract.errors import (
    InvalidArgumentError,
)
from infra.contract.prompt import ImagePart, Message, Prompt, Role, TextPart
from infra.runtime.images import ImageLimits
from retrieval_service.catalogue import stored_examples
from retrieval_service.catalogue.points import AdapterFilter
from retrieval_service.catalogue.qdrant import Qdrant, QdrantServer
from retrieval_service.catalogue.stored_examples import (
    MAX_STORED_IMAGE_PIXELS,
    decode_prompt,
    encode_prompt,
)
from retrieval_service.indexing import ExamplePrompts, Indexer
from tests.support.harness.catalogue_world import OLD, CatalogueWorld
from tests.support.harness.images import png_part
from tests.support.servers.fake_qdrant import fake_qdrant_url


def test_prompts_are_stored_whole_with_large_images_downscaled() -> None:
    small = png_part(90, 60)
    buffer = io.BytesIO()
    Image.new("RGB", (1200, 900), (10, 200, 30)).save(buffer, "PNG")
    prompt = Prompt(
        (
            Message(Role.SYSTEM, (TextPart("be brief"),)),
            Message(Role.USER, (ImagePart(buffer.getvalue(), "image/png"), TextPart("tap é"), small)),
        )
    )
    back = decode_prompt(json.loads(json.dumps(encode_prompt(prompt, ImageLimits()))))
    assert back.messages[0] == prompt.messages[0]
    large, text, same = back.messages[1].parts
    assert (text, same) == (TextPart("tap é"), small)
    assert isinstance(large, ImagePart)
    with Image.open(io.BytesIO(large.data)) as image:
        assert image.width * image.height == pytest.approx(MAX_STORED_IMAGE_PIXELS, rel=0.01)
        assert image.width / image.height == pytest.approx(4 / 3, rel=0.01)
        assert image.getpixel((5, 5)) == pytest.approx((10, 200, 30), abs=3)


def test_broken_image_registers_nothing(world: CatalogueWorld) -> None:
    catalogue = world.open(OLD)
    world.register(catalogue, OLD, "there", "red shoes")
    whole = png_part(90, 60)
    cut = ExamplePrompts((Prompt.of("one", [whole]), Prompt.of("two", [ImagePart(whole.data[:-900])])))
    indexer = Indexer(OLD, catalogue, 64)
    problem = r"^examples\.prompts\[1\]\.messages\[0\]\.parts\[\d\]\.image\.data: the image is broken or cut off"
    with pytest.raises(InvalidArgumentError, match=problem):
        indexer.create(Adapter("new", "base", "at/new"), cut)
    with pytest.raises(InvalidArgumentError, match=problem):
        indexer.update(Adapter("there", "base", "at/there", kind="changed"), ["kind"], cut, "")
    assert [one.adapter_id for one in catalogue.page(AdapterFilter(), 9).adapters] == ["there"]
    assert catalogue.get("there").kind == "app"
    assert indexer.create(Adapter("new", "base", "at/new"), ExamplePrompts((Prompt.of("one", [whole]),)))


def test_examples_respect_image_limits(world: CatalogueWorld) -> None:
    catalogue, example = world.open(OLD), ExamplePrompts((Prompt.of("one", [png_part(90, 60)]),))
    with pytest.raises(InvalidArgumentError, match="at most 100"):
        Indexer(OLD, catalogue, 64, ImageLimits(max_pixels=100)).create(Adapter("small", "base", "at/small"), example)
    Indexer(OLD, catalogue, 64, ImageLimits(max_pixels=5400)).create(Adapter("large", "base", "at/large"), example)


def test_oversized_examples_register_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_examples, "_MAX_EXAMPLES_BYTES", 200)
    with fake_qdrant_url() as url, closing(Qdrant(QdrantServer(url))) as qdrant:
        world = CatalogueWorld(qdrant)
        catalogue = world.open(OLD)
        with pytest.raises(InvalidArgumentError, match=r"bytes of examples are too many for Qdrant.*send fewer"):
            world.register(catalogue, OLD, "one", *["red shoes"] * 9)
        assert not catalogue.exists("one")
        world.register(catalogue, OLD, "one", "red shoes")
