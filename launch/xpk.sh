#!/usr/bin/env bash
# Trains on a GKE cluster that XPK made (https://github.com/AI-Hypercomputer/xpk).
#
#   launch/xpk.sh --cluster=CLUSTER --name=NAME --image=IMAGE --tpu-type=TYPE \
#       [OPTION...] \
#       -- --config=configs/pretrain_as2m.py --config.workdir=gs://... ...
#
# Options:
#   --cluster=CLUSTER    made by `xpk cluster create`
#   --name=NAME          of the workload
#   --image=IMAGE        built from launch/Dockerfile with --build-arg RUN_AS=0
#   --tpu-type=TYPE      e.g. v5litepod-16
#   --slices=1           TPU slices
#   --project=PROJECT    default: gcloud's own
#   --zone=ZONE          default: gcloud's own
#   --max-restarts=20    how often the workload starts again
#   --grace=120          seconds from SIGTERM to SIGKILL
#   --xpk-flag=FLAG      more for xpk, e.g. --spot or --env=NAME=VALUE; again for
#                        each
#   --dry-run            prints the command, and does not run it

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/commands.sh
source "$here/commands.sh"

declare -A option+=(
  [cluster]='' [name]='' [image]='' [tpu-type]='' [slices]=1 [project]=''
  [zone]='' [max-restarts]=20 [grace]=120)
lists='xpk-flag'
xpk_flag=()
# As in gke.sh: nodes come minutes apart.
added+=(--wait_s=1800)

parse "$@"
require cluster name image tpu-type
require_number slices max-restarts grace
require_recipe
require_workdir 'the pod'
dry || command -v xpk > /dev/null || stop 'xpk is not there: pip install xpk'

# XPK runs the command in a shell to which it sends SIGTERM; exec makes that
# shell the training. It starts again after 42 and 127 to 255 by itself, after
# others if told so.
flags=(
  "--cluster=${option[cluster]}"
  "--workload=${option[name]}"
  "--docker-image=${option[image]}"
  "--tpu-type=${option[tpu-type]}"
  "--num-slices=${option[slices]}"
  "--max-restarts=${option[max-restarts]}"
  --restart-on-exit-codes=2-125
  "--termination-grace-period-seconds=${option[grace]}"
  "--command=$(quoted exec python -m audio_mae_jax.main "${train[@]}")")
[[ -z ${option[project]} ]] || flags+=("--project=${option[project]}")
[[ -z ${option[zone]} ]] || flags+=("--zone=${option[zone]}")
run xpk workload create "${flags[@]}" "${xpk_flag[@]}"
