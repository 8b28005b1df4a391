#!/usr/bin/env bash
# Trains on a Cloud TPU VM, of one host or many, and goes on after preemptions.
#
#   launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [OPTION...] \
#       [-- --config=configs/pretrain_as2m.py --config.workdir=gs://... ...]
#
# Commands:
#   all      up, install, run, watch
#   up       creates the TPU VM or takes the one of this name, and waits for it;
#            one that was preempted is deleted and created again
#   install  copies the commit that is checked out to all workers, and installs
#   run      starts the training command on all workers, detached
#   watch    waits for the end; starts again what a signal, a crash or a
#            preemption ended, and stops at an error that only you can mend
#   logs     follows the log of one worker
#   status   of the TPU VM, and of the training on each worker
#   stop     SIGTERM to the training: it saves a checkpoint and ends
#   down     deletes the TPU VM (and the queued resource)
#
# Options:
#   --name=NAME              of the TPU VM, and of the queued resource
#   --zone=ZONE              e.g. us-west4-a
#   --project=PROJECT        default: gcloud's own
#   --accelerator-type=TYPE  e.g. v5litepod-16; needed by up and watch
#   --runtime-version=V      default: the one that fits the accelerator type
#   --queued                 through a queued resource, which waits for capacity
#   --spot                   a spot VM
#   --create-flag=FLAG       more for gcloud's create, e.g. --network=NET; again
#                            for each
#   --connect-flag=FLAG      more for gcloud's ssh and scp, e.g. --internal-ip
#   --track=alpha|beta       another release track of gcloud
#   --source=URL             a git repository instead of this checkout
#   --ref=REF                its branch or tag
#   --extras=tpu,gcs         extras of setup.cfg to install, with commas
#   --python=3.11            version of Python
#   --dir=audio_mae_jax      folder on the workers, in the home directory, which
#                            install makes anew
#   --env=NAME=VALUE         for the training; again for each. No secrets: it
#                            shows in process lists
#   --worker=0               whose log to follow
#   --poll=30                seconds between two looks
#   --max-resumes=20         how often watch starts the training again
#   --down-after             watch deletes the TPU VM when training is over,
#                            however it ended
#   --dry-run                prints every command, and runs none
#   --assume=STATE           with --dry-run: the TPU VM's state to begin with,
#                            e.g. READY or PREEMPTED; default: there is none

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/commands.sh
source "$here/commands.sh"

declare -A option+=(
  [name]='' [zone]='' [project]='' [accelerator-type]='' [runtime-version]=''
  [queued]=no [spot]=no [track]='' [source]='' [ref]='' [extras]='tpu,gcs'
  [python]=3.11 [dir]=audio_mae_jax [worker]=0 [poll]=30 [max-resumes]=20
  [down-after]=no [assume]='')
lists='create-flag connect-flag env'
create_flag=()
connect_flag=()
env=()
# Looks in a row at which a worker does not answer, until it is taken for lost.
most_silent=10

# gcloud_tpu tpu-vm|queued-resources VERB ARGUMENT...
gcloud_tpu() {
  local command=(gcloud)
  [[ -z ${option[track]} ]] || command+=("${option[track]}")
  command+=(compute tpus "$@" "--zone=${option[zone]}")
  [[ -z ${option[project]} ]] || command+=("--project=${option[project]}")
  "${how[@]}" "${command[@]}" --quiet
}

# What gcloud_tpu does with its command: `run`, or `ask ANSWER`.
how=(run)

# State of the resource of this name, nothing if there is none. A list, since
# `describe` fails alike for what is not there and for what it could not reach.
state_of() {
  local kind=$1 field=$2 how=(ask "$3") folder=nodes
  [[ $kind = tpu-vm ]] || folder=queuedResources
  gcloud_tpu "$kind" list "--filter=name~\"/$folder/${option[name]}\$\"" \
    "--format=value($field)"
}

# READY, ABSENT, or another state of the TPU VM or of its queued resource.
tpu_state() {
  local state
  if [[ ${option[queued]} = yes ]]; then
    state=${assumed/READY/ACTIVE}
    state=$(state_of queued-resources state.state "$state") || return
    if [[ $state != ACTIVE ]]; then
      echo "${state:-ABSENT}"
      return
    fi
    state=$(state_of tpu-vm state "$assumed") || return
    echo "${state:-ACTIVE_WITHOUT_VM}"
  else
    state=$(state_of tpu-vm state "$assumed") || return
    echo "${state:-ABSENT}"
  fi
}

# https://cloud.google.com/tpu/docs/runtimes
runtime_version() {
  case ${option[accelerator-type]} in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *)
      stop 'no runtime version is known for' \
        "--accelerator-type='${option[accelerator-type]}' (for v2-* to v6e-*" \
        'it is); give --runtime-version=VERSION.'
      ;;
  esac
}

