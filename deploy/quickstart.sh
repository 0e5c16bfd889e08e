#!/usr/bin/env bash
# Installs, builds and runs Conclave on the embedded model: one coordinator and
# two expert workers on this machine, or, where there are nvcc and an NVIDIA
# GPU, one coordinator that computes everything on the GPU.
#
#   deploy/quickstart.sh                      serves http://127.0.0.1:8080/v1 until Ctrl-C
#   deploy/quickstart.sh --once "PROMPT"      prints the reply and exits
#   options:
#     --port N       of HTTP, default 8080
#     --workers      two workers on the CPU, whatever there is
#     --no-install   packages are there already
#     --prefix DIR   tools and libraries lie in DIR/usr, into which packages were
#                    unpacked (dpkg -x PACKAGE.deb DIR); with --no-install for
#                    machines without network or root
set -euo pipefail
cd "$(dirname "$0")/.."
once=; prompt=; install=1; port=8080; workers=; prefix=
while [ $# -gt 0 ]; do
  case "$1" in
    --once) [ $# -ge 2 ] || { echo "quickstart: --once needs a prompt" >&2; exit 2; }
      once=1; prompt=$2; shift 2 ;;
    --no-install) install=; shift ;;
    --workers) workers=1; shift ;;
    --prefix) { [ $# -ge 2 ] && [ -d "$2/usr" ]; } ||
        { echo "quickstart: --prefix needs a folder with usr/ in it" >&2; exit 2; }
      prefix=$(cd "$2" && pwd); shift 2 ;;
    --port) [ $# -ge 2 ] || { echo "quickstart: --port needs a number" >&2; exit 2; }
      port=$2; shift 2 ;;
    -h|--help) sed -n '2,14p' "$0" | cut -c3-; exit 0 ;;
    *) echo "quickstart: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done
say() { printf '\033[1m[%s]\033[0m %s\n' "$1" "$2" >&2; }
free_port() {  # the first free loopback port from $1 on
  local p=$1
  while (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; do p=$((p + 1)); done
  echo "$p"
}

say 1/4 "packages"
[ -z "$install" ] || deploy/install.sh build
if [ -n "$prefix" ]; then
  machine=$(uname -m)-linux-gnu; libraries=$prefix/usr/lib/$machine
  export PATH=$prefix/usr/bin:$PATH CMAKE_PREFIX_PATH=$prefix/usr${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}
  export LD_LIBRARY_PATH=$libraries:$prefix/lib/$machine${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export PKG_CONFIG_PATH=$libraries/pkgconfig:$prefix/usr/share/pkgconfig PKG_CONFIG_SYSROOT_DIR=$prefix
  # OpenSSL keeps two headers beside those of CMake's find_package, in the folder of the architecture.
  export CPLUS_INCLUDE_PATH=$prefix/usr/include/$machine${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}
fi
[ -x "$(command -v nvcc)" ] || PATH=$PATH:/usr/local/cuda/bin
gpu=
if [ -z "$workers" ] && command -v nvcc >/dev/null && { [ -e /dev/nvidiactl ] || nvidia-smi -L >/dev/null 2>&1; }; then
  gpu=1
else
  workers=1
fi
say 2/4 "configure${gpu:+ with CUDA}"
preset=release; options=(-DCONCLAVE_BUILD_TESTS=OFF)
if [ -n "$gpu" ]; then
  preset=cuda
  # For this machine's GPU alone where it can be asked; 9.0 has instructions of its own.
  compute=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d . || true)
  [ "$compute" != 90 ] || compute=90a
  # Groups of GPUs work without NCCL.
  echo '#include <nccl.h>' | nvcc -x cu -E - >/dev/null 2>&1 || options+=(-DCONCLAVE_NCCL=OFF)
  [ -z "$compute" ] || options+=("-DCMAKE_CUDA_ARCHITECTURES=$compute-real")
fi
command -v ccache >/dev/null || options+=(-DCMAKE_CXX_COMPILER_LAUNCHER= -DCMAKE_CUDA_COMPILER_LAUNCHER=)
mkdir -p build
cmake --preset "$preset" "${options[@]}" >build/quickstart-configure.log 2>&1 ||
  { cat build/quickstart-configure.log >&2; echo "quickstart: configuring failed" >&2; exit 1; }
say 3/4 "build (about ten minutes with 2 cores the first time)"
targets=(conclave); [ -z "$workers" ] || targets+=(conclave-worker)
if [ -t 2 ]; then
  NINJA_STATUS='      [%f/%t %e s] ' ninja -C "build/$preset" "${targets[@]}" >&2
else
  NINJA_STATUS='      [%f/%t %e s] ' ninja -C "build/$preset" "${targets[@]}" |
    awk 'NR % 10 == 1 || /FAILED|error/' >&2
fi
conclave=build/$preset/bin/conclave; worker=build/$preset/bin/conclave-worker

say 4/4 "start: $([ -n "$workers" ] && echo "two workers and the coordinator" || echo "the coordinator, on the GPU")"
run=$(mktemp -d "${TMPDIR:-/tmp}/conclave.XXXXXX")
pids=()
cleanup() {
  trap - EXIT INT TERM
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$run"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
[ -z "$once" ] || port=$(free_port "$port")
serve=(serve --model deploy/models/qwen3.5-moe-tiny --listen "127.0.0.1:$port")
if [ -n "$workers" ]; then
  serve=(serve --config "$run/cluster.yaml")
  w0=$(free_port 7101); w1=$(free_port $((w0 + 1)))
  sed -e "s#127.0.0.1:8080#127.0.0.1:$port#; s#127.0.0.1:7101#127.0.0.1:$w0#; s#127.0.0.1:7102#127.0.0.1:$w1#" \
      -e "s#^model:.*#model: $PWD/deploy/models/qwen3.5-moe-tiny#" \
      deploy/config/two-workers.yaml >"$run/cluster.yaml"
  for name in w0 w1; do
    "$worker" --config "$run/cluster.yaml" --name "$name" >"$run/$name.log" 2>&1 &
    pids+=($!)
  done
fi
if [ -z "$once" ]; then
  "$conclave" "${serve[@]}" &
  pids+=($!)
  echo "      try: $conclave chat --url http://127.0.0.1:$port" >&2
  wait "${pids[-1]}"
  exit $?
fi
"$conclave" "${serve[@]}" >"$run/coordinator.log" 2>&1 &
pids+=($!)
ready=
for _ in $(seq 600); do
  if ! kill -0 "${pids[-1]}" 2>/dev/null; then break; fi
  if "$conclave" chat --url "http://127.0.0.1:$port" --check >/dev/null 2>&1; then ready=1; break; fi
  sleep 0.1
done
[ -n "$ready" ] || {
  echo "quickstart: the coordinator did not become ready within 60 s" >&2
  tail -n 20 "$run"/*.log >&2
  exit 1
}
"$conclave" chat --url "http://127.0.0.1:$port" --once "$prompt"
