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
numbers=(1 16 64 256)
options=()
against=
while [[ $# -gt 0 ]]; do
  case $1 in
    --quick) numbers=(1 64) ;;
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
urls=("http://127.0.0.1:$port")
start_cluster "$meridian" this
urls+=("http://127.0.0.1:$port")

compare
