#!/usr/bin/env bash
# Starts the server by the README's own command and sends it the README's own requests: what it shows is what works.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
base=http://127.0.0.1:8000
work=$(mktemp -d)
server=""
cleanup() {
  [ -n "$server" ] && kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

. .ci/serve.sh
port_8000_is_free
command=$(sed -n 's/^\$ \(cargo run --release\) *#.*/\1/p' README.md)
[ -n "$command" ] || { echo "the README has no command that serves" >&2; exit 1; }
# Built already; cargo replaces itself by the program, so signals reach it.
serve_ready "$work/log" "$base" $command
curl -fs "$base/readyz"

# Every ```sh block of the README and of the API's page, each on its own.
awk -v dir="$work" '/^```sh$/ {n++; on=1; next} /^```$/ {on=0} on {print > (dir "/block" 100 + n ".sh")}' \
  "$root/docs/api.md" "$root/README.md"
blocks=0
for block in "$work"/block*.sh; do
  echo "--- $(head -n 1 "$block")"
  bash -euo pipefail "$block" >"$work/out"
  head -c 600 "$work/out"; echo
  if grep -q '"error"' "$work/out"; then echo "the README's request was refused" >&2; exit 1; fi
  grep -q '"choices"' "$work/out"
  blocks=$((blocks + 1))
done
[ "$blocks" -ge 3 ] || { echo "the pages show $blocks requests" >&2; exit 1; }
tail -n 3 "$work/out" | grep -q '^data: \[DONE\]' || { echo "the stream did not end with [DONE]" >&2; exit 1; }

# The curl line of the banner.
sed -n 's/^  try      //p; s/^             //p' "$work/log" >"$work/banner.sh"
bash -euo pipefail "$work/banner.sh" | grep -q '"choices"'

# Joules are told: in the answer, in its header, in the metrics.
curl -fs -D "$work/head" "$base/v1/completions" -H 'Content-Type: application/json' \
  -d '{"prompt": "PUE", "max_tokens": 8}' >"$work/out"
grep -q '"energy":{"joules":' "$work/out" || { echo "no usage.energy in the answer" >&2; exit 1; }
grep -qi '^x-energy-joules:' "$work/head"
curl -fs "$base/metrics" >"$work/metrics"
grep -q '^hashwatt_power_watts{' "$work/metrics"

stop_server
echo "smoke: passed"

# The operations and the demo model on this machine's processor.
cargo run --release --quiet -- selftest >"$work/selftest" || { grep FAILED "$work/selftest" >&2; exit 1; }
tail -1 "$work/selftest"