create() {
  local version=${option[runtime-version]} flags=()
  version=${version:-$(runtime_version)}
  flags+=("--accelerator-type=${option[accelerator-type]}")
  [[ ${option[spot]} = no ]] || flags+=(--spot)
  flags+=("${create_flag[@]}")
  if [[ ${option[queued]} = yes ]]; then
    gcloud_tpu queued-resources create "${option[name]}" \
      "--node-id=${option[name]}" "--runtime-version=$version" "${flags[@]}"
  else
    gcloud_tpu tpu-vm create "${option[name]}" "--version=$version" \
      "${flags[@]}"
  fi
  assumed=READY
}

down() {
  if [[ ${option[queued]} = yes ]]; then
    gcloud_tpu queued-resources delete "${option[name]}" --force
  else
    gcloud_tpu tpu-vm delete "${option[name]}"
  fi
  assumed=''
}

pause() {
  dry || sleep "${option[poll]}"
}

up() {
  local state created=''
  require accelerator-type
  while :; do
    state=$(tpu_state)
    say "${option[name]}: $state"
    case $state in
      READY) return ;;
      ABSENT)
        [[ -z $created ]] || stop "${option[name]} was created and is gone."
        create
        created=yes
        ;;
      PREEMPTED | TERMINATED | SUSPENDED) down ;;
      FAILED)
        [[ -z $created ]] ||
          stop "the request failed; gcloud compute tpus queued-resources" \
            "describe ${option[name]} --zone=${option[zone]} says why."
        down
        ;;
      ACCEPTED | WAITING_FOR_RESOURCES | CREATING | PROVISIONING | ACTIVE | \
        STARTING | RESTARTING | REIMAGING | REPAIRING | SUSPENDING | DELETING)
        pause
        ;;
      *)
        stop "${option[name]} is $state, which needs you: mend it, or delete" \
          'it with the command "down".'
        ;;
    esac
  done
}

# on_workers WHICH COMMAND: in their home directory, through `how`.
on_workers() {
  gcloud_tpu tpu-vm ssh "${option[name]}" "--worker=$1" "--command=$2" \
    "${connect_flag[@]}"
}

# worker COMMAND...: of worker.sh, for `on_workers`.
worker() {
  quoted "${option[dir]}/launch/worker.sh" "$@"
}

install() {
  local folder state foreign archive=audio_mae_jax.tar.gz
  local clone fetch commands
  folder=$(quoted "${option[dir]}")
  state=$(quoted "${option[dir]}.run")
  foreign="error: ${option[dir]} is not from tpu_vm.sh; give --dir=OTHER."
  if [[ ${option[source]} ]]; then
    clone=(git clone --quiet --depth=1)
    [[ -z ${option[ref]} ]] || clone+=("--branch=${option[ref]}")
    fetch=$(quoted "${clone[@]}" "${option[source]}" "${option[dir]}")
  else
    dry || [[ -z $(git -C "$(dirname "$here")" status --porcelain) ]] ||
      say 'Only what is committed is copied; this checkout has changes.'
    scratch=${TMPDIR:-/tmp}/audio_mae_jax.XXXXXXXXXX
    if ! dry; then
      scratch=$(mktemp -d "$scratch")
      trap 'rm -r "$scratch"' EXIT
    fi
    run git -C "$(dirname "$here")" archive --format=tar.gz \
      "--output=$scratch/$archive" HEAD
    gcloud_tpu tpu-vm scp "$scratch/$archive" "${option[name]}:$archive" \
      --worker=all "${connect_flag[@]}"
    fetch="mkdir $folder; tar -xzf $archive -C $folder"
  fi
  commands=(
    'set -e'
    # Only what this script has made there is replaced.
    "if [ -e $folder ] && [ ! -e $state ]; then $(quoted echo "$foreign") >&2"
    'exit 1; fi'
    "mkdir -p $state"
    "if [ -e $folder/launch/worker.sh ]; then $(worker idle); fi"
    "rm -rf $folder"
    "$fetch"
    "$(worker install "${option[python]}" "${option[extras]}")")
  on_workers all "$(printf '%s; ' "${commands[@]}")"
}

