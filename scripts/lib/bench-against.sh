# shellcheck shell=bash
# scripts/bench --against BINARY [--rounds N] [--quick] [OPTION of meridian-bench]...
#
# Compares this build with another program meridian, BINARY: a cluster of each is up, and each cell is
# measured at one and the other in turn, N times [6], in short pieces, so that both meet the same minutes of the
# machine. Prints medians, and the median of the ratios of the pairs, this build by the other: of throughput, and of
# the CPU time of all six nodes for an operation, which is the steadier figure where others use the machine.
#
# This build is as scripts/dist builds it. BINARY should be, too, if it is the code that is to be compared: what the
# linker optimises alone changes the ratios.
rounds=6
connections=(1 16 64 256)
options=()
against=
while [[ $# -gt 0 ]]; do
  case $1 in
    --quick) connections=(1 64) ;;
    --against | --rounds)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      if [[ $1 == --against ]]; then against=$2; else rounds=$2; fi
      shift
      ;;
    *) options+=("$1") ;;
  esac
  shift
done
[[ -x $against && -f $against ]] || fail "no program $against"
[[ $rounds =~ ^[1-9][0-9]*$ ]] || fail "--rounds needs a whole number above 0"

# shellcheck source=scripts/lib/bench.sh
. "$MERIDIAN_ROOT/scripts/lib/bench.sh"

build_for_bench
use_folder
start_cluster "$against" other
ports=("$port")
start_cluster "$meridian" this
ports+=("$port")

for which in 0 1; do
  "$bench" --url "http://127.0.0.1:${ports[which]}" --value-bytes 128 --keys 10000 "${options[@]}" --load-only >/dev/null ||
    fail "could not load the cluster at port ${ports[which]}"
done

# sample WHICH OPERATION HTTP CONNECTIONS: operations a second, p50 in ms, microseconds of CPU for an operation.
sample() {
  local row
  row=$("$bench" --url "http://127.0.0.1:${ports[$1]}" --operations "$2" --http "$3" --connections "$4" --value-bytes 128 \
    --keys 10000 --skip-load --duration 1500ms --warmup 300ms "${options[@]}" \
    --cpu-of "$(pgrep -d, -f "${clusters[$1]}/")" 2>/dev/null | grep "^| $2 ") || return 1
  awk -F'|' '{printf "%s %s %.1f\n", $6, $8, $13}' <<<"$row"
}

printf '| operation | http | connections | ops/s | | ratio | p50 ms | | CPU us/op | | ratio |\n'
printf '|---|---|---|---|---|---|---|---|---|---|---|\n'
for operation in write strong-read eventual-read range; do
  for http in h1 h2; do
    for count in "${connections[@]}"; do
      : >"$folder/samples"
      for ((round = 0; round < rounds; round++)); do
        # Who is first may have the quieter moment.
        pair=()
        for which in $((round % 2)) $((1 - round % 2)); do
          pair[which]=$(sample "$which" "$operation" "$http" "$count") || fail "no answer to $operation over $http"
        done
        printf '%s %s\n' "${pair[0]}" "${pair[1]}" >>"$folder/samples"
      done
      of() { awk "{print $1}" "$folder/samples" | median; }
      # shellcheck disable=SC2016 # They are awk's fields.
      printf '| %s | %s | %s | %.0f | %.0f | **%.2f** | %.2f | %.2f | %.0f | %.0f | **%.2f** |\n' "$operation" "$http" "$count" \
        "$(of '$1')" "$(of '$4')" "$(of '$4 / $1')" "$(of '$2')" "$(of '$5')" "$(of '$3')" "$(of '$6')" "$(of '$6 / $3')"
    done
  done
done
