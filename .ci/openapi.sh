#!/usr/bin/env bash
# Our description is true: valid, and what schemathesis sends by it finds no fault, no hang and nothing undescribed.
# openapi.sh target/release/hashwatt [SECONDS [SEED]]; in CI always the same seed, by hand another one finds more.
set -euo pipefail
binary=$(realpath "$1")
seconds=${2:-90}
seed=${3:-20261127}
cd "$(dirname "$0")/openapi"
. ../serve.sh
work=$(mktemp -d)
server=""
cleanup() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

python3 -m venv "$work/venv" 2>/dev/null || {
  apt-get update -qq
  apt-get install -y -qq python3-venv >/dev/null
  python3 -m venv "$work/venv"
}
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt

# A short context: what is asked at random ends soon.
HASHWATT_STATE_DIR=$work/state HASHWATT_ADMIN_LISTEN=none serve_ready "$work/log" "" \
  "$binary" serve --port 0 --max-model-len 256 \
  --model demo --model synthetic:minilm-tiny --model synthetic:reranker-tiny

curl -fs "$url/openapi.json" >"$work/openapi.json"
"$work/venv/bin/openapi-spec-validator" "$work/openapi.json"
"$work/venv/bin/python" narrow.py "$url" "$work/narrowed.json"

# A request that is not answered within 20 s is a hang: the longest answer here takes one.
"$work/venv/bin/schemathesis" --config-file schemathesis.toml run "$work/narrowed.json" --url "$url" \
  --max-time "$seconds" --seed "$seed" --request-timeout 20 --continue-on-failure --no-color --generation-database none

# That it reached what it should have: answers of every kind, and texts that were generated to their end.
curl -fs "$url/metrics" >"$work/metrics"
grep '^hashwatt_http_responses_total' "$work/metrics"
finished=$(awk '/^hashwatt_requests_finished_total.*"(stop|length)"/ {n += $2} END {print n + 0}' "$work/metrics")
echo "$finished generations came to their end"
[ "$finished" -ge 50 ] || { echo "too few: the description hides how to ask" >&2; exit 1; }
if grep -q '^hashwatt_http_responses_total{status="5' "$work/metrics"; then echo "a fault of ours" >&2; exit 1; fi
stop_server
