# shellcheck shell=bash
# scripts/bench --growth [QUANTITY[=N,N,...]]... [--full] [--quick] [--connections N] [--json FILE] [--plots FOLDER]
#
# How cost grows while one quantity does, and the others stay: keys, shards, databases or nodes; all four if none is
# named. Each number is a fresh cluster, loaded with keys, in which writes, strong reads, eventual reads and reads of
# ranges of 100 are measured by N connections [64], with values of 128 bytes. Prints two tables for each quantity: for
# each operation throughput, latency, and microseconds of CPU over all nodes, beyond what they take while nothing is
# asked; and for each number the memory and the disk of the voter that has most, and the cores that all nodes take while
# nothing is asked. Writes JSON to FILE [growth.json in the target folder] and a plot of each quantity, drawn by gnuplot,
# into FOLDER [growth in the target folder]. CPU for an operation is the steadiest figure where others use the machine.
#
#   keys       10000,100000,1000000, and with --full 10000000; in one database
#   shards     1,4,16,64: a database in each, with 100000 keys in all; the first region's nodes lead in turn
#   databases  1,100,1000,10000: in one shard, with 1000000 keys in all
#   nodes      3,6,9: in 1, 3 and 3 regions (3; 3,2,1; 3,3,3), with 100000 keys
#
# Takes about 20 minutes on two cores. --quick takes the smallest two numbers of each, 100000 keys for databases, and
# shorter measurements; numbers that are to be others are named behind it. --full
# takes half an hour and 30 GB of disk more.
declare -A points=([keys]="10000,100000,1000000" [shards]="1,4,16,64" [databases]="1,100,1000,10000" [nodes]="3,6,9")
# Nodes in regions, of which the first has three voters.
declare -A topologies=([3]=3 [4]="3,1" [5]="3,1,1" [6]="3,2,1" [7]="3,2,2" [8]="3,3,2" [9]="3,3,3" [12]="3,3,3,3")
quantities=()
connections=64 duration=5s
json=$CARGO_TARGET_DIR/growth.json plots=$CARGO_TARGET_DIR/growth
quick=
while [[ $# -gt 0 ]]; do
  case $1 in
    --growth) ;;
    --full) points[keys]+=,10000000 ;;
    --quick)
      quick=1 duration=1s
      for quantity in "${!points[@]}"; do points[$quantity]=$(cut -d, -f 1,2 <<<"${points[$quantity]}"); done
      ;;
    --connections | --json | --plots)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      case $1 in
        --connections) connections=$2 ;;
        --json) json=$2 ;;
        --plots) plots=$2 ;;
      esac
      shift
      ;;
    keys | shards | databases | nodes) quantities+=("$1") ;;
    keys=* | shards=* | databases=* | nodes=*)
      [[ ${1#*=} =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] || fail "$1: ${1%%=*} are whole numbers above 0, separated by commas"
      quantities+=("${1%%=*}")
      points[${1%%=*}]=${1#*=}
      ;;
    *) fail "unknown option: $1 (see scripts/bench --help)" ;;
  esac
  shift
done
[[ ${#quantities[@]} -gt 0 ]] || quantities=(keys shards databases nodes)
for point in ${points[nodes]//,/ }; do
  [[ -n ${topologies[$point]:-} ]] || fail "nodes can be: ${!topologies[*]}"
done

# shellcheck source=scripts/lib/bench.sh
. "$MERIDIAN_ROOT/scripts/lib/bench.sh"

have gnuplot || install_debian_packages "the growth of cost is drawn by gnuplot" gnuplot-nox
build_for_bench
use_folder

# Processes of the nodes of the cluster in $at, separated by commas.
pids() { cat "$at"/*/pid | paste -sd,; }

# Resident memory of the voter that has most, in MB. The voters are the first region's nodes.
voter_mb() {
  local file
  for file in "$at"/region-1-*/pid; do awk '/^VmRSS:/ {print $2 / 1024}' "/proc/$(<"$file")/status"; done |
    sort -g | tail -n 1
}

# The disk usage of the voter with the most, in MB, without the ballast.
disk_mb() {
  local node
  # Files come and go while this looks.
  for node in "$at"/region-1-*; do { du -sk --exclude=ballast "$node" 2>/dev/null || true; } | awk '{print $1 / 1024}'; done |
    sort -g | tail -n 1
}

# Cores that all nodes take at present: cores SECONDS
cores() {
  local before after
  before=$(cpu_ns "$at")
  sleep "$1"
  after=$(cpu_ns "$at")
  awk -v ns=$((after - before)) -v s="$1" 'BEGIN {printf "%.3f\n", ns / 1e9 / s}'
}

# Waits until what the load left to do is done: until the nodes take hardly less than a moment before.
settle() {
  local before=1000 now try
  for ((try = 0; try < 20; try++)); do
    now=$(cores 2)
    awk -v now="$now" -v before="$before" 'BEGIN {exit !(now > before * 0.8)}' && return
    before=$now
  done
}

# The machine's CPU time so far, of all processes.
busy_ticks() { awk '/^cpu / {print $2 + $3 + $4 + $7 + $8 + $9; exit}' /proc/stat; }

# measure QUANTITY NUMBER: in the cluster in $at, whose connect URLs are in $urls and which has $keys keys in each of
# them.
measure() {
  local operation loaded started idle before after spent client
  local arguments=(--url "$(head -n 1 "$urls")" --http h1 --connections "$connections" --value-bytes 128 --keys "$keys")
  if [[ $(wc -l <"$urls") -gt 1 ]]; then
    tail -n +2 "$urls" >"$urls.more"
    arguments+=(--more-urls "$urls.more")
  fi
  started=$EPOCHREALTIME
  "$bench" "${arguments[@]}" --load-only --load-connections 8 || fail "the keys of $2 $1 could not be loaded"
  loaded=$(awk -v from="$started" -v to="$EPOCHREALTIME" 'BEGIN {printf "%.1f", to - from}')
  settle
  idle=$(cores 5)
  for operation in write strong-read eventual-read range; do
    if [[ $operation == strong-read ]]; then
      # Not counted: it brings into memory what was loaded, and is on the disk only.
      "$bench" "${arguments[@]}" --skip-load --operations range --warmup 0s --duration "$duration" >/dev/null 2>&1 || true
    fi
    before=$(busy_ticks)
    started=$EPOCHREALTIME
    spent=$(cpu_ns "$at")
    { TIMEFORMAT='%U %S' && time "$bench" "${arguments[@]}" --skip-load --operations "$operation" --warmup 1s \
      --duration "$duration" --cpu-of "$(pids)" 2>"$folder/said" >"$folder/table"; } 2>"$folder/client" ||
      { cat "$folder/said" >&2 && fail "$operation of $2 $1 could not be measured"; }
    spent=$(($(cpu_ns "$at") - spent))
    client=$(awk '{print $1 + $2}' "$folder/client")
    after=$(busy_ticks)
    # The CPU time of others is the machine's, without that of the nodes and the client.
    awk -F' *[|] *' -v point="$2" -v ticks=$((after - before)) -v ns="$spent" -v client="$client" \
      -v from="$started" -v to="$EPOCHREALTIME" -v hz="$(getconf CLK_TCK)" -v operation="$operation" -v idle="$idle" '
      NR == 1 { for (i = 2; i < NF; i++) at[$i] = i }
      $2 == operation {
        # Below nothing where others left so little that the nodes did not even what they do while idle.
        cpu = $at["CPU us/op"] - idle * 1e6 / $at["ops/s"]
        printf "%s\t%s\t%.0f\t%.2f\t%.2f\t%.1f\t%s\t%.2f\n", point, operation, $at["ops/s"], $at["p50 ms"], $at["p99 ms"],
          (cpu > 0 ? cpu : 0), $at["errors"], (ticks / hz - ns / 1e9 - client) / (to - from)
      }' "$folder/table" >>"$folder/$1.operations"
    grep '^First error' "$folder/table" >&2 || true
  done
  printf '%s\t%.0f\t%.0f\t%s\t%s\t%s\t%s\n' "$2" "$(voter_mb)" "$(disk_mb)" "$idle" "$loaded" "$ready" "${creating:--}" \
    >>"$folder/$1.clusters"
}

# point QUANTITY NUMBER: a cluster of its own for it.
point() {
  local topology=3,2,1 shards=1 databases=1 all=100000 started number creating=
  case $1 in
    keys) all=$2 ;;
    shards) shards=$2 databases=$2 ;;
    databases) databases=$2 all=1000000 ;;
    nodes) topology=${topologies[$2]} ;;
  esac
  if [[ -n $quick && $1 == databases ]]; then all=100000; fi
  say "$1: $2"
  started=$EPOCHREALTIME
  start_cluster "$meridian" "$1-$2" "$topology" --shards "$shards" --databases "$databases" --timeout 300
  ready=$(awk -v from="$started" -v to="$EPOCHREALTIME" 'BEGIN {printf "%.1f", to - from}')
  at=$folder/$1-$2
  urls=$folder/urls
  for ((number = 1; number <= databases; number++)); do
    printf 'http://127.0.0.1:%s/databases/00000000-0000-4000-8000-%012x/connect\n' "$port" "$number"
  done >"$urls"
  # A range is of 100.
  keys=$((all / databases < 100 ? 100 : all / databases))
  if [[ $1 == databases ]]; then
    creating=$(for ((number = 0; number < 5; number++)); do
      started=$EPOCHREALTIME
      "$meridian" databases --config "$at/region-1-a/node.toml" create "more-$number" --primary-region region-1 \
        >/dev/null || fail "no database could be made beside $2"
      awk -v from="$started" -v to="$EPOCHREALTIME" 'BEGIN {print (to - from) * 1000}'
    done | median)
  fi
  measure "$1" "$2"
  stop_cluster "$at"
  rm -rf "$at"
}

tables() {
  local made=
  if [[ $1 == databases ]]; then made=1; fi
  printf '\n### %s\n\n' "${1^}"
  printf '| %s | operation | ops/s | p50 ms | p99 ms | CPU us/op | errors | cores of others |\n' "$1"
  printf '|---:|---|---:|---:|---:|---:|---:|---:|\n'
  awk -F'\t' '{printf "| %s | %s | %s | %s | %s | %.0f | %s | %.1f |\n", $1, $2, $3, $4, $5, $6, $7, $8}' "$folder/$1.operations"
  printf '\n| %s | voter MB | disk MB | idle cores | load s | ready s |%s\n' "$1" "${made:+ create one more, ms |}"
  printf '|---:|---:|---:|---:|---:|---:|%s\n' "${made:+---:|}"
  awk -F'\t' -v made="$made" '{printf "| %s | %s | %s | %.2f | %s | %s |", $1, $2, $3, $4, $5, $6;
    if (made) printf " %.0f |", $7; print ""}' "$folder/$1.clusters"
}

in_json() {
  local quantity separator=''
  printf '{"connections": %s, "value_bytes": 128, "cpu": "%s", "measured_at": "%s", "quantities": [' "$connections" \
    "$(nproc) cores" "$(date -u +%FT%TZ)"
  for quantity in "${measured[@]}"; do
    printf '%s\n  {"quantity": "%s", "operations": [\n' "$separator" "$quantity"
    awk -F'\t' '{printf "%s    {\"number\": %s, \"operation\": \"%s\", \"throughput_ops_per_s\": %s, \"p50_ms\": %s, \"p99_ms\": %s, \"cpu_us_per_operation\": %s, \"errors\": %s, \"cores_of_others\": %s}",
      (NR > 1 ? ",\n" : ""), $1, $2, $3, $4, $5, $6, $7, $8}' "$folder/$quantity.operations"
    printf '\n  ], "clusters": [\n'
    awk -F'\t' '{printf "%s    {\"number\": %s, \"voter_mb\": %s, \"disk_mb\": %s, \"idle_cores\": %s, \"load_s\": %s, \"ready_s\": %s%s}",
      (NR > 1 ? ",\n" : ""), $1, $2, $3, $4, $5, $6, ($7 == "-" ? "" : sprintf(", \"create_ms\": %s", $7))}' "$folder/$quantity.clusters"
    printf '\n  ]}'
    separator=,
  done
  printf '\n]}\n'
}

