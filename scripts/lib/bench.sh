# shellcheck shell=bash
# The parts that the ways of scripts/bench share: programs, a folder that goes away again, clusters, CPU time, medians.
# To be sourced after environment.sh. A file bench-WAY.sh here is what `scripts/bench --WAY` runs, and its header is
# the help on it.

# Builds them as they are shipped, and sets $meridian and $bench, the programs.
# shellcheck disable=SC2034 # Used by those who source this.
build_for_bench() {
  build_to_ship
  meridian=$(dist_dir)/meridian
  bench=$(dist_dir)/meridian-bench
}

# comparison_options FLAGS ARGUMENT...: sets $rounds, $numbers (of connections) and $options, those for meridian-bench, by the arguments
# of a comparison of two clusters. FLAGS, with spaces between, are the way's own and left out.
# shellcheck disable=SC2034 # Used by those who source this.
comparison_options() {
  local own=" $1 "
  shift
  rounds=6
  numbers=(1 16 64 256)
  options=()
  while [[ $# -gt 0 ]]; do
    case $1 in
      --quick) numbers=(1 64) ;;
      --rounds)
        [[ $# -ge 2 ]] || fail "$1 needs a value"
        rounds=$2
        shift
        ;;
      *) [[ $own == *" $1 "* ]] || options+=("$1") ;;
    esac
    shift
  done
  [[ $rounds =~ ^[1-9][0-9]*$ ]] || fail "--rounds needs a whole number above 0"
}

# Makes $folder, and removes it at the end together with the clusters and processes that run in it.
clusters=()
processes=()
use_folder() {
  # Beside the cache and not in /tmp, which may be memory, where an fsync costs nothing.
  mkdir -p "$MERIDIAN_CACHE"
  folder=$(mktemp -d "$MERIDIAN_CACHE/bench.XXXXXX")
  trap clean EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  DENO_KV_ACCESS_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
  export DENO_KV_ACCESS_TOKEN
}

clean() {
  local cluster
  for cluster in "${clusters[@]}"; do stop_cluster "$cluster"; done
  if [[ ${#processes[@]} -gt 0 ]]; then
    kill "${processes[@]}" 2>/dev/null || true
    wait "${processes[@]}" 2>/dev/null || true
  fi
  rm -rf "$folder"
}

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# find_ports OFFSET...: sets $port to one that is free, as are those that many above it. Below the range that the
# system gives to outgoing connections.
find_ports() {
  local try offset
  for ((try = 0; try < 50; try++)); do
    port=$((20000 + RANDOM % 10000))
    for offset in "$@"; do
      port_is_free $((port + offset)) || continue 2
    done
    return
  done
  fail "no free ports were found"
}

# start_cluster PROGRAM NAME [TOPOLOGY [OPTION of scripts/cluster]...]: a cluster in $folder/NAME, of six nodes if nothing
# else is said, the first at $port. A region's nodes are at one port after the other, the next region's 10 above; gRPC is 100 above the first.
start_cluster() {
  local topology=${3:-3,2,1} sizes=() offsets=() nodes=0 region size
  IFS=, read -ra sizes <<<"$topology"
  for region in "${!sizes[@]}"; do
    for ((size = 0; size < sizes[region]; size++)); do offsets+=($((10 * region + size)) $((100 + nodes++))); done
  done
  find_ports "${offsets[@]}"
  clusters+=("$folder/$2")
  MERIDIAN_BIN=$1 "$MERIDIAN_ROOT/scripts/cluster" --dir "$folder/$2" --port "$port" --rpc-port "$((port + 100))" \
    --topology "$topology" --timeout 60 "${@:4}" up >/dev/null
}

# stop_cluster FOLDER, which need not have come up.
stop_cluster() {
  if [[ -f $1/nodes ]]; then "$MERIDIAN_ROOT/scripts/cluster" --dir "$1" down 2>/dev/null || true; fi
}

# Nanoseconds of CPU that the processes with files in a folder have had so far, from the kernel's own account of each
# thread.
# shellcheck disable=SC2046 # One word for each process.
cpu_ns() { awk '{ns += $1} END {printf "%.0f", ns}' $(printf '/proc/%s/task/*/schedstat ' $(pgrep -f "$1/")); }

median() { sort -g | awk '{v[NR] = $1} END {printf "%.3f", (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}'; }

# Measures two clusters in turn, each cell $rounds times in short pieces, so that both meet the same minutes of the machine:
# those of $urls and, in the same order, $clusters. $numbers are those of connections, $options are those of
# meridian-bench. Prints medians, and the median of the ratios of the pairs, the second by the first.
# shellcheck disable=SC2154 # The caller sets urls, numbers, options and rounds.
compare() {
  local which operation http count round pair
  for which in 0 1; do
    "$bench" --url "${urls[which]}" --value-bytes 128 --keys 10000 "${options[@]}" --load-only >/dev/null ||
      fail "could not load the cluster at ${urls[which]}"
  done
  printf '| operation | http | connections | ops/s | | ratio | p50 ms | | CPU us/op | | ratio |\n'
  printf '|---|---|---|---|---|---|---|---|---|---|---|\n'
  for operation in write strong-read eventual-read range; do
    for http in h1 h2; do
      for count in "${numbers[@]}"; do
        : >"$folder/samples"
        for ((round = 0; round < rounds; round++)); do
          # Who is first may have the quieter moment.
          pair=()
          for which in $((round % 2)) $((1 - round % 2)); do
            pair[which]=$(sample "$which" "$operation" "$http" "$count") || fail "no answer to $operation over $http"
          done
          printf '%s %s\n' "${pair[0]}" "${pair[1]}" >>"$folder/samples"
        done
        # shellcheck disable=SC2016 # They are awk's fields.
        printf '| %s | %s | %s | %.0f | %.0f | **%.2f** | %.2f | %.2f | %.0f | %.0f | **%.2f** |\n' "$operation" "$http" "$count" \
          "$(middle '$1')" "$(middle '$4')" "$(middle '$4 / $1')" "$(middle '$2')" "$(middle '$5')" "$(middle '$3')" "$(middle '$6')" "$(middle '$6 / $3')"
      done
    done
  done
}

middle() { awk "{print $1}" "$folder/samples" | median; }

# sample WHICH OPERATION HTTP CONNECTIONS: operations a second, p50 in ms, microseconds of CPU for an operation.
sample() {
  local row
  row=$("$bench" --url "${urls[$1]}" --operations "$2" --http "$3" --connections "$4" --value-bytes 128 \
    --keys 10000 --skip-load --duration 1500ms --warmup 300ms "${options[@]}" \
    --cpu-of "$(pgrep -d, -f "${clusters[$1]}/")" 2>/dev/null | grep "^| $2 ") || return 1
  awk -F'|' '{printf "%s %s %.1f\n", $6, $8, $13}' <<<"$row"
}
