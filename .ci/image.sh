#!/usr/bin/env bash
# Builds the CPU image from a built binary, without a daemon or a registry, and runs it.
set -euo pipefail
binary=$(realpath "${1:?usage: image.sh PATH-OF-BINARY}")
root=$(cd "$(dirname "$0")/.." && pwd)
image=localhost/hashwatt:cpu
work=$(mktemp -d)
container=hashwatt-ci-$$
# A free port: the container shares the host's network.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
base=http://127.0.0.1:$port

need=()
for tool in buildah podman runc mmdebstrap curl; do command -v "$tool" >/dev/null || need+=("$tool"); done
if [ ${#need[@]} -gt 0 ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # uidmap and the policy file come as dependencies that --no-install-recommends would leave out.
  apt-get install -y -qq "${need[@]}" uidmap golang-github-containers-common ca-certificates >/dev/null
fi

storage=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
cleanup() {
  podman "${storage[@]}" --cgroup-manager cgroupfs rm -f "$container" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT

# Only what the binary needs: the C library and libgcc of the release it was built on.
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
PATH=$PATH:/usr/sbin:/sbin mmdebstrap --quiet --mode=root --variant=extract --include=libc6,libgcc-s1,ca-certificates,base-files \
  "$release" "$work/base.tar"
strip -o "$work/hashwatt" "$binary"
cp "$root/container/Containerfile" "$work/"
buildah "${storage[@]}" build --isolation chroot --layers=false --timestamp 0 --quiet -t "$image" -f "$work/Containerfile" "$work"
echo "image: $(podman "${storage[@]}" image inspect "$image" --format '{{.Size}}') bytes"

run() {
  podman "${storage[@]}" --runtime runc --cgroup-manager cgroupfs run --network host --pull never --ulimit nofile=1024:1024 --ulimit nproc=512:512 \
    --read-only --cap-drop all --security-opt no-new-privileges -e HASHWATT_PORT=$port "$@"
}

echo "--- without a key it refuses to start"
if run --rm "$image" >"$work/refused" 2>&1; then echo "it started without a key" >&2; exit 1; fi
cat "$work/refused"
grep -q -- '--api-key' "$work/refused"

echo "--- with a key it serves those who have it"
run -d --name "$container" -e HASHWATT_API_KEY=ci-secret-key "$image" >/dev/null
for _ in $(seq 100); do curl -fs -o /dev/null "$base/readyz" && break; sleep 0.2; done
curl -fs "$base/readyz" || { podman "${storage[@]}" logs "$container" >&2; exit 1; }
body='{"messages": [{"role": "user", "content": "What is hashprice?"}], "temperature": 0}'
status=$(curl -s -o "$work/denied" -w '%{http_code}' "$base/v1/chat/completions" -d "$body")
[ "$status" = 401 ] || { echo "without the key: $status" >&2; exit 1; }
curl -fs "$base/v1/chat/completions" -H 'Authorization: Bearer ci-secret-key' -d "$body" | tee "$work/answer"
echo
grep -q '"choices"' "$work/answer"

echo "--- SIGTERM drains it"
podman "${storage[@]}" --cgroup-manager cgroupfs --runtime runc stop -t 20 "$container" >/dev/null
code=$(podman "${storage[@]}" container inspect "$container" --format '{{.State.ExitCode}}')
[ "$code" = 0 ] || { echo "it ended with $code" >&2; exit 1; }
echo "image: passed"