# plot QUANTITY: four panels. Nothing is painted behind them, and what is neither curve nor point is grey: it can be read
# on white and on black.
plot() {
  local ticks range
  ticks=$(awk '{
    short = $1 >= 1000000 ? $1 / 1000000 "M" : $1 >= 1000 ? $1 / 1000 "k" : $1
    printf "%s\"%s\" %s", (NR > 1 ? ", " : ""), short, $1
  }' "$folder/$1.clusters")
  range=$(awk 'NR == 1 { from = $1 * 0.8 } { to = $1 * 1.25 } END { print from ":" to }' "$folder/$1.clusters")
  gnuplot <<EOF
set terminal svg size 900,640 font "sans-serif,13" enhanced
set output "$plots/$1.svg"
set datafile separator "\t"
set multiplot layout 2,2 margins 0.08,0.98,0.14,0.93 spacing 0.09,0.14
set border 3 linecolor rgb "#808080"
set tics nomirror textcolor rgb "#808080"
set key at screen 0.48,0.075 right horizontal textcolor rgb "#808080" samplen 1.5
set grid linecolor rgb "#808080" linewidth 0.4 dashtype 3
set logscale x
set xtics ($ticks)
set xrange [$range]
set linetype 1 linecolor rgb "#d9534f" linewidth 2 pointtype 7
set linetype 2 linecolor rgb "#2f8fd0" linewidth 2 pointtype 5
set linetype 3 linecolor rgb "#3aa655" linewidth 2 pointtype 9
set linetype 4 linecolor rgb "#b07cc6" linewidth 2 pointtype 13
of(name) = sprintf("< awk -F'\t' '\$2 == \"%s\"' $folder/$1.operations", name)
operations = "write strong-read eventual-read range"
set title "operations a second, by $1" textcolor rgb "#808080"
set logscale y
set format y "%.0s%c"
plot for [name in operations] of(name) using 1:3 with linespoints title name
set title "CPU of all nodes, us an operation" textcolor rgb "#808080"
set key off
plot for [name in operations] of(name) using 1:6 with linespoints title name
set title "latency, ms: p50, and p99 dashed" textcolor rgb "#808080"
set format y "%g"
plot for [name in operations] of(name) using 1:4 with linespoints title name, \
  for [i=1:4] of(word(operations, i)) using 1:5 with lines linetype i dashtype 2 notitle
set title "a voter, MB; all nodes while idle, % of a core" textcolor rgb "#808080"
set key on at screen 0.98,0.075
plot "$folder/$1.clusters" using 1:2 with linespoints linetype 1 title "memory", \
  "" using 1:3 with linespoints linetype 2 dashtype 2 title "disk", \
  "" using 1:(\$4 * 100) with linespoints linetype 3 dashtype 3 title "idle, %"
EOF
}

mkdir -p "$plots" "$(dirname "$json")"
measured=()
for quantity in "${quantities[@]}"; do
  for number in ${points[$quantity]//,/ }; do point "$quantity" "$number"; done
  tables "$quantity"
  plot "$quantity"
  # After each: what was measured is there when a later one fails.
  measured+=("$quantity")
  in_json >"$json"
done
say "JSON is in $json, plots are in $plots"
