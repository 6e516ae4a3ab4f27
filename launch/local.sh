#!/usr/bin/env bash
# Runs yi_jax on this machine, in an environment that it makes itself.
#
#   launch/local.sh quickstart [--workdir=DIR] [flags of train]
#       real text -> vocabulary -> packed rows -> a small trained Yi
#   launch/local.sh test [pytest arguments]
#       the tests
#   launch/local.sh python -m yi_jax.VERB ...
#       any verb (add --help), or anything else in Python
#   launch/local.sh peer [COMMAND ...]
#       a command among the libraries yi_jax is measured against (.venv-peer)
#
# The first start installs the pinned requirements into .venv; later starts only
# compare a checksum. Relative paths are the caller's: the folder never changes.
#
#   YI_PYTHON=python3.12   the Python to build with (3.11, 3.12 or 3.13)
#   YI_VENV=DIR            where the environment lives, instead of .venv
#   YI_MALLOC=0            leave the settings of the memory allocator alone

set -euo pipefail

repo=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
venv=${YI_VENV:-$repo/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv
python=''  # found by find_python, only when something must be built

say() { printf 'yi_jax: %s\n' "$*" >&2; }

die() {
  say "$@"
  exit 1
}

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

# --- The environment ---------------------------------------------------------

# Exits with a reason unless this Python can build the environment.
readonly PROBE='
import sys
version = sys.version_info
if not (3, 11) <= version < (3, 14):
  sys.exit("is Python %d.%d" % version[:2])
try:
  import ensurepip, venv
except ImportError:
  sys.exit("has no venv (Debian, Ubuntu: apt install python3.%d-venv)"
           % version[1])
'

# flock(2) through Python, as macOS has no flock(1). The lock belongs to the
# open file, which the shell and pip share: it ends with the last of them, even
# by kill -9.
readonly LOCK='
import fcntl, sys
try:
  fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
  print("yi_jax: another start is installing; waiting for it", file=sys.stderr)
  fcntl.flock(9, fcntl.LOCK_EX)
'

# Of what pip prints: files of 10 MB and more, trouble, and the last step.
# shellcheck disable=SC2016  # awk's dollars
readonly PROGRESS='
/^ *(Downloading|Using cached) .*[MG]B\)$/ {
  size = substr($(NF - 1), 2)
  if ($NF == "MB)" && size + 0 < 10) next
  file = $(NF - 2)
  sub(/.*\//, "", file)
  split(file, part, "-")
  printf "  %s %s %s (%s %s\n", $1 == "Using" ? "cached" : "download",
    part[1], part[2], size, $NF
}
/^Installing collected packages/ { printf "  unpack %d packages\n", NF - 3 }
/Retrying \(Retry\(total=/ {
  match($0, /total=[0-9]+/)
  left = substr($0, RSTART + 6, RLENGTH - 6)
  printf "  no connection: pip tries again (%d tries left)\n", left
}
/^ *ERROR/
{ fflush() }
'

find_python() {
  local name reason tried=''
  local names=(python3.13 python3.12 python3.11 python3)
  [[ -z ${YI_PYTHON:-} ]] || names=("$YI_PYTHON")
  for name in "${names[@]}"; do
    if ! command -v -- "$name" >/dev/null; then
      reason='not found'
    elif reason=$("$name" -c "$PROBE" 2>&1); then
      python=$name
      return
    fi
    tried+="  $name: ${reason%%$'\n'*}"$'\n'
  done
  die "needs Python 3.11, 3.12 or 3.13 with venv. Looked for:
${tried}Get one, then start again:
  Debian, Ubuntu   apt install python3 python3-venv
  macOS            brew install python@3.12
  anywhere         uv python install 3.12, or pyenv install 3.12
or name one: YI_PYTHON=/path/to/python3.12 $0 ..."
}

# What the stamp of an installed requirements file says. The repository's place
# belongs to it, as the package is installed in editable mode.
key() { printf '%s %s\n' "$(cksum <"$repo/$1")" "$repo"; }

# ready VENV FILE...: whether all of these requirements are installed there.
ready() {
  local place=$1 file
  shift
  [[ -x $place/bin/python ]] || return 1
  for file; do
    [[ $(cat "$place/.installed-$file" 2>/dev/null) == "$(key "$file")" ]] ||
      return 1
  done
}

# environment VENV FILE...: makes it so; one start at a time.
environment() {
  local place=$1
  ready "$@" && return
  find_python
  mkdir -p -- "$place" || die "cannot make $place: name a place with YI_VENV"
  exec 9>"$place/.lock"
  "$python" -c "$LOCK"
  ready "$@" || build "$@"
  exec 9>&-
}

build() {
  local place=$1 reason file started=$SECONDS arguments=()
  shift
  if ! "$place/bin/python" -c '' 2>/dev/null; then
    say "making $place with $("$python" --version)"
    # An environment whose Python has gone is of no use to the next one.
    [[ ! -f $place/pyvenv.cfg ]] ||
      rm -rf -- "${place:?}"/{bin,lib,lib64,pyvenv.cfg}
    "$python" -m venv -- "$place" || die "$python -m venv failed, see above"
  elif ! reason=$("$place/bin/python" -c "$PROBE" 2>&1); then
    die "$place $reason: remove it, or name another place with YI_VENV"
  fi
  # An interrupted creation, or another tool's environment, may have no pip.
  "$place/bin/python" -m pip --version >/dev/null 2>&1 ||
    "$place/bin/python" -m ensurepip >/dev/null || die "no pip in $place"

  # No stamp while it is neither the old nor the new set of packages.
  rm -f -- "$place"/.installed-*
  for file; do
    arguments+=(-r "$repo/$file")
  done
  # The package itself; the peers' environment must not see it.
  [[ $1 != requirements.txt ]] || arguments+=(-e "$repo")
  say "installing $* into $place (gigabytes, so minutes; only once)"
  PYTHONUNBUFFERED=1 "$place/bin/python" -m pip install --no-input \
    --disable-pip-version-check --progress-bar=off "${arguments[@]}" 2>&1 |
    tee -- "$place/install.log" | awk "$PROGRESS" >&2 ||
    explain "$place/install.log"
  for file; do
    key "$file" >"$place/.installed-$file"
  done
  say "installed in $((SECONDS - started)) s"
}

# How pip words it when packages cannot be reached.
readonly NETWORK='name resolution|NewConnectionError|NameResolutionError|'\
'Timeout|ProxyError|SSLError|Network is unreachable|IncompleteRead|'\
'Connection (refused|reset|broken|aborted)'

# explain LOG: dies with what went wrong in pip, as far as its log tells.
explain() {
  local again='Start again and it goes on: what pip has cached is kept.'
  if grep -q 'No space left on device' "$1"; then
    die "the disk is full, of the environment or of ${TMPDIR:-/tmp}, where pip
  unpacks (TMPDIR names another place). $again"
  elif grep -Eqi "$NETWORK" "$1"; then
    die "the installation failed at the network: pip did not get a package from
  its index (log: $1). Check the connection, or pip's proxy and index settings.
  $again"
  fi
  tail -n 15 "$1" >&2
  die "the installation failed, with pip's last lines above (log: $1). $again"
}

# enter VENV: what `activate` does, and quiet libraries.
enter() {
  export VIRTUAL_ENV=$1 PATH=$1/bin:$PATH
  unset PYTHONHOME
  export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
  export GRPC_VERBOSITY=${GRPC_VERBOSITY:-ERROR}
}

# A training step on CPU writes fresh buffers of tens of MB. glibc would map each
# anew, and its page faults cost more than the arithmetic (docs/benchmarks.md):
# keep freed memory, in huge pages where the kernel grants them on request. The
# caches of small chunks are off because they hold the scraps that aligning a
# buffer leaves beside it, so that the next one of that size no longer fits in.
allocator() {
  [[ ${YI_MALLOC:-} != 0 && $(uname -s) == Linux ]] || return 0
  export MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX:-1}
  export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0}
  export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-1000000000000}
  export MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_:-67108864}
  local chunks=glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0
  export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:$chunks}
}

