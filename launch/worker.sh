#!/usr/bin/env bash
# The part of tpu_vm.sh that runs on each worker, in its checkout.
#
#   launch/worker.sh install PYTHON EXTRAS   Python, and the package with EXTRAS
#   launch/worker.sh start FLAG...           training, detached from this shell
#   launch/worker.sh status                  status=running, =CODE, =stopped,
#                                            =lost, =none
#   launch/worker.sh log                     the log, and what is added to it
#   launch/worker.sh end                     SIGTERM, and waits for the end
#   launch/worker.sh stop                    the same, not to be started again
#   launch/worker.sh idle                    fails while training runs
#
# Log, process id and exit code are in CHECKOUT.run, beside the checkout.

set -euo pipefail
cd "$(dirname "$0")/.."
run=$PWD.run
mkdir -p "$run"

# The images of TPU VMs have Python 3.10, and Ubuntu 22.04 no finished 3.11;
# uv brings one without touching the system's.
install() {
  command -v uv > /dev/null ||
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  PATH=$PATH:$HOME/.local/bin
  uv venv --quiet --python "$1" .venv
  uv pip install --quiet --python .venv --editable ".[$2]"
}

# The lock is held by the process that waits for the training, so that it is
# free again whatever ends it; a process id alone might be another's by now.
running() {
  ! flock --nonblock --shared "$run/lock" true
}

start() {
  exec 9> "$run/lock"
  # Not at once: `status` holds it for a moment.
  if ! flock --timeout 2 9; then
    echo 'It runs already.'
    return
  fi
  rm -f "$run/exit_code" "$run/pid" "$run/stopped"
  nohup setsid "$BASH" "$PWD/launch/worker.sh" supervise "$@" \
    < /dev/null >> "$run/log" 2>&1 &
  until [[ -e $run/pid ]]; do
    sleep 0.1
  done
}

supervise() {
  local code=0
  .venv/bin/python -m audio_mae_jax.main "$@" 9>&- &
  echo "$!" > "$run/pid"
  wait "$!" || code=$?
  echo "$code" > "$run/exit_code.partial"
  mv "$run/exit_code.partial" "$run/exit_code"
}

status() {
  if running; then
    echo status=running
  elif [[ -e $run/stopped ]]; then
    echo status=stopped
  elif [[ -e $run/exit_code ]]; then
    echo "status=$(< "$run/exit_code")"
  elif [[ -e $run/pid ]]; then
    echo status=lost
  else
    echo status=none
  fi
}

end() {
  if running; then
    kill -TERM "$(< "$run/pid")"
    flock --shared "$run/lock" true
  fi
}

case ${1-} in
  install | start | supervise | status | end) "$@" ;;
  log) tail -n 200 -F "$run/log" ;;
  stop)
    touch "$run/stopped"
    end
    ;;
  idle)
    if running; then
      echo 'error: training runs here: "watch" waits for it, "stop" ends it.' >&2
      exit 1
    fi
    ;;
  *)
    sed -n '/^# /,/^$/s/^#\( \|$\)//p' "$0" >&2
    exit 1
    ;;
esac
