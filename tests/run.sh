#!/usr/bin/env bash
# Installs what the tests need, builds and runs them.
#
#   tests/run.sh            what CI runs: fuzzers, thread sanitizer (tests labelled
#                           concurrency), CUDA compile where nvcc is, peak memory
#                           of the release preset's programs (e2e.memory), then
#                           everything under address + undefined sanitizers
#   tests/run.sh --quick    everything once, without sanitizers
#   tests/run.sh --full     all presets: dev, release, fuzz, tsan, cuda, asan
#   options: --no-install
# The last lines are ctest's summary.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=ci; install=1
for a in "$@"; do
  case "$a" in
    --quick) mode=quick ;;
    --full) mode=full ;;
    --no-install) install= ;;
    -h|--help) sed -n '2,11p' "$0" | cut -c3-; exit 0 ;;
    *) echo "run.sh: unknown option $a (see --help)" >&2; exit 2 ;;
  esac
done
start=$SECONDS; options=
say() { printf '\n== [%3d s] %s\n' $((SECONDS - start)) "$*"; }

say "packages"
[ -z "$install" ] || deploy/install.sh test
export CCACHE_DIR=${CCACHE_DIR:-${HOME:-/tmp}/.cache/conclave-ccache}
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=5G
say "Python environment (tests only): build/venv"
venv=build/venv
if ! cmp -s tests/requirements.txt $venv/requirements.txt; then
  rm -rf $venv; python3 -m venv $venv
  $venv/bin/pip install -q --disable-pip-version-check -r tests/requirements.txt
  cp tests/requirements.txt $venv/requirements.txt
fi

# build PRESET [TARGET ...]
build() {
  local preset=$1; shift
  mkdir -p build
  cmake --preset "$preset" ${options:+"$options"} >"build/configure-$preset.log" 2>&1 ||
    { cat "build/configure-$preset.log"; exit 1; }
  NINJA_STATUS='[%f/%t %e s] ' ninja -C "build/$preset" "$@" >"build/build-$preset.log" 2>&1 &
  local pid=$!
  while kill -0 $pid 2>/dev/null; do
    sleep 1
    if [ $(((SECONDS - start) % 30)) = 0 ]; then tail -n 1 "build/build-$preset.log" | cut -c1-100; fi
  done
  wait $pid || { grep -A 20 -E 'FAILED|error' "build/build-$preset.log" | head -n 80; exit 1; }
  tail -n 1 "build/build-$preset.log" | cut -c1-100
}
check() { ctest --preset "$1" "${@:2}"; }

if [ $mode = quick ]; then
  say "dev: build"; build dev
  say "dev: tests"; check dev
  exit 0
fi
if [ $mode = full ]; then
  for preset in dev release; do
    say "$preset: build"; build $preset
    say "$preset: tests"; check $preset
  done
fi
say "fuzz: build (clang)"; build fuzz fuzzers
say "fuzz: ${CONCLAVE_FUZZ_SECONDS:-30} s each"; check fuzz -j 2
say "tsan: build the tests labelled concurrency"; build tsan concurrency_tests
say "tsan: tests"; check tsan -j 2
if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  # One architecture, except in --full: kernels take a minute each to compile.
  [ $mode = full ] || options=-DCMAKE_CUDA_ARCHITECTURES=90a-real
  say "cuda: build"; build cuda cuda_targets; options=
  say "cuda: tests"; check cuda
else
  say "cuda: no nvcc here, not compiled"
fi
if [ $mode = ci ]; then  # --full ran it above
  say "release: build the programs"; build release conclave conclave-worker
  say "release: peak memory"; check release -R '^e2e\.memory$'
fi
say "asan: build everything"; build asan
say "asan: tests"; check asan -j 2
