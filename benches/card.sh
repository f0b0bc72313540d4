#!/usr/bin/env bash
# What docs/gpu-runs.md asks of a card, in one go and in the order of what is worth most: is it right, is it fast, what does
# it draw. Every part has a limit of its own, and what it prints is under OUT whatever becomes of the next.
#
#   bash benches/card.sh HASHWATT OUT [SECONDS]     HASHWATT: built with the feature `cuda`; SECONDS for all, 600 by default
#
# Touches no clocks, limits or modes of the card.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
hashwatt=$(realpath "$1") out=$2 all=${3:-600}
mkdir -p "$out"
export RUST_BACKTRACE=1 XDG_STATE_HOME="$out/state"

# Usage: part NAME SECONDS COMMAND…    what is left of all the time, at most
part() {
  local name=$1 most=$2 left=$((all - SECONDS)) code
  shift 2
  [ "$left" -gt 5 ] || { echo "$name: no time left"; return; }
  local begun=$SECONDS
  timeout "$((most < left ? most : left))" "$@" >"$out/$name.txt" 2>&1 </dev/null
  code=$?
  echo "$name: exit code $code after $((SECONDS - begun)) s"
}
bench() { # NAME SECONDS MODEL arguments…
  local name=$1 most=$2 model=$3
  shift 3
  part "$name" "$most" "$hashwatt" bench --device cuda:0 --meter nvml --model "$model" --duty= --sustained 0 \
    --windows 5 --seconds 1 --out "$out/$name" "$@"
  grep -E 'at once|prefill' "$out/$name.txt" | head -n 4
}

part nvidia-smi 20 nvidia-smi -q
part doctor 30 "$hashwatt" doctor --device cuda
part selftest 180 "$hashwatt" selftest --device cuda
grep -v '^ok' "$out/selftest.txt" | head -n 40
for type in q8_0 q4_k fp8; do
  part "selftest-$type" 60 "$hashwatt" selftest --device cuda --model synthetic:llama-3.2-1b --quantization "$type" --filter parity
  tail -n 2 "$out/selftest-$type.txt"
done
part selftest-experts 60 "$hashwatt" selftest --device cuda --model synthetic:qwen1.5-moe-a2.7b --filter parity
bench 1b 60 synthetic:llama-3.2-1b --concurrency 1,64 --prefill 1024
bench 8b 80 synthetic:llama-3.1-8b --concurrency 1,128 --prefill 4096
bench 8b-full 90 synthetic:llama-3.1-8b --concurrency 512 --max-num-seqs 512 --input fixed:128 --output fixed:1024 --prefill 0
bench 8b-q8 60 synthetic:llama-3.1-8b --quantization q8_0 --concurrency 1 --prefill 0
bench 8b-q4 60 synthetic:llama-3.1-8b --quantization q4_k --concurrency 1 --prefill 0
bench 8b-fp8 60 synthetic:llama-3.1-8b --quantization fp8 --concurrency 1 --prefill 0
bench 1b-pdl 40 synthetic:llama-3.2-1b --concurrency 1 --prefill 0 --enable-pdl
bench 1b-eager 40 synthetic:llama-3.2-1b --concurrency 1 --prefill 0 --enforce-eager
bench moe 90 synthetic:qwen3-30b-a3b --concurrency 1,64 --prefill 1024
command -v compute-sanitizer >/dev/null &&
  part memcheck 90 compute-sanitizer --tool memcheck "$hashwatt" selftest --device cuda --filter experts
exit 0
