#!/usr/bin/env bash
# The operator's chain on a machine without a meter: bench, report, verdict, with honest labels.
# Then every ```sh block of docs/bench.md and docs/verdict.md, in a folder that has those reports.
set -euo pipefail
binary=$(realpath "${1:?usage: bench.sh PATH-OF-BINARY}")
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin" && ln -s "$binary" "$work/bin/hashwatt"
export PATH="$work/bin:$PATH"
cp "$root/benches/market.example.toml" "$work/market.toml"
cp "$root/benches/site.example.toml" "$work/site.toml"
cd "$work"

began=$SECONDS
hashwatt bench --quick --market market.toml --site site.toml | tee table.txt
seconds=$((SECONDS - began))
echo "bench --quick: $seconds s"
[ "$seconds" -lt 120 ] || { echo "bench --quick took two minutes or more" >&2; exit 1; }
grep -q EXAMPLE table.txt
grep -q UNKNOWN table.txt
for kind in json csv md html; do [ -s "report.$kind" ] || { echo "no report.$kind" >&2; exit 1; }; done
grep -q '"complete": *true' report.json
! grep -Eq '<script|(src|href)="?https?:' report.html || { echo "report.html loads something" >&2; exit 1; }
if hashwatt bench --quick --require-measured --out refused >/dev/null 2>refusal.txt; then
  echo "--require-measured took watts that nobody measured" >&2
  exit 1
fi
grep -Eq 'measured' refusal.txt

for page in bench verdict; do
  rm -f block*.sh
  awk '/^```sh$/ {n++; on=1; next} /^```$/ {on=0} on {print > ("block" n ".sh")}' "$root/docs/$page.md"
  for block in block*.sh; do
    [ -e "$block" ] || { echo "docs/$page.md shows no command" >&2; exit 1; }
    echo "--- docs/$page.md: $(head -n 1 "$block")"
    bash -euo pipefail "$block" >out.txt || { cat out.txt >&2; exit 1; }
  done
done
echo "bench: passed"
