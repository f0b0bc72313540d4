# Sourced: starts a server for a stage and waits until it answers.

# Usage: serve_ready LOG URL COMMAND [ARG ...]    sets $server to its process; an empty URL is read from the banner
# into $url.
serve_ready() {
  local log=$1
  url=$2
  shift 2
  "$@" >"$log" 2>&1 &
  server=$!
  for _ in $(seq 600); do
    [ -n "$url" ] || url=$(sed -n 's|^  listen   \(http://[^/]*\)/v1.*|\1|p' "$log")
    [ -n "$url" ] && curl -fs -o /dev/null "$url/readyz" && return
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  cat "$log" >&2
  return 1
}

# Usage: port_8000_is_free    the pages' requests go there
port_8000_is_free() {
  if curl -s -o /dev/null http://127.0.0.1:8000/livez; then
    echo "port 8000 is taken; the pages' requests go there" >&2
    return 1
  fi
}

# Ends $server as an operator would; it must end well.
stop_server() {
  kill -TERM "$server"
  wait "$server" || { echo "the server ended with $? after SIGTERM" >&2; return 1; }
  server=""
}
