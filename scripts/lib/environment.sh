# shellcheck shell=bash
# The environment of every script: where builds are cached, and how to get missing tools.
# To be sourced, after `set -euo pipefail`. Sourcing it sets variables and installs nothing.

MERIDIAN_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
MERIDIAN_CACHE=$HOME/.cache/meridian
MERIDIAN_MIN_RUST=1.90

say() { printf '%s\n' "meridian: $*" >&2; }
fail() {
  say "$*"
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Prints the header comment of the script that was started, as its help.
print_help() { print_help_of "$0"; }
# ... of a file that it sources: print_help_of FILE
print_help_of() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$1"; }

# The target folder lies outside of the checkout, so that a fresh clone (CI, a second work tree) builds only
# what changed. RocksDB is most of a cold build, and its objects outlive even the target folder in ccache:
# - CCACHE_BASEDIR and CCACHE_NOHASHDIR, since sources and objects lie in folders with hashes in their names;
# - CCACHE_COMPILERCHECK=content, since a fresh machine's compiler has another mtime and is the same.
# Every script has to set the same values, or they do not share the cache.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$MERIDIAN_CACHE/target}

use_ccache() {
  have ccache || return 0
  export CCACHE_DIR=${CCACHE_DIR:-$MERIDIAN_CACHE/ccache}
  export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$MERIDIAN_CACHE}
  export CCACHE_NOHASHDIR=${CCACHE_NOHASHDIR:-1}
  export CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-4G}
  export CCACHE_COMPILERCHECK=${CCACHE_COMPILERCHECK:-content}
  export CC=${CC:-ccache cc} CXX=${CXX:-ccache c++}
}
use_ccache

# CI and scripts/verify build exactly what Cargo.lock says.
# shellcheck disable=SC2034 # Used by the scripts that source this.
CARGO_FLAGS=()
if [[ -n ${CI:-} || -n ${MERIDIAN_LOCKED:-} ]]; then CARGO_FLAGS+=(--locked); fi

# The folder of built programs.
release_dir() { printf '%s\n' "$CARGO_TARGET_DIR/release"; }

# The folder of programs built as they are shipped.
dist_dir() { printf '%s\n' "$CARGO_TARGET_DIR/dist"; }

# Installs Debian packages: install_debian_packages WHY PACKAGE...
install_debian_packages() {
  local why=$1
  shift
  if ! have apt-get; then
    fail "$why. On this system, please install by hand what Debian calls: $*"
  fi
  local as_root=()
  if [[ $(id -u) != 0 ]]; then
    have sudo || fail "$why, and this user cannot install it. As root, run: apt-get install $*"
    as_root=(sudo)
    # Nobody is there to type a password.
    [[ -t 0 ]] || as_root=(sudo -n)
  fi
  say "$why: installing $*"
  if [[ -z ${MERIDIAN_APT_UPDATED:-} ]]; then
    "${as_root[@]}" apt-get update -qq >&2 || fail "apt-get update failed"
    export MERIDIAN_APT_UPDATED=1
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2 ||
    fail "apt-get could not install: $*"
}

# Whether bindgen will find a libclang. The folders are those where clang-sys looks on Linux and macOS; like it,
# this takes no libclang-cpp, which Debian has in a package of its own, for one.
have_libclang() {
  [[ -n ${LIBCLANG_PATH:-} ]] && return 0
  local folder library
  for folder in /usr/lib/llvm*/lib /usr/lib /usr/lib64 /usr/lib/*-linux-gnu /usr/local/llvm*/lib* \
    /opt/homebrew/opt/llvm*/lib /Library/Developer/CommandLineTools/usr/lib; do
    for library in "$folder"/libclang.so* "$folder"/libclang-*.so* "$folder"/libclang.dylib; do
      [[ -e $library && $library != */libclang-cpp.* ]] && return 0
    done
  done
  return 1
}

