#!/usr/bin/env bash
# Creates a Cloud TPU, sets it up, and trains on all of its workers; docs/how-to/pods.md explains it.
#
#   export NAME=mome ZONE=us-east5-b
#   TYPE=v5litepod-16 launch/tpu_pod.sh create [--spot] [--network=N --subnetwork=S] ...
#   launch/tpu_pod.sh setup
#   launch/tpu_pod.sh run --config=sparse_32 --workdir=gs://BUCKET/run
#   launch/tpu_pod.sh watch | logs | status | stop | delete
#
# SLICES=N asks for N slices that train together. What create was given is remembered, and a TPU that
# was preempted is created and set up again so. SSH_FLAGS, such as --internal-ip, go to each ssh and
# scp; MOME_CACHE to the run. POLL seconds (30) lie between two looks, after MISSES (10) of which
# without an answer it gives up; RESTARTS (20) is how often it starts a run again; PATIENCE seconds
# (150) has the rest of a run to end that lost a worker. DRY_RUN=1 prints the commands instead.
set -euo pipefail

: "${NAME:?the name of the TPU, such as NAME=mome}"
: "${ZONE:?the zone, such as ZONE=us-east5-b}"
POLL=${POLL:-30} MISSES=${MISSES:-10} RESTARTS=${RESTARTS:-20} PATIENCE=${PATIENCE:-150}
PREEMPTED=75 # as mome_jax/training/multihost.py
TAKEN=10 # what functions return where the TPU went meanwhile; STATE says how
LEAVING=$((6 * MISSES)) # looks at a TPU on its way out, after which it counts as gone
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MEMORY=${XDG_STATE_HOME:-$HOME/.local/state}/mome_jax/pods/$ZONE/$NAME
read -ra SSH <<<"${SSH_FLAGS:-}"

say() { echo "$(date +%H:%M:%S) $*" >&2; }
fail() {
  echo "error: $*" >&2
  exit 1
}

call() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

queue() {
  local verb=$1
  shift
  call gcloud compute tpus queued-resources "$verb" "$NAME" --zone="$ZONE" "$@"
}

remember() { # FILE WORD...: as bash reads them again
  [[ -n ${DRY_RUN:-} ]] && return
  {
    mkdir -p "$MEMORY" && printf '%q ' "${@:2}" >"$MEMORY/$1.part" &&
      mv "$MEMORY/$1.part" "$MEMORY/$1"
  } || fail "$MEMORY/$1 cannot be written"
}

recall() { # FILE: its words, in the array WORDS
  WORDS=()
  [[ -f $MEMORY/$1 ]] || return 1
  eval "WORDS=($(<"$MEMORY/$1"))"
}

# What the TPU is: TYPE, VERSION, SLICES and FLAGS, as create was given them.
settings() {
  if recall create; then
    TYPE=${WORDS[0]} VERSION=${WORDS[1]} SLICES=${WORDS[2]}
    FLAGS=("${WORDS[@]:3}")
  else
    SLICES=${SLICES:-1} FLAGS=()
  fi
}

nodes() {
  if ((SLICES == 1)); then
    echo "$NAME"
  else
    seq -f "$NAME-%g" 0 $((SLICES - 1))
  fi
}

# The runtime of a type: cloud.google.com/tpu/docs/runtimes
version_of() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "TYPE=$1: no runtime is known for it; VERSION names one, such as VERSION=v2-alpha-tpuv6e" ;;
  esac
}

create() {
  local where
  if ((SLICES == 1)); then
    where=(--node-id="$NAME")
  else
    where=(--node-count="$SLICES" --node-prefix="$NAME")
  fi
  queue create --accelerator-type="$TYPE" --runtime-version="$VERSION" "${where[@]}" \
    ${FLAGS[@]+"${FLAGS[@]}"} || return
  [[ -n ${DRY_RUN:-} ]] || wait_for_it
}

