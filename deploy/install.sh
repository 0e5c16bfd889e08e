#!/usr/bin/env bash
# Installs the packages that Conclave needs, from the distribution only.
#
#   deploy/install.sh build     compiler, CMake and libraries
#   deploy/install.sh test      the same, and what the tests need
#
# Debian 12 and Ubuntu 24.04. As root, or through sudo. What is there already
# is left alone; nothing is downloaded from anywhere else.
set -euo pipefail
what=${1:-}
case "$what" in build|test) ;; *) sed -n '2,9p' "$0"; exit 2 ;; esac

say() { printf '%s\n' "install: $*" >&2; }
[ -r /etc/os-release ] || { say "no /etc/os-release: cannot tell the distribution"; exit 1; }
. /etc/os-release
command -v apt-get >/dev/null || {
  say "${PRETTY_NAME:-this system} has no apt-get. Install what deploy/install.sh lists by hand, then use --no-install."
  exit 1
}

packages=(build-essential cmake ninja-build ccache pkg-config git ca-certificates
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  libabsl-dev libssl-dev libhwy-dev libutf8proc-dev libyaml-cpp-dev
  prometheus-cpp-dev libspdlog-dev libre2-dev libc-ares-dev zlib1g-dev)
case "${VERSION_ID:-}" in
  12) packages+=(libboost1.81-dev libboost-json1.81-dev) ;;
  *) packages+=(libboost-dev libboost-json-dev) ;;
esac
if [ "$what" = test ]; then
  packages+=(libgtest-dev libgmock-dev libbenchmark-dev python3 python3-venv
    clang clang-format openssl curl procps)
  case "${VERSION_ID:-}" in
    12) packages+=(libclang-rt-14-dev) ;;
    24.04) packages+=(libclang-rt-18-dev) ;;
  esac
fi

missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${Status}\n' "$p" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || { say "all ${#packages[@]} packages are there"; exit 0; }

root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { say "needs root or sudo to install: ${missing[*]}"; exit 1; }
  root=(sudo)
fi
say "${#missing[@]} packages of ${PRETTY_NAME:-this system}: ${missing[*]}"
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
  -o Dpkg::Use-Pty=0 -o APT::Status-Fd=3 "${missing[@]}" 3>&1 >/dev/null |
  awk -F: '/^(dl|pm)status:/ { p = int($3 / 10) * 10; if ($1 p != last) { last = $1 p;
    printf "install: %s %3d %%\n", ($1 == "dlstatus" ? "download" : "unpack  "), p > "/dev/stderr" } }'
say "done"