# A C and C++ compiler, make and libclang, for RocksDB.
need_compilers() {
  local missing=()
  have cc || missing+=(gcc)
  have c++ || missing+=(g++)
  have make || missing+=(make)
  have_libclang || missing+=(clang libclang-dev)
  # Only a convenience: not worth a password, nor a failure.
  if ! have ccache && have apt-get && [[ $(id -u) == 0 ]]; then missing+=(ccache); fi
  if [[ ${#missing[@]} -gt 0 ]]; then
    install_debian_packages "RocksDB needs a C++ compiler and libclang to build" "${missing[@]}"
    use_ccache
  fi
}

# Checks only: which toolchain is used is for the user to say.
need_rust() {
  local advice="get the stable toolchain as rust-lang.org says (with rustup), or update it: rustup update stable"
  if ! have cargo || ! have rustc; then fail "Rust is missing: $advice"; fi
  local version
  version=$(rustc --version) || fail "rustc does not run: $advice"
  version=${version#rustc }
  version=${version%%[ -]*}
  if [[ $(printf '%s\n' "$MERIDIAN_MIN_RUST" "$version" | sort -V | head -n 1) != "$MERIDIAN_MIN_RUST" ]]; then
    fail "Rust $version is too old, $MERIDIAN_MIN_RUST or later is needed: $advice"
  fi
}

# need_rust_component COMPONENT SUBCOMMAND
need_rust_component() {
  cargo "$2" --version >/dev/null 2>&1 || fail "cargo $2 is missing. Get it with: rustup component add $1"
}

# Everything that building Meridian takes.
need_to_build() {
  need_rust
  need_compilers
}

# Builds every program. All at once, since cargo compiles the crates of others anew for another choice of packages:
# what one script built, the next does not build again.
build_programs() {
  need_to_build
  if [[ ! -x $(release_dir)/meridian ]]; then
    say "building; the first build takes some minutes, RocksDB being most of it"
  fi
  cargo build --manifest-path "$MERIDIAN_ROOT/Cargo.toml" --release --workspace --bins "${CARGO_FLAGS[@]}"
}

# Builds `meridian`, and what measures it, as they are shipped: optimised over the bounds of crates, which costs every
# build some minutes that the tests do not have.
build_to_ship() {
  need_to_build
  if [[ ! -x $(dist_dir)/meridian ]]; then say "building what is shipped; the first time takes ten minutes and more"; fi
  cargo build --manifest-path "$MERIDIAN_ROOT/Cargo.toml" --profile dist --workspace --bin meridian --bin meridian-bench \
    --bin meridian-bench-queue --bin meridian-bench-watches "${CARGO_FLAGS[@]}"
}

need_node() {
  if ! have node || ! have npm; then
    install_debian_packages "tests run the Node client" nodejs npm
  fi
}

# denokv and what it stands on want Python 3.11 or later; a venv needs ensurepip, which Debian packs apart.
need_python() {
  if ! have python3 || ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    install_debian_packages "tests run the Python client" python3 python3-venv
  fi
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$(python3 --version) is too old: the Python client needs 3.11 or later"
}

# Installs the pinned clients of tests/clients once for each state of the pins, and exports MERIDIAN_DENO,
# MERIDIAN_NODE_MODULES and MERIDIAN_PYTHON.
need_clients() {
  need_node
  need_python
  local pins=$MERIDIAN_ROOT/tests/clients key folder
  key=$({
    cat "$pins/package.json" "$pins/package-lock.json" "$pins/requirements.txt"
    uname -sm
    python3 -c 'import sys; print(sys.version, sys.prefix)'
  } | cksum | tr ' ' '-')
  folder=$MERIDIAN_CACHE/clients/$key
  mkdir -p "$folder"
  # Two test runs may come here at once; the lock goes with the subshell's descriptor.
  (
    if have flock; then flock 9; fi
    [[ -e $folder/complete ]] || install_clients "$pins" "$folder"
  ) 9>"$folder.lock" || exit 1
  export MERIDIAN_DENO=$folder/node_modules/deno/deno
  export MERIDIAN_NODE_MODULES=$folder/node_modules
  export MERIDIAN_PYTHON=$folder/venv/bin/python
}

install_clients() {
  local pins=$1 folder=$2
  say "installing the pinned clients into $folder"
  rm -rf "$folder/node_modules" "$folder/venv"
  cp "$pins/package.json" "$pins/package-lock.json" "$folder/" || fail "cannot write to $folder"
  # npm is about to stop running install scripts, and asks before it does. Those here, of Deno and Bun, link the
  # binary of the platform's own package (a part of the lock file) to where it is looked for.
  (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) ||
    fail "npm could not install the clients"
  node "$folder/node_modules/deno/install.cjs" || fail "Deno's binary could not be put in place"
  (cd "$folder/node_modules/bun" && node install.js) || fail "Bun's binary could not be put in place"
  # Asked for their versions, so that a broken install shows here and not in some test.
  DENO_NO_UPDATE_CHECK=1 "$folder/node_modules/deno/deno" --version >/dev/null || fail "Deno does not run"
  "$folder/node_modules/.bin/bun" --version >/dev/null || fail "Bun does not run"
  (cd "$folder" && node -e 'require("@deno/kv").openKv') || fail "@deno/kv cannot be loaded"
  python3 -m venv "$folder/venv" || fail "no Python venv could be made"
  "$folder/venv/bin/python" -m pip install -q --disable-pip-version-check -r "$pins/requirements.txt" >&2 ||
    fail "pip could not install the Python client"
  "$folder/venv/bin/python" -c 'import denokv' || fail "denokv cannot be loaded"
  touch "$folder/complete"
}

# etcd, and etcdctl, which tells who leads.
need_etcd() {
  if ! have etcd || ! have etcdctl; then
    install_debian_packages "the comparison runs etcd" etcd-server etcd-client
  fi
}

# Builds the SQLite server for Deno KV once, and sets $denokv, its program. In a target folder of its own, and with
# its own profile: what it shares with Meridian it has with other features and versions.
DENOKV_VERSION=0.14.0
need_denokv() {
  local peers=$MERIDIAN_CACHE/peers
  denokv=$peers/denokv-$DENOKV_VERSION/bin/denokv
  if [[ -x $denokv ]]; then return; fi
  need_rust
  say "building denokv $DENOKV_VERSION, which takes many minutes"
  (
    unset "${!CARGO_PROFILE_@}" RUSTFLAGS
    # Not in the checkout, whose settings would hold.
    mkdir -p "$peers" && cd "$peers" &&
      CARGO_TARGET_DIR=$peers/target cargo install denokv --version "$DENOKV_VERSION" --locked \
        --root "${denokv%/bin/denokv}" >&2
  ) || fail "denokv could not be built"
  rm -rf "$peers/target"
}

# Installs cargo-fuzz once, into the cache.
CARGO_FUZZ_VERSION=0.13.1
need_cargo_fuzz() {
  local folder=$MERIDIAN_CACHE/cargo-fuzz-$CARGO_FUZZ_VERSION
  if [[ ! -x $folder/bin/cargo-fuzz ]]; then
    say "building cargo-fuzz $CARGO_FUZZ_VERSION"
    # Not in the checkout, whose settings would hold.
    (mkdir -p "$MERIDIAN_CACHE" && cd "$MERIDIAN_CACHE" && CARGO_TARGET_DIR=$folder/target cargo install cargo-fuzz --version "$CARGO_FUZZ_VERSION" \
      --locked --root "$folder" >&2) || fail "cargo-fuzz could not be built"
    rm -rf "$folder/target"
  fi
  PATH=$folder/bin:$PATH
}

# Installs cargo-deny once, into the cache. It looks at some hundred packages, so it need not be fast: not
# optimised, it is built in a part of the time.
CARGO_DENY_VERSION=0.20.2
need_cargo_deny() {
  local folder=$MERIDIAN_CACHE/cargo-deny-$CARGO_DENY_VERSION
  if [[ ! -x $folder/bin/cargo-deny ]]; then
    say "building cargo-deny $CARGO_DENY_VERSION, which takes some minutes"
    # Not in the checkout, whose settings would hold.
    (mkdir -p "$MERIDIAN_CACHE" && cd "$MERIDIAN_CACHE" && CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=0 \
      CARGO_TARGET_DIR=$folder/target cargo install cargo-deny --version "$CARGO_DENY_VERSION" \
      --locked --root "$folder" >&2) || fail "cargo-deny could not be built"
    rm -rf "$folder/target"
  fi
  PATH=$folder/bin:$PATH
}

need_shellcheck() {
  have shellcheck || install_debian_packages "verify checks the scripts" shellcheck
}