# As Google tells it; GONE where there is no such TPU, UNKNOWN where nobody answers: what is only
# out of sight for a moment must not be created again.
state() {
  local told
  if told=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
    --format='value(state.state)' 2>&1); then
    tail -n 1 <<<"$told"
  elif [[ $told == *NOT_FOUND* ]]; then
    echo GONE
  else
    echo UNKNOWN
  fi
}

taken() { [[ $1 == SUSPENDED || $1 == FAILED || $1 == GONE ]]; }
going_away() { [[ $1 == SUSPENDING || $1 == DELETING ]]; } # its workers may answer still

# Whether it is taken, or has been on its way out for so many looks in a row that it hangs there.
gone() {
  if going_away "$1"; then LOOKS=$((${LOOKS:-0} + 1)); else LOOKS=0; fi
  taken "$1" || ((LOOKS >= LEAVING))
}

fail_taken() {
  fail "$NAME is $STATE; gcloud compute tpus queued-resources describe $NAME --zone=$ZONE \
says why, '$0 delete' removes it"
}

wait_for_it() {
  local before=
  while :; do
    STATE=$(state)
    [[ $STATE == "$before" ]] || say "$NAME: $STATE"
    [[ $STATE != ACTIVE ]] || return 0
    if [[ -n $before ]] && gone "$STATE"; then
      [[ $STATE == FAILED || $STATE == GONE ]] || return "$TAKEN" # it was there, between two looks
      fail_taken
    fi
    before=$STATE
    sleep "$POLL"
  done
}

# One worker alone would wait for the others for ever: always all, of all slices.
on_all() {
  local node code=0 jobs=()
  for node in $(nodes); do
    call gcloud compute tpus tpu-vm ssh "$node" --zone="$ZONE" --worker=all ${SSH[@]+"${SSH[@]}"} \
      --command="$1" &
    jobs+=($!)
  done
  for node in "${jobs[@]}"; do
    wait "$node" || code=$?
  done
  return "$code"
}

worker() { on_all "cd mome && launch/tpu_worker.sh $1"; }

# Sets WORKERS, 0 where that cannot be told.
count_workers() {
  local node count
  WORKERS=0
  for node in $(nodes); do
    count=$(gcloud compute tpus tpu-vm describe "$node" --zone="$ZONE" \
      --format='value(networkEndpoints.len())') || count=''
    if [[ ! $count =~ ^[0-9]+$ ]]; then
      WORKERS=0
      return
    fi
    WORKERS=$((WORKERS + count))
  done
}

# Sets WORKERS, and fails unless as many answer; a TPU is there before all of it takes ssh. One that
# was preempted never answers again: TAKEN.
check_workers() {
  [[ -n ${DRY_RUN:-} ]] && return
  local answered missed=0
  while :; do
    count_workers
    answered=$(on_all 'echo worker-is-here' 2>/dev/null | grep -c worker-is-here || true)
    STATE=$(state)
    if gone "$STATE"; then
      return "$TAKEN"
    elif going_away "$STATE"; then
      say "$NAME is $STATE"
    else
      ((WORKERS == 0)) || [[ $answered != "$WORKERS" ]] || return 0
      missed=$((missed + 1))
      ((missed < MISSES)) || fail "$answered of $WORKERS workers of $NAME answer; see: $0 status"
      say "$answered of $WORKERS workers answer ($missed of $MISSES)"
    fi
    sleep "$POLL"
  done
}

# Fails with what went wrong, or returns TAKEN where that was because the TPU went.
fail_unless_taken() {
  say "$1; is $NAME still there?"
  check_workers || return
  fail "$1"
}

copy_checkout() { # FOLDER to pack it in
  local node
  call tar -czf "$1/mome.tar.gz" --exclude='./.git' --exclude='./.venv*' --exclude='./runs' \
    --exclude='./data' --exclude='./build' --exclude='./dist' -C "$ROOT" . || fail "$ROOT cannot be packed"
  for node in $(nodes); do
    call gcloud compute tpus tpu-vm scp "$1/mome.tar.gz" "$node:" --zone="$ZONE" \
      --worker=all ${SSH[@]+"${SSH[@]}"} || return
  done
}

