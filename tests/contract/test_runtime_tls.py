"""TLS and mutual TLS over loopback, with certificates made for the occasion."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from generation_service.clients import CatalogueClient
from generation_service.settings import GenerationSettings
from infra.contract.errors import ConfigurationError, DeadlineError, UnavailableError, UnimplementedError
from infra.runtime import healthcheck
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.error_table import translated
from infra.runtime.metrics import serve_metrics
from infra.runtime.server import GrpcServer
from infra.runtime.settings import ServerOptions
from tests.support.servers.gateway import gateway_server
from tests.support.servers.runtime_probe import Kind, generate, serving
from tests.support.servers.tiers import fake_tiers

OPENSSL = shutil.which("openssl")
KINDS: tuple[Kind, ...] = ("sync", "aio")

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="the openssl command is not installed")


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    folder: Path
    name: str

    @property
    def ca(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def create(self) -> Authority:
        key = self.folder / f"{self.name}.key"
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
            *("-subj", f"/CN={self.name}", "-addext", "keyUsage=critical,keyCertSign", "-keyout", key, "-out", self.ca),
        )
        return self

    def issue(self, name: str) -> Pair:
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(
            "subjectAltName=DNS:localhost,IP:127.0.0.1\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\nkeyUsage=critical,digitalSignature\n"
        )
        openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", pair.key, "-out", request),
        )
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.folder / f"{self.name}.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", pair.certificate),
        )
        return pair


def openssl(*arguments: str | Path) -> None:
    subprocess.run([str(OPENSSL), *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "authority").create()


@pytest.fixture(scope="module")
def server_pair(authority: Authority) -> Pair:
    return authority.issue("server")


@pytest.mark.parametrize("client", KINDS)
def test_tls_calls_reach_server_of_right_authority_only(
    client: Kind, authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    options = ServerOptions(tls_certificate=server_pair.certificate, tls_key=server_pair.key, auth_token="s3cret")
    stranger = Authority(tmp_path, "stranger").create()
    with serving(options=options) as server:
        assert generate(client, ChannelOptions(server.address, tls_ca=authority.ca, token="s3cret")) == "ab"
        for channel in (
            ChannelOptions(server.address, tls_ca=stranger.ca, token="s3cret", max_attempts=1),
            ChannelOptions(server.address, token="s3cret", max_attempts=1, default_timeout_s=5),
        ):
            with pytest.raises((UnavailableError, DeadlineError)), translated():
                generate(client, channel)


def test_client_authority_admits_its_certificates_only(authority: Authority, server_pair: Pair) -> None:
    ours = authority.issue("client")
    options = ServerOptions(
        tls_certificate=server_pair.certificate, tls_key=server_pair.key, tls_client_ca=authority.ca
    )
    with serving(options=options) as server:
        channel = ChannelOptions(
            server.address, tls_ca=authority.ca, tls_certificate=ours.certificate, tls_key=ours.key
        )
        assert generate("sync", channel) == "ab"
        with pytest.raises(UnavailableError), translated():
            generate("sync", ChannelOptions(server.address, tls_ca=authority.ca, max_attempts=1))
        trusting = [server.address, f"--tls-ca={authority.ca}"]
        assert healthcheck.main([*trusting, f"--tls-certificate={ours.certificate}", f"--tls-key={ours.key}"]) == 0
        assert healthcheck.main(trusting) == 1


def test_generation_service_presents_its_certificate_to_catalogue(authority: Authority, server_pair: Pair) -> None:
    ours = authority.issue("generation")
    options = ServerOptions(
        tls_certificate=server_pair.certificate, tls_key=server_pair.key, tls_client_ca=authority.ca
    )
    with serving(options=options) as server:
        settings = GenerationSettings(
            model_path=Path("base"),
            retrieval_target=server.address,
            retrieval_tls_ca=authority.ca,
            retrieval_tls_certificate=ours.certificate,
            retrieval_tls_key=ours.key,
        )
        client = CatalogueClient.from_settings(settings)
        with pytest.raises(UnimplementedError):  # Admitted, but the probe does not implement the catalogue.
            client.get_adapter("clock")
        client.close()


async def test_mismatched_tls_files_are_named(authority: Authority, server_pair: Pair, tmp_path: Path) -> None:
    other = authority.issue("other")
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("no certificate")

    def build(certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        GrpcServer(ServerOptions(tls_certificate=certificate, tls_key=key, tls_client_ca=client_ca))

    with pytest.raises(ConfigurationError, match=r"TLS key .*absent\.key cannot be read: No such file"):
        build(server_pair.certificate, tmp_path / "absent.key")
    with pytest.raises(ConfigurationError, match="do not load together"):
        build(server_pair.certificate, other.key)
    with pytest.raises(ConfigurationError, match="do not load together"):
        build(nonsense, server_pair.key)
    with pytest.raises(ConfigurationError, match="contains no certificate"):
        build(server_pair.certificate, server_pair.key, nonsense)
    with pytest.raises(ConfigurationError, match="contains no certificate"):
        sync_channel(ChannelOptions("127.0.0.1:1", tls_ca=nonsense))
    with pytest.raises(ConfigurationError, match="go together"):
        sync_channel(ChannelOptions("127.0.0.1:1", tls_key=other.key))


def test_metrics_endpoint_requires_tls_and_token(authority: Authority, server_pair: Pair) -> None:
    server = serve_metrics("127.0.0.1:0", token="s3cret", certificate=server_pair.certificate, key=server_pair.key)
    try:
        trust = ssl.create_default_context(cafile=str(authority.ca))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )
        request = urllib.request.Request(f"https://{server.address}/metrics")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            opener.open(request, timeout=10)
        request.add_header("Authorization", "Bearer s3cret")
        with opener.open(request, timeout=10) as response:
            assert b"loraretriever_grpc_call_seconds" in response.read()
    finally:
        server.close()


async def test_gateway_has_the_tls_files_of_its_server(authority: Authority, server_pair: Pair) -> None:
    options = ServerOptions(tls_certificate=server_pair.certificate, tls_key=server_pair.key, shutdown_grace_s=0)
    trusting = ssl.create_default_context(cafile=str(authority.ca))
    async with fake_tiers() as tiers, gateway_server(tiers, options) as address:
        async with httpx.AsyncClient(verify=trusting) as client:
            assert (await client.get(f"https://{address}/health")).json() == {"status": "ok"}
        async with httpx.AsyncClient() as stranger:
            for scheme in ("https", "http"):
                with pytest.raises(httpx.TransportError):
                    await stranger.get(f"{scheme}://{address}/health")


async def test_gateway_admits_clients_of_its_authority_only(authority: Authority, server_pair: Pair) -> None:
    ours = authority.issue("http-client")
    options = ServerOptions(
        tls_certificate=server_pair.certificate,
        tls_key=server_pair.key,
        tls_client_ca=authority.ca,
        shutdown_grace_s=0,
    )
    anonymous = ssl.create_default_context(cafile=str(authority.ca))
    known = ssl.create_default_context(cafile=str(authority.ca))
    known.load_cert_chain(ours.certificate, ours.key)
    async with fake_tiers() as tiers, gateway_server(tiers, options) as address:
        async with httpx.AsyncClient(verify=known) as client:
            assert (await client.get(f"https://{address}/health")).status_code == 200
        async with httpx.AsyncClient(verify=anonymous) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"https://{address}/health")
