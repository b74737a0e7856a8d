"""Generate the Python stubs of proto/loraretriever/v1, or check that the checked-in ones are up to date."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

PROTO_ROOT = Path(__file__).parents[2] / "proto"
PACKAGE = Path("loraretriever/v1")
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def main() -> int:
    """Write the stubs in place, or with --check compare them and return 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the checked-in stubs differ"
    )
    if not parser.parse_args().check:
        generate(PROTO_ROOT)
        return 0
    drifted = drift()
    for name in drifted:
        sys.stderr.write(f"{PACKAGE / name} differs from what proto/ generates; run 'make proto' and commit it\n")
    return 1 if drifted else 0


def generate(output: Path) -> None:
    """Write the stubs below `output`: gRPC stubs only for files with a service."""
    files = sorted((PROTO_ROOT / PACKAGE).glob("*.proto"))
    services = [file for file in files if "\nservice " in file.read_text(encoding="utf-8")]
    _run([f"--python_out={output}", f"--pyi_out={output}"], files)
    _run([f"--grpc_python_out={output}"], services)


def drift() -> list[str]:
    """Return the names of stubs that are missing, outdated or left over."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, checked_in = Path(scratch) / PACKAGE, PROTO_ROOT / PACKAGE
        names = {file.name for folder in (fresh, checked_in) for pattern in PATTERNS for file in folder.glob(pattern)}
        _, different, missing = filecmp.cmpfiles(fresh, checked_in, sorted(names), shallow=False)
        return sorted([*different, *missing])


def _run(outputs: list[str], files: list[Path]) -> None:
    import grpc_tools  # part of the dev extra
    from grpc_tools import protoc

    well_known_types = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{PROTO_ROOT}", f"-I{well_known_types}", *outputs, *map(str, files)]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    raise SystemExit(main())