setup() {
  local folder code=0
  check_workers || return
  folder=$(mktemp -d) || fail 'no temporary folder; TMPDIR names another place'
  copy_checkout "$folder" &&
    on_all 'mkdir -p mome && tar -xzf mome.tar.gz -C mome && mome/launch/tpu_worker.sh setup' ||
    code=$?
  rm -rf "$folder"
  if ((code != 0)); then
    fail_unless_taken "$NAME is not set up on all workers; see above, then '$0 setup' again"
    return
  fi
  say "$NAME is set up"
}

# Starts a run of these arguments on all workers, detached, under a new id.
start() {
  local words=(env 'JAX_PLATFORMS=tpu,cpu')
  [[ -z ${MOME_CACHE:-} ]] || words+=("MOME_CACHE=$MOME_CACHE")
  words+=(.venv/bin/python -m mome_jax.main --distributed "$@")
  local before=''
  check_workers || return
  [[ ! -f $MEMORY/run ]] || before=$(<"$MEMORY/run")
  ID=$(date +%Y%m%d-%H%M%S)-$RANDOM
  remember run "$ID" "$@" # before it starts: whoever ends this script can still watch
  if ! worker "start $ID $(printf '%q ' "${words[@]}")"; then
    if [[ -n $before ]]; then echo "$before" >"$MEMORY/run"; else rm -f "$MEMORY/run"; fi
    stop_rest # where it did start it waits for the others, and is in the way of the next one
    fail_unless_taken 'the run was not started on all workers'
    return
  fi
  say "run $ID started on ${WORKERS:-all} workers; '$0 logs' shows its output, '$0 watch' comes back"
}

# Starts the remembered run again, on a new TPU where the old one is gone, also meanwhile.
restart() { # WHY same|new
  local why=$1 on=$2 code
  recall run || fail "no run was started on $NAME from here"
  while :; do
    RESTARTED=$((${RESTARTED:-0} + 1))
    if ((RESTARTED > RESTARTS)); then
      say "$why: not started again after $RESTARTS restarts; the checkpoints stay"
      return 1
    fi
    say "$why: restart $RESTARTED of $RESTARTS"
    code=0
    start_on "$on" "${WORDS[@]:1}" || code=$?
    ((code == TAKEN)) || return "$code"
    why="$NAME is $STATE" on=new
  done
}

start_on() { # same|new ARGUMENT...
  local code=0
  if [[ $1 == new ]]; then
    queue delete --force --quiet >/dev/null 2>&1 || true # one that is gone needs none
    create || code=$?
    ((code != TAKEN)) || return "$code"
    ((code == 0)) || fail "$NAME was not created again"
    setup || return
  fi
  start "${@:2}"
}

# Looks at the run until it ends; restarts what was preempted. Returns its exit code.
watch() {
  local lines answers now verdict missed=0
  while :; do
    sleep "$POLL"
    now=$(state)
    lines=$(worker status 2>/dev/null | grep "^mome-status [^ ]* $ID " || true)
    answers=$(grep -c . <<<"$lines" || true)
    verdict=silent
    ((answers < WORKERS)) || verdict=$(judge "$lines")
    if taken "$now"; then
      verdict=taken
    elif going_away "$now" && [[ $verdict == silent || $verdict == again || $verdict == lost ]]; then
      say "$NAME is $now"
      verdict=going # on what is being taken away nothing is started again
      ! gone "$now" || verdict=taken
    fi
    [[ $verdict == silent ]] || missed=0
    case $verdict in
      going) ;;
      taken) restart "$NAME is $now" new || return "$PREEMPTED" ;;
      again) restart 'asked to end, and saved' same || return "$PREEMPTED" ;;
      silent)
        missed=$((missed + 1))
        say "$answers of $WORKERS workers answer, $NAME is $now ($missed of $MISSES)"
        ((missed < MISSES)) ||
          fail "$NAME does not answer; the run may still be going: '$0 watch' looks again"
        ;;
      lost)
        stop_rest
        restart 'a worker lost its process' same || return 1
        ;;
      *)
        report "$verdict" "$lines"
        return "$verdict"
        ;;
    esac
  done
}

