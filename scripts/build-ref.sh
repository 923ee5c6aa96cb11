#!/bin/bash
# Builds the server as it was at another commit.
#
#   scripts/build-ref.sh COMMIT DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(git rev-parse --verify "$1^{commit}")
out=$(realpath -m "$2")
tree=$(mktemp -d)
trap 'git worktree remove --force "$tree"' EXIT
git worktree add --quiet --detach "$tree" "$commit"
mkdir -p "$out"
cd "$tree"
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$out/loopnfs" ./cmd/loopnfs
