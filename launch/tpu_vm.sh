#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one host or a pod slice, through queued resources.
#
#   export YI_TPU_NAME=yi YI_TPU_PROJECT=... YI_TPU_ZONE=us-east5-a
#   export YI_TPU_TYPE=v5p-256
#   launch/tpu_vm.sh keep --config=experiments/pretrain.py:yi_34b \
#       --workdir=gs://BUCKET/yi_34b
#
# `keep` does everything: it asks for the slice, waits, installs, trains, begins
# again when a spot slice is taken away or a host fails (the run continues from
# its checkpoint), and deletes the slice when the run is complete. By hand:
#
#   launch/tpu_vm.sh create         ask for the slice
#   launch/tpu_vm.sh wait           wait until it is there
#   launch/tpu_vm.sh install        copy this repository to all workers, install
#   launch/tpu_vm.sh run ARGS...    start yi_jax.train with ARGS on all workers
#   launch/tpu_vm.sh log            follow the log of worker 0
#   launch/tpu_vm.sh status         state of the slice and of the run
#   launch/tpu_vm.sh stop           SIGTERM to the run: it saves and ends (end
#                                   `keep` before, or it starts it again)
#   launch/tpu_vm.sh delete         give the slice back: it costs until then
#
# Needs gcloud, logged in. A run goes on when this terminal is closed.
#
#   YI_TPU_RUNTIME=...   software version of the VM, if not the usual one
#   YI_TPU_SPOT=0        a slice that is not taken away, at its full price
#   YI_RESTARTS=20       failures of the run after which `keep` gives up
#   YI_DRY_RUN=1         print the commands of gcloud instead

set -euo pipefail

repo=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
poll=${YI_TPU_POLL:-30}  # seconds between two looks
process='^python -m yi_jax.train'  # the run among the processes of a worker

say() { printf 'yi_jax: %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

# need NAME MEANING: dies unless the variable is set.
need() { [[ -n ${!1:-} ]] || die "set $1, $2"; }

call() {
  if [[ -n ${YI_DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# tpus WORDS...: gcloud compute tpus, in our project and zone.
tpus() {
  call gcloud compute tpus "$@" "--project=$YI_TPU_PROJECT" \
    "--zone=$YI_TPU_ZONE"
}

# on WORKER COMMAND: runs it in a shell there.
on() { tpus tpu-vm ssh "$YI_TPU_NAME" "--worker=$1" "--command=$2"; }

# The software version of the VM that goes with a type.
runtime() {
  if [[ -n ${YI_TPU_RUNTIME:-} ]]; then
    echo "$YI_TPU_RUNTIME"
    return
  fi
  case $YI_TPU_TYPE in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-*) echo tpu-ubuntu2204-base ;;
    *) die "set YI_TPU_RUNTIME, the software version for $YI_TPU_TYPE" ;;
  esac
}

create() {
  need YI_TPU_TYPE 'the kind and size of the slice, such as v5p-256 or v6e-8'
  local version spot=()
  version=$(runtime)
  [[ ${YI_TPU_SPOT:-1} == 0 ]] || spot=(--spot)
  tpus queued-resources create "$YI_TPU_NAME" "--node-id=$YI_TPU_NAME" \
    "--accelerator-type=$YI_TPU_TYPE" "--runtime-version=$version" \
    ${spot[@]+"${spot[@]}"}
}

# Prints ACTIVE, WAITING_FOR_RESOURCES, ..., or NONE. Fails when gcloud does for
# another reason than that there is none.
state() {
  local said
  if said=$(tpus queued-resources describe "$YI_TPU_NAME" \
    '--format=value(state.state)' 2>&1); then
    # gcloud may warn of something first.
    printf '%s\n' "${said##*$'\n'}"
  elif [[ $said == *NOT_FOUND* || $said == *'not found'* ]]; then
    echo NONE
  else
    printf '%s\n' "$said" >&2
    return 1
  fi
}

await() {
  local now before=''
  while true; do
    now=$(state) || die 'gcloud does not tell the state, see above'
    [[ $now == "$before" ]] || say "$YI_TPU_NAME: $now"
    before=$now
    case $now in
      ACTIVE) return ;;
      NONE) die "there is no $YI_TPU_NAME; launch/tpu_vm.sh create" ;;
      FAILED | SUSPEND*) return 1 ;;
    esac
    sleep "$poll"
  done
}

install() {
  local archive failed=''
  archive=$(mktemp -d)
  # What git knows of, as it is here: changes that are not committed too.
  (cd "$repo" && git ls-files -z --cached --others --exclude-standard |
    tar --null --files-from=- --ignore-failed-read -czf "$archive/yi_jax.tar.gz")
  tpus tpu-vm scp "$archive/yi_jax.tar.gz" "$YI_TPU_NAME:" --worker=all ||
    failed=1
  rm -r -- "$archive"
  [[ -z $failed ]] || return 1
  # Ubuntu 22.04 of the VM has Python 3.10 only.
  on all 'set -e
command -v python3.11 >/dev/null || {
  sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv; }
mkdir -p yi_jax && tar -xzf yi_jax.tar.gz -C yi_jax
yi_jax/launch/local.sh python -m pip install -q -r yi_jax/requirements-tpu.txt'
}

