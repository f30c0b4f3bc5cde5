# shellcheck shell=bash
# scripts/bench --peers [--quick | --full] [OPTION]...
#
# Compares Meridian with what people use instead: the SQLite server for Deno KV, denokv, which is one process, and
# etcd, three nodes with an fsync before each answer as it comes. Meridian is there twice: six nodes in three regions
# (topology 3,2,1), and three in one region, which is what etcd is. All are up at the same time, with their data below
# ~/.cache/meridian, and are measured in turn: each cell in short pieces, a round of all, N times, so that they meet the
# same minutes of the machine. The client, meridian-bench, runs on the same cores.
#
# Operations: write, strong-read, eventual-read (at etcd a serializable read; denokv has none), range (a strong read of
# 100 keys), sum (one number that all add to; at etcd a read and a check-and-set, made anew after a conflict, since it
# has no sums), contended (the same on one of 16 hot keys, at all). Each connection has one request in flight, over
# HTTP/1.1 as Deno speaks it; at etcd they are streams on at most four TCP connections, which takes less of its CPU than
# one each. Clients talk to the leader. At last an open loop: writes and strong reads at a fixed rate over 64
# connections, whose latencies count from when a request was due.
#
#   --quick               a minute and a half: five operations by 1 and 64 connections, 128 bytes, 2 rounds of 500 ms
#   (neither)             about twelve minutes: all by 1, 16, 64 and 256, 128 bytes; by 1 and 64, 4 KiB; 3 rounds of 1 s
#   --full                about fifty minutes: all by all, 6 rounds of 2 s
#   --operations A,B      only these
#   --connections N,N     other numbers
#   --value-bytes N,N     other sizes of values
#   --rounds N            other rounds
#   --duration N          milliseconds of a piece; a quarter as much goes before it and is not measured
#   --rate N              operations a second of the open loop [500]; 0: no open loop
#
# Prints a line for each server and cell with the medians of the rounds: operations a second, p50 and p99, microseconds
# of CPU of all processes of the server for an operation, with what they take when idle (the steadier figure where others
# use the machine), and the conflicts among all attempts. On the lines of the peers are the medians of the ratios of each round, Meridian by the
# peer: above 1 Meridian has more operations a second, or takes more CPU.
#
# The first run builds denokv from crates.io (many minutes; kept in ~/.cache/meridian/peers) and installs Debian's
# etcd-server and etcd-client. Where systemd runs, Debian starts a service etcd with it: systemctl disable --now etcd
size=default
operations=
connections=
value_bytes=
rounds=
duration=
rate=500
while [[ $# -gt 0 ]]; do
  case $1 in
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case $1 in
    --operations | --connections | --value-bytes | --rounds | --duration | --rate)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      ;;
  esac
  case $1 in
    --peers) ;;
    --quick | --full) size=${1#--} ;;
    --operations) operations=$2 && shift ;;
    --connections) connections=$2 && shift ;;
    --value-bytes) value_bytes=$2 && shift ;;
    --rounds) rounds=$2 && shift ;;
    --duration) duration=$2 && shift ;;
    --rate) rate=$2 && shift ;;
    *) fail "unknown argument for --peers: $1 (see --help)" ;;
  esac
  shift
done
all=write,strong-read,eventual-read,range,sum,contended
# As lists, of the small values and of the large ones.
case $size in
  quick) plan=("write,strong-read,range,sum,contended" "1,64" "1,64" 128 2 500) ;;
  default) plan=("$all" "1,16,64,256" "1,64" "128,4096" 3 1000) ;;
  full) plan=("$all" "1,16,64,256" "1,16,64,256" "128,4096" 6 2000) ;;
esac
IFS=, read -ra operations <<<"${operations:-${plan[0]}}"
IFS=, read -ra few <<<"${connections:-${plan[2]}}"
IFS=, read -ra connections <<<"${connections:-${plan[1]}}"
IFS=, read -ra value_bytes <<<"${value_bytes:-${plan[3]}}"
rounds=${rounds:-${plan[4]}} duration=${duration:-${plan[5]}}
for operation in "${operations[@]}"; do
  [[ ,$all, == *,$operation,* ]] || fail "--operations: there is no $operation, but $all"
done
for number in "${connections[@]}" "${value_bytes[@]}" "$rounds" "$duration"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || fail "expected whole numbers above 0, and not: $number"
done
[[ $rate =~ ^[0-9]+$ ]] || fail "--rate takes a whole number, and not: $rate"

need_etcd
need_denokv
# shellcheck source=scripts/lib/bench.sh
. "$MERIDIAN_ROOT/scripts/lib/bench.sh"
build_for_bench
use_folder

# ---- Servers

servers=(meridian-6 meridian-3 denokv etcd)
declare -A urls

