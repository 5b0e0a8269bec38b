#!/usr/bin/env bash
# On one worker of a Cloud TPU, in the checkout; tpu_pod.sh calls it on all of them.
#
#   launch/tpu_worker.sh setup             an own Python, and what training needs
#   launch/tpu_worker.sh start ID WORD...  runs the words detached, once per ID
#   launch/tpu_worker.sh status            mome-status HOST ID running PID | exit CODE | lost PID
#   launch/tpu_worker.sh stop [ID]         SIGTERM: the run, or only one of this ID, saves and ends
#                                          with 75
#   launch/tpu_worker.sh kill ID           SIGKILL to all processes of this run
set -euo pipefail

PYTHON=${PYTHON:-3.12} # images have 3.10, which is too old
cd "$(dirname "${BASH_SOURCE[0]}")/.."

note() { # in one piece: whoever reads it meanwhile gets the old line or the new one
  echo "$*" >run.status.part
  mv run.status.part run.status
}

# Sets id, state and value; a process that went without a word, as in a reboot, is lost.
look() {
  id=- state=none value=-
  [[ -f run.status ]] && read -r id state value <run.status
  if [[ $state == running ]] && ! grep -qs tpu_worker "/proc/$value/cmdline"; then
    state=lost
  fi
}

setup() {
  local uv
  uv=$(command -v uv || true)
  if [[ -z $uv ]]; then
    python3 -m pip install --quiet --user uv
    uv=$(python3 -m site --user-base)/bin/uv
  fi
  [[ -x .venv/bin/python ]] || "$uv" venv --quiet --python "$PYTHON" .venv
  "$uv" pip install --quiet --python .venv/bin/python -r requirements-aot.txt 'jax[tpu]'
}

start() {
  exec 9>run.lock
  flock 9
  look
  if [[ $id == "$1" ]]; then # a connection that broke is tried again by gcloud
    echo "run $1 was started before"
    return
  fi
  if [[ $state == running ]]; then
    echo "error: $(hostname): run $id is still going; stop it first" >&2
    return 3
  fi
  setsid nohup "${BASH_SOURCE[0]}" hold "$@" </dev/null >>run.log 2>&1 9>&- &
  note "$1" running $!
}

hold() {
  local id=$1 child='' asked='' code=0
  shift
  trap 'asked=1; [[ -z $child ]] || kill -TERM "$child"' TERM
  { flock 8; } 8>run.lock # until start has noted this process
  "$@" &
  child=$!
  [[ -z $asked ]] || kill -TERM "$child"
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ends the first wait, not the run
    code=0
    wait "$child" || code=$?
  done
  note "$id" exit "$code"
}

stop() { # [ID]
  look
  if [[ $state == running && ${1:-$id} == "$id" ]]; then kill -TERM "$value"; fi
}

kill_all() { # ID
  look
  if [[ $state == running && $id == "$1" ]]; then
    kill -KILL -- "-$value" # hold leads a group of its own
    note "$id" exit 137
  fi
}

case ${1:-} in
  setup) setup ;;
  start) shift && start "$@" ;;
  hold) shift && hold "$@" ;;
  status)
    look
    echo "mome-status $(hostname) $id $state $value"
    ;;
  stop) shift && stop "$@" ;;
  kill) shift && kill_all "$1" ;;
  *)
    echo "usage: $0 setup|start|status|stop|kill (got '${1:-}')" >&2
    exit 2
    ;;
esac