run() {
  (($#)) || die 'run needs the arguments of yi_jax.train: --config= --workdir='
  local arguments inner
  printf -v arguments ' %q' "$@"
  # JAX learns from the VM's metadata which worker it is. 75: saved and stopped.
  inner="cd && export YI_DISTRIBUTED=1 YI_STOPPED_EXIT=75
yi_jax/launch/local.sh python -m yi_jax.train$arguments >>run.log 2>&1
echo \$? >run.exit.part; mv run.exit.part run.exit"
  printf -v inner %q "$inner"
  on all "rm -f run.exit
nohup setsid bash -c $inner </dev/null >/dev/null 2>&1 &
echo \$! >run.pid"
}

# Prints the exit code of the run, `running`, or `none`. Looks for the process
# first: one that ends in between has left its code.
# shellcheck disable=SC2016  # the worker's dollars
outcome() {
  on 0 'alive=
kill -0 "$(cat run.pid 2>/dev/null)" 2>/dev/null && alive=1
if [ -e run.exit ]; then cat run.exit
elif [ -n "$alive" ]; then echo running
else echo none; fi'
}

# One life of the slice: until the run has ended or the slice is gone. Prints
# the exit code, or `gone`.
follow() {
  local now code
  while true; do
    now=$(state) || die 'gcloud does not tell the state, see above'
    [[ $now == ACTIVE ]] || { echo gone && return; }
    # A slice that is being taken away does not answer.
    code=$(outcome 2>/dev/null) || code=running
    case $code in
      running) ;;
      *) echo "$code" && return ;;
    esac
    sleep "$poll"
  done
}

keep() {
  (($#)) || die 'keep needs the arguments of yi_jax.train: --config= --workdir='
  [[ "$*" == *--workdir=*://* ]] ||
    die 'keep needs --workdir=gs://...: a slice that is taken away keeps nothing'
  local now code failures=0
  while true; do
    now=$(state) || die 'gcloud does not tell the state, see above'
    case $now in
      NONE) create ;;
      FAILED | SUSPEND*)
        say "$YI_TPU_NAME: $now; asking for another"
        delete
        continue
        ;;
    esac
    await || continue
    if [[ $(outcome 2>/dev/null) != running ]]; then
      # Fails on a slice that is just being taken away.
      if ! { install && run "$@"; }; then
        sleep "$poll"
        continue
      fi
      say 'training; launch/tpu_vm.sh log shows how it goes'
    fi
    code=$(follow)
    case $code in
      0)
        say 'complete; the slice is given back'
        delete
        return
        ;;
      gone) ;;
      75) sleep "$poll" ;;  # told to stop and saved: the slice is about to go
      2) die 'the run was refused: launch/tpu_vm.sh log says why. The slice is
  still there and costs: launch/tpu_vm.sh delete' ;;
      *)
        failures=$((failures + 1))
        say "the run has failed with exit code $code ($failures times)"
        ((failures < ${YI_RESTARTS:-20})) ||
          die 'it fails too often: launch/tpu_vm.sh log says why. The slice is
  still there and costs: launch/tpu_vm.sh delete'
        # The other workers may wait for the one that failed.
        on all "pkill -KILL -f '$process' || true"
        ;;
    esac
  done
}

delete() {
  tpus queued-resources delete "$YI_TPU_NAME" --force --quiet
}

main() {
  local verb=${1:-help}
  shift || true
  case $verb in
    help | --help | -h) usage && return ;;
    create | wait | install | run | log | status | stop | delete | keep) ;;
    *) die "knows create, wait, install, run, log, status, stop, delete and \
keep, not '$verb'; try --help" ;;
  esac
  need YI_TPU_NAME 'a name for the slice, of letters, digits and -'
  need YI_TPU_PROJECT 'the project that pays for it'
  need YI_TPU_ZONE 'a zone that has this kind of TPU, such as us-east5-a'
  [[ -n ${YI_DRY_RUN:-} ]] || command -v gcloud >/dev/null ||
    die 'no gcloud here; install the Google Cloud CLI'
  case ${YI_DRY_RUN:+dry-}$verb in
    dry-wait | dry-status)
      tpus queued-resources describe "$YI_TPU_NAME"
      ;;
    dry-keep) create && install && run "$@" && delete ;;
    wait) await || die "$YI_TPU_NAME is lost; delete it and create another" ;;
    log) on 0 'tail -n 100 -F run.log' ;;
    status) state && outcome ;;
    # All workers save after the same step when one is told to.
    stop) on all "pkill -TERM -f '$process'" ;;
    *) "$verb" "$@" ;;
  esac
}

main "$@"
