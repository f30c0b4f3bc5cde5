# shellcheck shell=bash
# scripts/bench --watches [OPTION of meridian-bench-watches]...
#
# Measures 10,000 watches that are open at the gateway of one node of three, over four HTTP/2 connections: the memory that
# each takes of the process, its CPU while nothing changes, and how long a change of one key takes to all watches of
# it. The client runs on the same cores.
options=()
for argument in "$@"; do
  [[ $argument == --watches ]] || options+=("$argument")
done

# shellcheck source=scripts/lib/bench.sh
. "$MERIDIAN_ROOT/scripts/lib/bench.sh"

build_for_bench
use_folder
start_cluster "$meridian" cluster 3
"$bench-watches" --url "http://127.0.0.1:$port" --process "$(pgrep -f "$folder/cluster/.*region-1-a")" "${options[@]}"