# Whether the first node of a cluster leads the shard of the default database, as it is to.
first_leads() {
  local name address config
  IFS=$'\t' read -r name address config <"$folder/$1/nodes"
  urls[$1]=http://$address
  "$meridian" status --config "$config" 2>/dev/null |
    awk -v name="$name" '$1 == name && $3 == 1 && $4 == "leader" {found = 1} END {exit !found}'
}

# wait_for NAME CONDITION...
wait_for() {
  local deadline=$((SECONDS + 60))
  until "${@:2}"; do
    if ((SECONDS >= deadline)); then
      tail -n 20 "$folder/$1"/*log "$folder/$1"/*/log >&2 2>/dev/null || true
      fail "$1 is not ready after 60 s; above is the end of what it said"
    fi
    sleep 0.1
  done
}

start_denokv() {
  find_ports 0
  mkdir "$folder/denokv"
  # The token is in the environment. The other options are as they come.
  # shellcheck disable=SC2154 # need_denokv sets it.
  "$denokv" --sqlite-path "$folder/denokv/kv.sqlite" serve --addr "127.0.0.1:$port" >"$folder/denokv/log" 2>&1 &
  processes+=($!)
  urls[denokv]=http://127.0.0.1:$port
  wait_for denokv port_answers "$port"
}

port_answers() { ! port_is_free "$1"; }

etcd_leader() {
  local found
  found=$(ETCDCTL_API=3 etcdctl --endpoints "$1" endpoint status 2>/dev/null | awk -F', ' '$5 == "true" {print $1}')
  [[ -n $found ]] && urls[etcd]=http://$found
}

start_etcd() {
  local node members='' clients=''
  find_ports 0 1 2 100 101 102
  for node in 0 1 2; do
    members+=,$node=http://127.0.0.1:$((port + 100 + node))
    clients+=,127.0.0.1:$((port + node))
  done
  for node in 0 1 2; do
    mkdir -p "$folder/etcd/$node"
    # The quota is a bound that a long run with large values comes to. The rest is as it comes.
    etcd --name "$node" --data-dir "$folder/etcd/$node" --initial-cluster "${members#,}" --initial-cluster-state new \
      --listen-client-urls "http://127.0.0.1:$((port + node))" --quota-backend-bytes 8589934592 \
      --advertise-client-urls "http://127.0.0.1:$((port + node))" --logger zap --log-level error \
      --listen-peer-urls "http://127.0.0.1:$((port + 100 + node))" \
      --initial-advertise-peer-urls "http://127.0.0.1:$((port + 100 + node))" >"$folder/etcd/$node.log" 2>&1 &
    processes+=($!)
  done
  wait_for etcd etcd_leader "${clients#,}"
}

start_cluster "$meridian" meridian-6 3,2,1
start_cluster "$meridian" meridian-3 3
start_denokv
start_etcd
for server in meridian-6 meridian-3; do wait_for "$server" first_leads "$server"; done

# ask SERVER VALUE_BYTES OPTION...: meridian-bench. Values of one size are under keys of their own.
ask() {
  local protocol=(--http h1)
  if [[ $1 == etcd ]]; then protocol=(--protocol etcd --http h2); fi
  "$bench" --url "${urls[$1]}" "${protocol[@]}" --keys 10000 --value-bytes "$2" --key-prefix "bench-$2" "${@:3}" \
    2>>"$folder/stderr"
}

say "loading the keys"
for server in "${servers[@]}"; do
  # This, so that it waits until replicas have them.
  reads=strong-read
  [[ $server == denokv ]] || reads=strong-read,eventual-read
  for bytes in "${value_bytes[@]}" 128; do
    ask "$server" "$bytes" --operations "$reads" --connections 1 --duration 100ms --warmup 0s >"$folder/loaded" || {
      tail -n 3 "$folder/stderr" >&2
      fail "$server cannot be loaded"
    }
  done
done

# ---- Measuring

# sample SERVER OPERATION BYTES CONNECTIONS [RATE]: operations a second, p50, p99, microseconds of CPU for an operation,
# percentage of conflicts, percentage not sent, errors.
sample() {
  local row
  # It fails if nothing succeeded, which then is what was measured.
  row=$(ask "$1" "$3" --operations "$2" --connections "$4" --skip-load \
    --duration "${duration}ms" --warmup "$((duration / 4))ms" ${5:+--rate "$5"} \
    --cpu-of "$(pgrep -d, -f "$folder/$1/")" | grep "^| $2 ") || [[ -n $row ]] || return 1
  awk -F'|' '{
    printf "%s %s %s %.1f %.2f %.2f %s\n", $6, $8, $9, $13,
      $5 + $11 ? 100 * $11 / ($5 + $11) : 0, $5 + $12 ? 100 * $12 / ($5 + $12) : 0, $7
  }' <<<"$row"
}

# of SERVER FIELD: the median over the rounds.
of() { awk -v field="$2" '{print $field}' "$folder/samples.$1" | median; }

