#!/usr/bin/env bash
# Builds the command-line tools that docs, load tests and tools/openapi.py use, into .tools/bin:
#   grpcurl  a curl for gRPC            ghz  a load generator with gRPC semantics (see loadtest/README.md)
#   protoc-gen-connect-openapi          makes the OpenAPI document from proto/
# A tool whose pinned version is already there is left alone, so this is cheap to call again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GRPCURL_VERSION=v1.9.4
GHZ_VERSION=v0.121.0
OPENAPI=protoc-gen-connect-openapi
# tools/openapi-generator/go.mod is where the version is decided.
OPENAPI_VERSION=$(awk -v module="github.com/sudorandom/$OPENAPI" '$1 == module { print $2 }' tools/openapi-generator/go.mod)
BIN="$PWD/.tools/bin"

# The version reported by the tool itself: the builds below stamp it in, as the projects' own releases do.
has_version() { # path version
  [[ -x "$1" ]] && "$1" --version 2>&1 | grep -qF -- "$2"
}

need_go() {
  command -v go >/dev/null && return
  cat >&2 <<MESSAGE
tools/build.sh: Go is needed to build $1, and no 'go' is on PATH.
  Install Go 1.25 or newer (https://go.dev/dl/), put its bin folder on PATH, and run 'make tools' again.
  Nothing but these tools needs Go: the server, its tests and 'make bench' do not.
MESSAGE
  exit 2
}

build() { # name module version
  local name=$1 module=$2 version=$3
  if has_version "$BIN/$name" "$version"; then
    echo "$name $version is already in .tools/bin"
    return
  fi
  need_go "$name $version"
  echo "building $name $version (a minute or two the first time)"
  # nice: a build must not disturb a server or a measurement running beside it.
  # CGO off: no C compiler needed, and the binary runs in any container.
  CGO_ENABLED=0 GOBIN="$BIN" nice -n 19 go install -trimpath -ldflags "-s -w -X main.version=$version" "$module@$version"
  has_version "$BIN/$name" "$version" || {
    echo "tools/build.sh: $BIN/$name was built but does not report $version:" >&2
    "$BIN/$name" --version >&2 || true
    exit 1
  }
  echo "$name $version is in .tools/bin"
}

mkdir -p "$BIN"
build grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl "$GRPCURL_VERSION"
build ghz github.com/bojand/ghz/cmd/ghz "$GHZ_VERSION"

# From a go.mod of its own, so that the whole dependency tree is pinned: its output is committed and compared in tests.
if has_version "$BIN/$OPENAPI" "$OPENAPI_VERSION"; then
  echo "$OPENAPI $OPENAPI_VERSION is already in .tools/bin"
else
  need_go "$OPENAPI $OPENAPI_VERSION"
  echo "building $OPENAPI $OPENAPI_VERSION (a minute or two the first time)"
  (cd tools/openapi-generator && CGO_ENABLED=0 nice -n 19 go build -mod=readonly -trimpath \
    -ldflags "-s -w -X main.version=$OPENAPI_VERSION" -o "$BIN/$OPENAPI" "github.com/sudorandom/$OPENAPI")
fi
