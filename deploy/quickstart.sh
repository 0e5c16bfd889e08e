#!/usr/bin/env bash
# Installs, builds and runs Conclave on the embedded model: one coordinator and
# two expert workers on this machine.
#
#   deploy/quickstart.sh                      serves http://127.0.0.1:8080/v1 until Ctrl-C
#   deploy/quickstart.sh --once "PROMPT"      prints the reply and exits
#   options: --no-install (packages are there already), --port N (HTTP, default 8080)
set -euo pipefail
cd "$(dirname "$0")/.."
once=; prompt=; install=1; port=8080
while [ $# -gt 0 ]; do
  case "$1" in
    --once) [ $# -ge 2 ] || { echo "quickstart: --once needs a prompt" >&2; exit 2; }
      once=1; prompt=$2; shift 2 ;;
    --no-install) install=; shift ;;
    --port) [ $# -ge 2 ] || { echo "quickstart: --port needs a number" >&2; exit 2; }
      port=$2; shift 2 ;;
    -h|--help) sed -n '2,7p' "$0" | cut -c3-; exit 0 ;;
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
say 2/4 "configure"
launcher=(); command -v ccache >/dev/null || launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=)
mkdir -p build
cmake --preset release -DCONCLAVE_BUILD_TESTS=OFF "${launcher[@]}" >build/quickstart-configure.log 2>&1 ||
  { cat build/quickstart-configure.log >&2; echo "quickstart: configuring failed" >&2; exit 1; }
say 3/4 "build (about ten minutes with 2 cores the first time)"
if [ -t 2 ]; then
  NINJA_STATUS='      [%f/%t %e s] ' ninja -C build/release conclave conclave-worker >&2
else
  NINJA_STATUS='      [%f/%t %e s] ' ninja -C build/release conclave conclave-worker |
    awk 'NR % 10 == 1 || /FAILED|error/' >&2
fi
conclave=build/release/bin/conclave; worker=build/release/bin/conclave-worker

say 4/4 "start: two workers and the coordinator"
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
w0=$(free_port 7101); w1=$(free_port $((w0 + 1)))
sed -e "s#127.0.0.1:8080#127.0.0.1:$port#; s#127.0.0.1:7101#127.0.0.1:$w0#; s#127.0.0.1:7102#127.0.0.1:$w1#" \
    -e "s#^model:.*#model: $PWD/deploy/models/qwen3.5-moe-tiny#" \
    deploy/config/two-workers.yaml >"$run/cluster.yaml"
for name in w0 w1; do
  "$worker" --config "$run/cluster.yaml" --name "$name" >"$run/$name.log" 2>&1 &
  pids+=($!)
done
if [ -z "$once" ]; then
  "$conclave" serve --config "$run/cluster.yaml" &
  pids+=($!)
  echo "      try: $conclave chat --url http://127.0.0.1:$port" >&2
  wait "${pids[2]}"
  exit $?
fi
"$conclave" serve --config "$run/cluster.yaml" >"$run/coordinator.log" 2>&1 &
pids+=($!)
ready=
for _ in $(seq 600); do
  if ! kill -0 "${pids[2]}" 2>/dev/null; then break; fi
  if "$conclave" chat --url "http://127.0.0.1:$port" --check >/dev/null 2>&1; then ready=1; break; fi
  sleep 0.1
done
[ -n "$ready" ] || {
  echo "quickstart: the cluster did not become ready within 60 s" >&2
  tail -n 20 "$run"/*.log >&2
  exit 1
}
"$conclave" chat --url "http://127.0.0.1:$port" --once "$prompt"
