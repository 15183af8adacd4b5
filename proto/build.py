"""Turn proto/ into the Python package nexus_grpc/pb (messages, gRPC stubs, type stubs).

    python proto/build.py [--out nexus_grpc/pb]

Two edits are made to what protoc writes:

* imports become `nexus_grpc.pb...`, so that no top-level package named `inference` or `nexus` appears;
* descriptors go into a pool of our own, so that a program may use these stubs and Triton's client library together
  (both define `inference.ModelInferRequest`, which one pool refuses).
"""

import argparse
import pathlib
import re
import shutil
import sys

import grpc_tools
from google.api import http_pb2
from grpc_tools import protoc

PROTO_ROOT = pathlib.Path(__file__).resolve().parent
PACKAGES = ("inference", "nexus")
POOL_IMPORT = "from nexus_grpc.pb import POOL as _pool"


def compile_protos(out: pathlib.Path) -> list[pathlib.Path]:
    """Run protoc over proto/ into `out`; return what it wrote. Raises SystemExit when protoc fails."""
    sources = sorted(str(path.relative_to(PROTO_ROOT)) for path in PROTO_ROOT.rglob("*.proto"))
    common = pathlib.Path(http_pb2.__file__).parents[2]
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{PROTO_ROOT}", f"-I{common}", f"-I{well_known}"]
    arguments += [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see the lines above")
    return sorted(path for path in out.rglob("*_pb2*") if path.suffix in {".py", ".pyi"})


def rewrite(path: pathlib.Path) -> None:
    """Point a generated file's imports at nexus_grpc.pb and its descriptors at our own pool."""
    text = path.read_text()
    package = "|".join(PACKAGES)
    text = re.sub(rf"^from ((?:{package})(?:\.\w+)*) import", r"from nexus_grpc.pb.\1 import", text, flags=re.MULTILINE)
    text = text.replace("_descriptor_pool.Default()", "_pool")
    if "_pool." in text and path.suffix == ".py":
        text = text.replace("from google.protobuf import descriptor_pool as _descriptor_pool", POOL_IMPORT)
    path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=PROTO_ROOT.parent / "nexus_grpc" / "pb")
    out = parser.parse_args().out
    for package in PACKAGES:
        shutil.rmtree(out / package, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    for path in compile_protos(out):
        rewrite(path)
    for folder in {path.parent for path in out.rglob("*_pb2.py")} | {out / package for package in PACKAGES}:
        (folder / "__init__.py").touch()
    print(f"protobuf code written to {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
