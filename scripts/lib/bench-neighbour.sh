# shellcheck shell=bash
# scripts/bench --neighbour [--rounds N] [--quick] [OPTION of meridian-bench]...
#
# Measures what a database that floods costs its neighbour in the same shard: the p99 of 50 writes or strong reads a second
# of the quiet one alone, beside 64 connections that do the same as fast as they can in the other, and beside the same
# with a quota of 500 requests a second on the other. In turn, N times [6]. Prints the medians, and the medians of the
# ratios to being alone. All runs on the same cores, the flood's client too.

# shellcheck source=scripts/lib/bench.sh
. "$MERIDIAN_ROOT/scripts/lib/bench.sh"

comparison_options --neighbour "$@"
build_for_bench
use_folder
start_cluster "$meridian" cluster 3,2,1 --shards 1 --databases 2
quiet=http://127.0.0.1:$port
flooded=$quiet/db/second
config=$folder/cluster/region-1-a/node.toml

set_quotas() { "$meridian" databases set-quotas second --config "$config" "$@" >/dev/null || fail "no quota could be set"; }

for url in "$quiet" "$flooded"; do
  "$bench" --url "$url" --value-bytes 128 --keys 10000 "${options[@]}" --load-only >/dev/null || fail "could not load $url"
done

# p99 OPERATION: of the quiet database, in milliseconds.
p99() {
  "$bench" --url "$quiet" --operations "$1" --http h2 --connections 4 --rate 50 --value-bytes 128 --keys 10000 \
    --skip-load --duration 4s --warmup 500ms "${options[@]}" 2>/dev/null | awk -F'|' -v of=" $1 " '$2 == of { print $9 + 0 }'
}

# beside OPERATION: the same, while the other database is flooded.
beside() {
  "$bench" --url "$flooded" --operations "$1" --http h2 --connections 64 --value-bytes 128 --keys 10000 \
    --skip-load --duration 1m --warmup 0ms "${options[@]}" >/dev/null 2>&1 &
  local flood=$!
  processes+=("$flood")
  sleep 1
  p99 "$1"
  kill "$flood" 2>/dev/null || true
  wait "$flood" 2>/dev/null || true
}

printf '| operation | alone, p99 ms | beside a flood | ratio | with a quota on it | ratio |\n|---|---|---|---|---|---|\n'
for operation in write strong-read; do
  : >"$folder/samples"
  for ((round = 0; round < rounds; round++)); do
    alone=$(p99 "$operation")
    free=$(beside "$operation")
    set_quotas --requests-per-second 500
    bounded=$(beside "$operation")
    set_quotas --remove requests-per-second
    [[ -n $alone && -n $free && -n $bounded ]] || fail "no answer to $operation"
    printf '%s %s %s\n' "$alone" "$free" "$bounded" >>"$folder/samples"
  done
  # shellcheck disable=SC2016 # They are awk's fields.
  printf '| %s | %.1f | %.1f | **%.1f** | %.1f | **%.1f** |\n' "$operation" \
    "$(middle '$1')" "$(middle '$2')" "$(middle '$2 / $1')" "$(middle '$3')" "$(middle '$3 / $1')"
done
