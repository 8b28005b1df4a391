#!/usr/bin/env bash
# Trains on the GPUs of this machine, and goes on after crashes and signals.
#
#   launch/multi_gpu.sh [OPTION...] -- --config=configs/pretrain_as2m.py \
#       [--config.FIELD=VALUE ...]
#
# One process drives all GPUs; with --processes, several share them out. A
# process that a signal ended is started again; when this script gets the signal
# (Ctrl-C, SIGTERM), it passes it on, waits for the checkpoint, and ends.
#
# Options:
#   --processes=1      processes, each with the same number of GPUs
#   --gpus=0,1,2,3     GPUs to use; default: all that nvidia-smi lists where
#                      there are several processes, else whatever JAX sees
#   --port=8476        where the processes meet, if there are several
#   --max-resumes=20   how often a run that did not end is started again
#   --grace=180        seconds that the others have when one process has ended
#   --python=python    the interpreter
#   --dry-run          prints every command, and runs none
#
# Exit status: 0 the run came to its end, 75 a signal stopped it, 1 an error.

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/commands.sh
source "$here/commands.sh"

declare -A option+=(
  [processes]=1 [gpus]='' [port]=8476 [max-resumes]=20 [grace]=180
  [python]=python)

parse "$@"
require_number processes port max-resumes grace
require_recipe
((option[processes] > 0)) || stop '--processes must be at least 1.'

gpus=()
if [[ ${option[gpus]} ]]; then
  IFS=, read -ra gpus <<< "${option[gpus]}"
elif ((option[processes] > 1)); then
  dry || command -v nvidia-smi > /dev/null ||
    stop 'nvidia-smi, which lists the GPUs, is not there: list them with' \
      '--gpus=0,1,...'
  list=$(ask "$(seq 0 $((option[processes] - 1)))" \
    nvidia-smi --query-gpu=index --format=csv,noheader)
  mapfile -t gpus <<< "$list"
fi
((${#gpus[@]} % option[processes] == 0)) ||
  stop "${#gpus[@]} GPUs cannot be shared out to" \
    "--processes=${option[processes]}; list as many as can with --gpus=0,1,..."

# The command of process $1.
command_of() {
  local share=$((${#gpus[@]} / option[processes]))
  # JAX leaves a quarter of the memory to other programs; here are none.
  local memory=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9} IFS=,
  command=(env "XLA_PYTHON_CLIENT_MEM_FRACTION=$memory")
  ((share == 0)) ||
    command+=("CUDA_VISIBLE_DEVICES=${gpus[*]:$1 * share:share}")
  command+=("${option[python]}" -m audio_mae_jax.main "${train[@]}")
  if ((option[processes] > 1)); then
    command+=("--coordinator=localhost:${option[port]}"
      "--num_processes=${option[processes]}" "--process_id=$1")
  fi
}

pids=()
signalled=''

forward() {
  signalled=yes
  ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2> /dev/null || true
}

# Starts all processes and waits for them; leaves their exit codes in `codes`.
attempt() {
  local i pid code left deadline=''
  codes=()
  pids=()
  for ((i = 0; i < option[processes]; i++)); do
    command_of "$i"
    show "${command[@]}"
    dry && continue
    "${command[@]}" 3>&- &
    pids+=("$!")
    # Before it was in `pids`, a signal was not passed on to it.
    if [[ $signalled ]]; then
      kill -TERM "$!" 2> /dev/null || true
      break
    fi
  done
  while ((${#pids[@]})); do
    left=()
    for pid in "${pids[@]}"; do
      if kill -0 "$pid" 2> /dev/null; then
        left+=("$pid")
        continue
      fi
      code=0
      wait "$pid" || code=$?
      codes+=("$code")
      deadline=${deadline:-$((SECONDS + option[grace]))}
    done
    pids=("${left[@]}")
    if ((${#pids[@]})); then
      # What waits for a process that is gone would wait for ever.
      if [[ $deadline ]] && ((SECONDS >= deadline)); then
        kill -KILL "${pids[@]}" 2> /dev/null || true
      fi
      sleep 0.2 || true  # Ctrl-C ends it as well
    fi
  done
}

trap forward INT TERM
while :; do
  [[ ! $signalled ]] || exit 75
  attempt
  case $(next_step "${codes[@]}") in
    end) exit ;;
    stop) exit 1 ;;
  esac
  [[ $signalled ]] || count_resume "the training ended with ${codes[*]}" ||
    exit 1
done
