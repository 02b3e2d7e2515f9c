#!/usr/bin/env bash
# A server that speaks MongoDB's protocol, on 127.0.0.1, for tests: SecantusDB, a Python package on the WiredTiger engine.
#
#   mongo.sh install       make its virtual environment in $HEADWATER_CACHE (default ~/.cache/headwater)
#   mongo.sh start DIR     start it with its data, log and pid file in DIR, and wait until it answers
#   mongo.sh stop DIR      stop it
#
# MONGO_PORT 27117. It is in no way a part of Headwater: only ever a process beside it. What is kept to so that the same
# code is right on a real MongoDB: docs/decisions/0012-a-redo-journal-in-mongodb.md.
set -euo pipefail

readonly PINS="SecantusDB==0.7.0b3 pymongo==4.20.0 dnspython==2.9.2 s2sphere==0.2.5 future==1.0.0 shapely==2.2.0
  numpy==2.4.6 python-dateutil==4.0.0 tzdata==2026.6"
readonly HOME_OF=${HEADWATER_CACHE:-$HOME/.cache/headwater}/secantusdb-0.7.0b3
readonly PORT=${MONGO_PORT:-27117} PATIENCE=60

die() { echo "mongo.sh: $*" >&2; exit 1; }

install() {
  [[ -e $HOME_OF/installed ]] && return
  mkdir -p "$HOME_OF"
  exec 9>"$HOME_OF/lock"
  flock -w 300 9 || die "another installation does not come to its end"
  [[ -e $HOME_OF/installed ]] && return
  python3 -m venv --clear "$HOME_OF/venv"
  # shellcheck disable=SC2086 # a list of words
  "$HOME_OF/venv/bin/pip" install -q --disable-pip-version-check --only-binary :all: --no-deps $PINS
  touch "$HOME_OF/installed"
}

running() { [[ -s $1/mongo.pid ]] && tr '\0' ' ' 2>/dev/null <"/proc/$(<"$1/mongo.pid")/cmdline" | grep -qF "$1/data"; }

start() { # DIR
  install
  mkdir -p "$1/data"
  local dir
  dir=$(cd "$1" && pwd -P)
  running "$dir" && die "already running in $dir"
  cat >"$dir/server.py" <<'PY'
import signal, sys, threading
import secantus.transactions
from secantus import SecantusDBServer
from secantus.storage import Storage
# This version walks all replies that are kept for repeated writes at every write, and whole collections for a write that
# names its document by `_id` and asks for more. A short list keeps the one cheap; the other is given the `_id` alone, and
# whoever asks compares the rest.
secantus.transactions._RETRYABLE_RECORD_MAX = 256
plan = Storage._try_index_id_keys
def plan_by_id(self, db, coll, filter, **more):
    if filter and "_id" in filter and any(key.startswith("$") for key in filter):
        filter = {"_id": filter["_id"]}
    return plan(self, db, coll, filter, **more)
Storage._try_index_id_keys = plan_by_id
server = SecantusDBServer(host="127.0.0.1", port=int(sys.argv[1]), storage_path=sys.argv[2], cache_size="256M",
                          ttl_sweep_seconds=60.0, noop_heartbeat_seconds=10.0, sync_on_commit=False,
                          replica_set_name=None, require_auth=False, enable_test_commands=False)
ended = threading.Event()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: ended.set())
server.start()
ended.wait()
server.stop()
PY
  setsid "$HOME_OF/venv/bin/python" "$dir/server.py" "$PORT" "$dir/data" </dev/null >>"$dir/mongo.log" 2>&1 &
  echo $! >"$dir/mongo.pid"
  timeout "$PATIENCE" "$HOME_OF/venv/bin/python" - "$PORT" "$(<"$dir/mongo.pid")" <<'PY' || { tail "$dir/mongo.log" >&2; die "it does not answer"; }
import os, sys, time, pymongo
while os.path.exists(f"/proc/{sys.argv[2]}"):
    try:
        pymongo.MongoClient("127.0.0.1", int(sys.argv[1]), serverSelectionTimeoutMS=500).admin.command("ping")
        sys.exit(0)
    except pymongo.errors.PyMongoError:
        time.sleep(0.1)
sys.exit("it has ended")
PY
}

stop() { # DIR
  local dir
  dir=$(cd "$1" && pwd -P)
  running "$dir" || return 0
  local pid
  pid=$(<"$dir/mongo.pid")
  kill -TERM "$pid"
  for _ in $(seq 300); do
    running "$dir" || break
    sleep 0.1
  done
  running "$dir" && kill -KILL "$pid"
  rm -f "$dir/mongo.pid"
}

case ${1:-} in
  install) install ;;
  start | stop) [[ $# == 2 ]] || die "usage: mongo.sh install | start DIR | stop DIR"; "$1" "$2" ;;
  *) die "usage: mongo.sh install | start DIR | stop DIR" ;;
esac
