# shellcheck shell=bash
# scripts/bench --queue [OPTION of meridian-bench-queue]...
#
# Measures messages that are enqueued, delivered to listeners and acknowledged, through the queue of one database, in a
# cluster of six processes whose primary region has three voters. The client runs on the same cores.
options=()
for argument in "$@"; do
  [[ $argument == --queue ]] || options+=("$argument")
done

# shellcheck source=scripts/lib/bench.sh
. "$MERIDIAN_ROOT/scripts/lib/bench.sh"

build_for_bench
use_folder
start_cluster "$meridian" cluster
"$bench-queue" --url "http://127.0.0.1:$port" "${options[@]}"
