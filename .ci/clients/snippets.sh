#!/usr/bin/env bash
# Runs what the pages show, against a server on the port they name: snippets.sh PYTHON LITELLM_PYTHON NODE_FOLDER
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$1 litellm=$2 node=$3
work=$(mktemp -d)
server=""
cleanup() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

. "$root/.ci/serve.sh"
port_8000_is_free
serve_ready "$work/log" http://127.0.0.1:8000 "$HASHWATT" serve

# One file a block, named by its place and language.
awk -v dir="$work" '/^```[a-z]+$/ {n++; out = dir "/" 100 + n "." substr($0, 4); next} /^```$/ {out = ""} out {print > out}' \
  "$root/docs/clients.md" "$root/README.md"
ran=0
for block in "$work"/1??.*; do
  case $block in
    *.sh) run=(bash -euo pipefail "$block") ;;
    *.python) grep -q '^import litellm' "$block" && run=("$litellm" "$block") || run=("$python" "$block") ;;
    *.javascript) cp "$block" "$node/snippet.mjs" && run=(node --no-warnings "$node/snippet.mjs") ;;
    *) continue ;;
  esac
  echo "--- ${block##*/}: $(grep -m1 . "$block")"
  timeout 120 "${run[@]}" >"$work/out" 2>"$work/err" || { cat "$work/out" "$work/err" >&2; exit 1; }
  head -c 400 "$work/out"
  echo
  [ -s "$work/out" ] || { echo "nothing was answered" >&2; exit 1; }
  if grep -q '"error"' "$work/out"; then echo "it was refused" >&2; exit 1; fi
  ran=$((ran + 1))
done
[ "$ran" -ge 10 ] || { echo "only $ran snippets were found" >&2; exit 1; }
echo "$ran snippets ran"