# --- What can be run ---------------------------------------------------------

signalled=''

# Runs a command so that a signal to this script reaches it: training saves and
# exits 0 on SIGTERM. In a process group of its own (set -m), as bash would let
# a plain background command ignore SIGINT.
forward() {
  local child='' pending='' status interrupted=1
  trap 'signalled=1 interrupted=1; hand_on TERM' TERM HUP
  trap 'signalled=1 interrupted=1; hand_on INT' INT
  set -m
  "$@" &
  child=$!
  set +m
  [[ -z $pending ]] || hand_on "$pending"
  # A signal ends `wait`, not the command: wait until nothing interrupted it.
  while [[ -n $interrupted ]]; do
    interrupted='' status=0
    wait "$child" || status=$?
  done
  trap - TERM HUP INT
  return "$status"
}

# hand_on SIGNAL: to the child of `forward`, or for it once it is there.
hand_on() {
  pending=$1
  [[ -n $child ]] || return 0
  pending=''
  kill "-$1" "$child" 2>/dev/null || :
}

# stop STATUS: ends a quickstart that did not reach its end.
stop() {
  [[ -z $signalled ]] || say 'stopped; the same command goes on from here'
  exit "$1"
}

quickstart() {
  local workdir=$repo/runs/quickstart flag train=() both=()
  both+=(--config=experiments/quickstart.py)
  for flag; do
    case $flag in
      --help | -h) usage && exit ;;
      --workdir=?*) workdir=${flag#*=} ;;
      --config.*=*) both+=("$flag") ;;  # data settings concern both verbs
      --*=*) train+=("$flag") ;;
      *) die "quickstart takes flags as --name=value, not '$flag'" ;;
    esac
  done
  SECONDS=0
  forward python -m yi_jax.prepare "${both[@]}" || stop $?
  forward python -m yi_jax.train "${both[@]}" --workdir="$workdir" \
    ${train[@]+"${train[@]}"} || stop $?
  [[ -z $signalled ]] || stop 0
  local place again
  printf -v place %q "$workdir"
  printf -v again %q "$0"
  cat <<END

Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. In $workdir:
  report.json     bits per byte by language, samples, tokens, seconds
  loss.png        the loss, step by step
  metrics.jsonl   the same as numbers, one line a logged step

