# shellcheck shell=bash
# scripts/bench --https [--rounds N] [--quick] [OPTION of meridian-bench]...
#
# Compares TLS with none: a cluster whose nodes talk over mutual TLS and whose clients come over HTTPS, and a cluster where
# all is in the clear. Both are up, of the same build, and each cell is measured at one and the other in turn, N times [6].
# Prints medians, and the median of the ratios of the pairs, TLS by none: of throughput, and of the CPU time of all six nodes
# for an operation. Connections are kept, as clients keep them. The client encrypts on the same cores.

# shellcheck source=scripts/lib/bench.sh
. "$MERIDIAN_ROOT/scripts/lib/bench.sh"

comparison_options --https "$@"
have openssl || fail "openssl is missing: it makes the certificate"

build_for_bench
use_folder
start_cluster "$meridian" plain 3,2,1 --insecure
urls=("http://127.0.0.1:$port")
start_cluster "$meridian" https
urls+=("https://127.0.0.1:$port")

export MERIDIAN_CACERT=$folder/kv.crt
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=kv -addext subjectAltName=IP:127.0.0.1 \
  -addext basicConstraints=critical,CA:FALSE -keyout "$folder/kv.key" -out "$MERIDIAN_CACERT" 2>/dev/null ||
  fail "openssl made no certificate"
for config in "$folder"/https/*/node.toml; do
  printf '\n[[gateway.certificates]]\ncertificate = "%s"\nkey = "%s"\n' "$MERIDIAN_CACERT" "$folder/kv.key" >>"$config"
  MERIDIAN_BIN=$meridian "$MERIDIAN_ROOT/scripts/cluster" --dir "$folder/https" --timeout 60 \
    restart "$(basename "$(dirname "$config")")" >/dev/null
done

compare
