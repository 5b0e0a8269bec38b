#!/usr/bin/env bash
# Creates a Cloud TPU pod, sets it up, and trains on all of its workers.
#
#   NAME=mome ZONE=us-east5-b TYPE=v5litepod-16 launch/tpu_pod.sh create
#   NAME=mome ZONE=us-east5-b launch/tpu_pod.sh setup
#   NAME=mome ZONE=us-east5-b launch/tpu_pod.sh run \
#       --config=sparse_32 --workdir=gs://BUCKET/run
#   NAME=mome ZONE=us-east5-b launch/tpu_pod.sh logs | status | stop | delete
#
# DRY_RUN=1 prints the commands instead.
set -euo pipefail

: "${NAME:?the name of the TPU, such as NAME=mome}"
: "${ZONE:?the zone, such as ZONE=us-east5-b}"
TYPE=${TYPE:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
RESTARTS=${RESTARTS:-3}
PREEMPTED=75 # as mome_jax/training/multihost.py
ROOT=$(cd "$(dirname "$0")/.." && pwd)

call() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() {
  local verb=$1
  shift
  call gcloud compute tpus tpu-vm "$verb" "$NAME" --zone="$ZONE" "$@"
}

# One worker alone would wait for the others for ever: always all of them.
on_all() {
  tpu ssh --worker=all --command="$1"
}

# How many workers the pod has, and how many of them answer.
check_workers() {
  [[ -n ${DRY_RUN:-} ]] && return
  local expected answered
  expected=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" \
    --format='value(networkEndpoints.len())')
  answered=$(on_all 'echo worker-is-here' 2>/dev/null | grep -c worker-is-here || true)
  if [[ $answered != "$expected" ]]; then
    echo "error: $answered of $expected workers of $NAME answer; see: $0 status" >&2
    exit 1
  fi
}

run() {
  local arguments attempt code
  arguments=$(printf '%q ' "$@")
  check_workers
  for ((attempt = 0; attempt <= RESTARTS; attempt++)); do
    code=0
    on_all "cd mome && set -o pipefail && .venv/bin/python -m mome_jax.main --distributed \
$arguments 2>&1 | tee -a run.log" || code=$?
    [[ $code == "$PREEMPTED" ]] || return "$code"
    echo "preempted, starting again ($((attempt + 1)) of $RESTARTS)" >&2
  done
  return "$PREEMPTED"
}

case ${1:-} in
  create) tpu create --accelerator-type="$TYPE" --version="$VERSION" ;;
  setup)
    call tar -czf /tmp/mome.tar.gz --exclude=.git --exclude='.venv*' --exclude=runs -C "$ROOT" .
    call gcloud compute tpus tpu-vm scp /tmp/mome.tar.gz "$NAME:" --zone="$ZONE" --worker=all
    check_workers
    on_all 'mkdir -p mome && tar -xzf mome.tar.gz -C mome && cd mome && python3 -m venv .venv &&
.venv/bin/pip install -q -r requirements.txt "jax[tpu]"'
    ;;
  run) shift && run "$@" ;;
  logs) on_all 'tail -n 20 mome/run.log' ;;
  status) tpu describe ;;
  stop) on_all 'pgrep -f "[m]ome_jax.main" | xargs -r kill -TERM' ;; # each saves and ends with 75
  delete) tpu delete ;;
  *)
    echo "usage: $0 create|setup|run|logs|status|stop|delete (got '${1:-}')" >&2
    exit 2
    ;;
esac
