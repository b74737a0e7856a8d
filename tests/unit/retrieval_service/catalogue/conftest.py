from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.qdrant import Qdrant, QdrantServer
from tests.support.harness.catalogue_world import CatalogueWorld
from tests.support.harness.replica_catalogues import open_catalogue
from tests.support.servers.fake_qdrant import FakeQdrant, fake_qdrant
from tests.support.servers.qdrant_locations import LOCATIONS, QDRANT_URL, Location, qdrant_location


@pytest.fixture(params=LOCATIONS)
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    if request.param == "server" and not QDRANT_URL:
        pytest.skip("QDRANT_URL names no Qdrant server")
    with qdrant_location(request.param, tmp_path / "qdrant") as opened:
        yield opened


@pytest.fixture
def world(location: Location) -> Iterator[CatalogueWorld]:
    with ExitStack() as stack:
        world = CatalogueWorld(stack.enter_context(closing(Qdrant(location))))
        yield world
        with world.qdrant.session() as client:
            for name in world.collections():
                client.delete_collection(name)


@pytest.fixture
def qdrant() -> Iterator[FakeQdrant]:
    with fake_qdrant() as server:
        yield server


@pytest.fixture
def replicas(qdrant: FakeQdrant) -> Iterator[tuple[Catalogue, Catalogue]]:
    with open_catalogue(QdrantServer(qdrant.url)) as first, open_catalogue(QdrantServer(qdrant.url)) as second:
        yield first, second
