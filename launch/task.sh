#!/usr/bin/env bash
# One task of slurm.sbatch: runs the command that follows.
#
# srun tells the highest exit code of all tasks. One that is to stop the job
# becomes 254, higher than those of tasks that only lost the first.

set -uo pipefail
# A signal is sent to this shell as well, which has to outlive the command.
trap : TERM
"$@"
code=$?
case $code in
  1 | 126 | 127) exit 254 ;;
  *) exit "$code" ;;
esac