Next:
  $again python -m yi_jax.generate --checkpoint=$place --prompt='The king said'
  $again python -m yi_jax.generate --checkpoint=$place --interactive
  $again python -m tensorboard.main --logdir=$place
END
}

tests() {
  local cores argument path
  cores=$(getconf _NPROCESSORS_ONLN)
  # Outside the repository pytest would collect the caller's folder.
  path=("$repo/tests")
  for argument; do
    [[ ! -e ${argument%%::*} ]] || path=()
  done
  # A later -n, the caller's, wins. Above four the memory of TensorFlow counts.
  exec python -m pytest -c "$repo/pyproject.toml" --rootdir="$repo" \
    -n "$((cores < 4 ? cores : 4))" --dist=worksteal "$@" \
    ${path[@]+"${path[@]}"}
}

main() {
  local verb=${1:-help}
  shift || true
  case $verb in
    quickstart | python)
      environment "$venv" requirements.txt
      enter "$venv"
      allocator
      if [[ $verb == python ]]; then exec python "$@"; fi
      quickstart "$@"
      ;;
    test)
      environment "$venv" requirements.txt requirements-dev.txt
      enter "$venv"
      tests "$@"
      ;;
    peer)
      environment "$repo/.venv-peer" requirements-peer.txt
      (($#)) || return 0
      enter "$repo/.venv-peer"
      allocator
      exec "$@"
      ;;
    help | --help | -h) usage ;;
    *) die "knows quickstart, test, python and peer, not '$verb'; try --help" ;;
  esac
}

main "$@"