start() {
  local variables=''
  ((${#env[@]} == 0)) || variables="$(quoted env "${env[@]}") "
  on_workers all "$variables$(worker start "${train[@]}")"
}

# Some may have started: the others would wait for those that did not.
run_training() {
  require_recipe
  require_workdir 'the TPU VM'
  start || {
    say 'Not all workers started.'
    on_workers all "$(worker end)" || true
    exit 1
  }
}

# A line "status=..." of each worker, also where nothing is installed.
statuses() {
  on_workers all "$(worker status) || echo status=none"
}

# step COMMAND: another command of this script, with the same options.
step() {
  "$BASH" "$0" "$1" "${given[@]}"
}

finish() {
  if [[ ${option[down-after]} = yes ]]; then
    down
  fi
}

give_up() {
  finish
  exit 1
}

# The exit codes of all workers of a run that is over; nothing while it runs.
# Fails when not all could be asked, unless the others say enough: one that runs,
# one that was told to stop or one with an error that another try would not mend.
exit_codes() {
  local answer failed='' how=(ask status=0)
  answer=$(statuses) || failed=yes
  answer=$(sed -n 's/^status=//p' <<< "$answer")
  [[ $answer != *running* ]] || return 0
  # shellcheck disable=SC2086  # one word for each worker
  [[ ! $failed || $answer = *stopped* || $(next_step $answer) = stop ]] &&
    echo "$answer"
}

# Installs where a worker has nothing, and starts the training on all. What goes
# wrong shows at the next looks, and counts then.
start_again() {
  if [[ $1 = *none* ]]; then
    step install || return 0
  fi
  step run || true
}

# Makes the TPU VM again. A loss counts once, however often there is no capacity
# for another; so does each request that fails, which waiting may not mend.
recover() {
  if [[ ! $lost || $1 = FAILED ]]; then
    count_resume "${option[name]} is $1" || give_up
  fi
  lost=yes
  step up || return 0
  lost=''
  assumed=READY
  start_again none
}

follow() {
  local codes=$1
  if [[ $codes = *stopped* ]]; then
    say 'The training was stopped; the same command goes on.'
    finish
    exit 75
  fi
  # shellcheck disable=SC2086  # one word for each worker
  case $(next_step $codes) in
    end)
      say 'The training came to its end.'
      finish
      exit
      ;;
    stop)
      say 'The training stopped at an error; the end of the log:'
      on_workers "${option[worker]}" \
        "tail -n 50 $(quoted "${option[dir]}.run/log")" || true
      give_up
      ;;
    again)
      count_resume "the workers ended with ${codes//$'\n'/, }" || give_up
      start_again "$codes"
      ;;
  esac
}

watch() {
  local state codes lost='' silent=0
  while :; do
    pause
    state=$(tpu_state) || continue
    case $state in
      READY) lost='' ;;
      ABSENT)
        [[ $lost ]] || stop "${option[name]} was deleted."
        ;;&
      ABSENT | PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        recover "$state"
        silent=0
        continue
        ;;
      *)
        say "${option[name]} is $state."
        continue
        ;;
    esac
    if codes=$(exit_codes); then
      silent=0
      [[ ! $codes ]] || follow "$codes"
      continue
    fi
    silent=$((silent + 1))
    say "Not all workers could be asked ($silent of $most_silent looks)."
    if ((silent == most_silent)); then
      silent=0
      count_resume 'a worker of a TPU VM that is READY does not answer' ||
        give_up
      start_again none
    fi
  done
}

main() {
  local action=${1-} state
  case $action in
    '' | --help)
      help
      exit
      ;;
    all | up | install | run | watch | logs | status | stop | down) ;;
    *)
      stop "there is no command '$action'; up, install, run, watch, all," \
        'logs, status, stop and down are. See --help.'
      ;;
  esac
  given=("${@:2}")
  parse "${given[@]}"
  assumed=${option[assume]}
  require name zone
  [[ ${option[name]} =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    stop "--name='${option[name]}' must be lower-case letters, digits and" \
      'dashes, and begin with a letter.'
  require_number poll max-resumes worker
  # It is deleted and made again.
  [[ ${option[dir]} =~ ^[A-Za-z0-9_][A-Za-z0-9_\ -]*$ ]] ||
    stop "--dir='${option[dir]}' must be the name of a folder in the home" \
      'directory: letters, digits, "_", "-" and spaces.'
  dry || command -v gcloud > /dev/null ||
    stop 'gcloud is not there: https://cloud.google.com/sdk/docs/install'
  case $action in
    all | watch)
      # What watch needs when it has to make the TPU VM again.
      require accelerator-type
      require_recipe
      require_workdir 'the TPU VM'
      ;;&
    all)
      step up
      step install
      step run
      say "To follow the log: $0 logs --name=${option[name]}" \
        "--zone=${option[zone]}"
      assumed=READY
      watch
      ;;
    run) run_training ;;
    watch)
      assumed=${assumed:-READY}
      watch
      ;;
    logs)
      on_workers "${option[worker]}" "$(worker log)"
      ;;
    status)
      assumed=${assumed:-READY}
      state=$(tpu_state)
      dry || echo "$state"
      [[ $state != READY ]] || statuses
      ;;
    stop)
      on_workers all "$(worker stop)"
      ;;
    *) "$action" ;;
  esac
}

main "$@"
