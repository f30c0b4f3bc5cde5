# shellcheck shell=bash
# scripts/bench --encryption [--engine] [--rounds N] [--quick] [OPTION of meridian-bench]...
#
# Compares encryption at rest with none. First the storage engine alone: the same work on a plain and on an encrypted
# database, in turn, seven times, with the CPU time for each operation. Then a cluster whose nodes encrypt their files, and one whose nodes do not, in turn, as
# --https does it. Prints medians, and the median of the ratios of the pairs, encrypted by plain. --engine: the first
# part alone, which takes three minutes once it is built.

# shellcheck source=scripts/lib/bench.sh
. "$MERIDIAN_ROOT/scripts/lib/bench.sh"

comparison_options "--encryption --engine" "$@"

need_to_build
use_folder
# Of the whole workspace, so that dependencies are compiled as for all else.
cargo bench --quiet --manifest-path "$MERIDIAN_ROOT/Cargo.toml" --profile dist --workspace --bench encryption_cost \
  "${CARGO_FLAGS[@]}" -- "$folder"
[[ " $* " != *" --engine "* ]] || exit 0

build_for_bench
start_cluster "$meridian" plain
urls=("http://127.0.0.1:$port")
start_cluster "$meridian" encrypted
urls+=("http://127.0.0.1:$port")

(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$folder/data.key")
for config in "$folder"/encrypted/*/node.toml; do
  printf '\n[encryption]\nkey_file = "%s"\n' "$folder/data.key" >>"$config"
  MERIDIAN_BIN=$meridian "$MERIDIAN_ROOT/scripts/cluster" --dir "$folder/encrypted" --timeout 60 \
    restart "$(basename "$(dirname "$config")")" >/dev/null
done

compare
