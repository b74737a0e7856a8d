"""Generate the Python stubs of proto/loraretriever/v1, or check that the committed ones are up to date."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

_PROTO_ROOT = Path(__file__).parents[2] / "proto"
_PACKAGE = Path("loraretriever/v1")
_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def main() -> int:
    """Write the stubs in place. With --check, compare them instead and return 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the committed stubs differ")
    if not parser.parse_args().check:
        generate(_PROTO_ROOT)
        return 0
    outdated = outdated_stubs()
    for name in outdated:
        sys.stderr.write(f"{_PACKAGE / name} differs from what proto/ generates; run 'make proto' and commit it\n")
    return 1 if outdated else 0


def generate(output: Path) -> None:
    """Write the stubs below `output`, gRPC stubs only for files that define a service."""
    files = sorted((_PROTO_ROOT / _PACKAGE).glob("*.proto"))
    services = [file for file in files if "\nservice " in file.read_text(encoding="utf-8")]
    _run([f"--python_out={output}", f"--pyi_out={output}"], files)
    _run([f"--grpc_python_out={output}"], services)


def outdated_stubs() -> list[str]:
    """Return the names of stubs that are missing, obsolete or different."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = Path(scratch) / _PACKAGE, _PROTO_ROOT / _PACKAGE
        names = {file.name for folder in (fresh, committed) for pattern in _PATTERNS for file in folder.glob(pattern)}
        _, different, missing = filecmp.cmpfiles(fresh, committed, sorted(names), shallow=False)
        return sorted([*different, *missing])


def _run(outputs: list[str], files: list[Path]) -> None:
    import grpc_tools  # deferred: installed by the extra `dev` only
    from grpc_tools import protoc

    well_known_types = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{_PROTO_ROOT}", f"-I{well_known_types}", *outputs, *map(str, files)]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


if __name__ == "__main__":
    raise SystemExit(main())