# ratio SERVER OTHER FIELD: the median of the ratios of each round.
ratio() {
  paste -d' ' "$folder/samples.$1" "$folder/samples.$2" |
    awk -v one="$3" -v other="$(($3 + 7))" '{print ($other > 0 ? $one / $other : 0)}' | median
}

# Whether a server has an operation.
has() { [[ $1 != denokv || $2 != eventual-read ]]; }

# rounds_of OPERATION BYTES CONNECTIONS [RATE]: what each server that has it did, into files.
rounds_of() {
  local round turn server
  rm -f "$folder"/samples.*
  for ((round = 0; round < rounds; round++)); do
    for turn in "${!servers[@]}"; do
      # Who is first may have the quieter moment.
      server=${servers[(turn + round) % ${#servers[@]}]}
      has "$server" "$1" || continue
      sample "$server" "$@" >>"$folder/samples.$server" || {
        tail -n 3 "$folder/stderr" >&2
        fail "$server does not answer to $1"
      }
    done
  done
  for server in "${servers[@]}"; do
    [[ -f $folder/samples.$server ]] || continue
    awk -v what="$server: $* " '{errors += $7} END {if (errors) print "errors of " what errors}' \
      "$folder/samples.$server" >>"$folder/errors"
  done
}

# ratios SERVER FIELD: of six nodes, and of three, by it; for cells of the table.
ratios() {
  local six=- three=-
  case $1 in
    denokv | etcd) six=$(printf '**%.3g**' "$(ratio meridian-6 "$1" "$2")") ;;
  esac
  if [[ $1 == etcd ]]; then three=$(printf '**%.3g**' "$(ratio meridian-3 "$1" "$2")"); fi
  printf '%s | %s' "$six" "$three"
}

# idle: milliseconds of CPU in a second of each, while nobody asks.
idle() {
  local server begun now
  declare -A before
  sleep 2
  begun=$(date +%s%N)
  for server in "${servers[@]}"; do before[$server]=$(cpu_ns "$folder/$server"); done
  sleep 3
  now=$(date +%s%N)
  for server in "${servers[@]}"; do
    awk -v server="$server" -v ns="$(($(cpu_ns "$folder/$server") - before[$server]))" -v time="$((now - begun))" \
      'BEGIN {printf "%s %.0f, ", server, 1000 * ns / time}'
  done | sed 's/, $//'
}

commit=$(git -C "$MERIDIAN_ROOT" describe --always --dirty 2>/dev/null) || commit=$("$meridian" --version)
printf 'Meridian %s; denokv %s; %s; %s cores; rounds: %s of %s ms\n\n' "$commit" "$DENOKV_VERSION" \
  "$(etcd --version | sed -n '1s/ Version://p')" "$(nproc)" "$rounds" "$duration"
printf 'Idle, milliseconds of CPU a second of all processes: %s\n\n' "$(idle)"
printf '| operation | bytes | connections | server | ops/s | p50 ms | p99 ms | CPU us/op | conflicts |'
printf ' ops/s: six / it | three / it | CPU: six / it | three / it |\n'
printf '|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n'
for bytes in "${value_bytes[@]}"; do
  counts=("${connections[@]}")
  ((bytes <= 128)) || counts=("${few[@]}")
  for operation in "${operations[@]}"; do
    # A number has the same size whatever the values have.
    [[ $operation != sum || $bytes == "${value_bytes[0]}" ]] || continue
    for count in "${counts[@]}"; do
      rounds_of "$operation" "$bytes" "$count"
      for server in "${servers[@]}"; do
        has "$server" "$operation" || continue
        printf '| %s | %s | %s | %s | %.0f | %.2f | %.2f | %.0f | %.0f %% | %s | %s |\n' "$operation" "$bytes" "$count" \
          "$server" "$(of "$server" 1)" "$(of "$server" 2)" "$(of "$server" 3)" "$(of "$server" 4)" "$(of "$server" 5)" \
          "$(ratios "$server" 1)" "$(ratios "$server" 4)"
      done
    done
  done
done

if ((rate > 0)); then
  printf '\nOpen loop, %s a second by 64 connections, 128 bytes:\n\n' "$rate"
  printf '| operation | server | ops/s | p50 ms | p99 ms | CPU us/op | not sent | p99: six / it | three / it |\n'
  printf '|---|---|---:|---:|---:|---:|---:|---:|---:|\n'
  for operation in write strong-read; do
    rounds_of "$operation" 128 64 "$rate"
    for server in "${servers[@]}"; do
      printf '| %s | %s | %.0f | %.2f | %.2f | %.0f | %.1f %% | %s |\n' "$operation" "$server" "$(of "$server" 1)" \
        "$(of "$server" 2)" "$(of "$server" 3)" "$(of "$server" 4)" "$(of "$server" 6)" "$(ratios "$server" 3)"
    done
  done
fi
if [[ -s $folder/errors ]]; then
  printf '\nNot every request succeeded:\n\n'
  sed 's/^/- /' "$folder/errors"
fi
