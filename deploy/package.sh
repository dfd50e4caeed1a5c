#!/bin/sh
# Builds the static binary, its man page and completions, and the packages: target/debian/*.deb, target/generate-rpm/*.rpm.
# Needs: cargo install cargo-deb cargo-generate-rpm
set -eu
cd "$(dirname "$0")/.."
target=${TARGET:-$(rustc -vV | sed -n 's/^host: //p')}
RUSTFLAGS="${RUSTFLAGS-} -C target-feature=+crt-static" cargo build --release --locked -p nuncio --target "$target"
binary=target/$target/release/nuncio

files=target/package
mkdir -p "$files"
"$binary" man | gzip -9n >"$files/nuncio.1.gz"
"$binary" completions bash >"$files/nuncio.bash"
"$binary" completions zsh >"$files/_nuncio"
"$binary" completions fish >"$files/nuncio.fish"
# Where the package metadata looks for it.
mkdir -p target/release
cp "$binary" target/release/nuncio

for tool in "${@:-deb rpm}"; do
  for kind in $tool; do
    case $kind in
      deb) cargo deb -p nuncio --no-build --no-strip ;;
      rpm) cargo generate-rpm -p proxy/server ;;
      none) ;;
      *) echo "usage: deploy/package.sh [deb] [rpm] [none]" >&2; exit 1 ;;
    esac
  done
done