# going | again (all have saved) | lost (a process went without a word) | the exit code of all.
judge() {
  local state code going='' saved='' failed=''
  while read -r _ _ _ state code; do
    case $state-$code in
      running-*) going=1 ;;
      lost-*) echo lost && return ;;
      exit-0) ;;
      exit-"$PREEMPTED") saved=1 ;;
      *) failed=$code ;;
    esac
  done <<<"$1"
  if [[ -n $failed ]]; then
    echo "$failed"
  elif [[ -n $going ]]; then
    echo going
  elif [[ -n $saved ]]; then
    echo again
  else
    echo 0
  fi
}

# Ends what still runs of the run. In a collective a process does not hear SIGTERM before the
# heartbeat tells it that another one is gone, after 100 s (mome_jax/training/multihost.py).
stop_rest() {
  local deadline=$((SECONDS + PATIENCE))
  worker "stop $ID" >/dev/null 2>&1 || true
  until nothing_runs; do
    if ((SECONDS >= deadline)); then
      say "run $ID still goes on some workers after $PATIENCE s; it is killed there"
      worker "kill $ID" >/dev/null 2>&1 || true
      sleep "$POLL" # until the chips are free
      return
    fi
    sleep "$POLL"
  done
}

# Whether all workers answer and none of them runs the run, or Google ends it anyway.
nothing_runs() {
  local lines now
  lines=$(worker status 2>/dev/null | grep '^mome-status ' || true)
  if [[ $lines != *" $ID running "* ]] && (($(grep -c . <<<"$lines") >= WORKERS)); then
    return
  fi
  now=$(state)
  taken "$now" || going_away "$now"
}

report() {
  if [[ $1 == 0 ]]; then
    say "$NAME: done"
    return
  fi
  say "the run failed: $(sed -n '/ exit 0$/d; s/^mome-status \(.* exit .*\)/\1/p' <<<"$2" | head -n 4)"
  on_all 'tail -n 5 mome/run.log' >&2 || true
  stop_rest
}

# Outside of a restart a TPU that goes is an error.
first() {
  local code=0
  "$@" || code=$?
  ((code != TAKEN)) || fail_taken
  ((code == 0)) || exit "$code"
}

verb=${1:-}
[[ $# == 0 ]] || shift
[[ $verb == create ]] || settings
case $verb in
  create)
    SLICES=${SLICES:-1} TYPE=${TYPE:-v5litepod-16} FLAGS=("$@")
    VERSION=${VERSION:-$(version_of "$TYPE")}
    remember create "$TYPE" "$VERSION" "$SLICES" "$@"
    first create
    ;;
  setup) first setup ;;
  run)
    first start "$@"
    [[ -n ${DRY_RUN:-} ]] || watch
    ;;
  watch)
    recall run || fail "no run was started on $NAME from here"
    ID=${WORDS[0]}
    check_workers || restart "$NAME is $STATE" new || exit "$PREEMPTED"
    watch
    ;;
  logs) on_all 'tail -n 20 mome/run.log' ;;
  status)
    queue describe --format='value(state.state)'
    worker status
    ;;
  stop) worker stop ;; # each saves and ends with 75; a watch that goes on would start it again
  delete)
    queue delete --force --quiet
    [[ -n ${DRY_RUN:-} ]] || rm -rf "$MEMORY"
    ;;
  *)
    echo "usage: $0 create|setup|run|watch|logs|status|stop|delete (got '$verb')" >&2
    exit 2
    ;;
esac
