#!/usr/bin/env bash
# Keeps a worker running where no service manager does, such as in a batch job: runs `wanspec worker` with the arguments given, and again when
# the controller has sent it home, as it does before it is restarted. Ends with SIGTERM, which the worker hears first, or with a status that
# another start would not change: 1, nobody takes this worker or it failed; 2, bad arguments.

set -u
pause_s=5 # before it dials a controller that has just ended
child=

stop() {
  trap '' TERM INT
  if [ -n "$child" ]; then
    kill -TERM "$child" 2>/dev/null
    wait "$child"
  fi
  exit 143
}
trap stop TERM INT

while true; do
  wanspec worker "$@" &
  child=$!
  wait "$child"
  status=$?
  child=
  if [ "$status" -ne 0 ]; then
    exit "$status"
  fi
  echo "sent home; starting again in $pause_s s" >&2
  sleep "$pause_s" &
  wait $!
done
