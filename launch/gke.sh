#!/usr/bin/env bash
# Trains on TPU slices or GPU nodes of a GKE cluster, as a JobSet.
#
#   launch/gke.sh --name=NAME --image=IMAGE --accelerator=LABEL [OPTION...] \
#       -- --config=configs/pretrain_as2m.py --config.workdir=gs://... ...
#
# It fills in launch/gke_jobset.yaml and hands it to kubectl. The JobSet starts
# again after preemptions, crashes and lost nodes, and stops at an error that
# only you can mend. The same command then goes on: it takes the place of a JobSet
# of this name that has ended, and leaves one alone that has not.
#
# Options:
#   --name=NAME             of the JobSet
#   --image=IMAGE           built from launch/Dockerfile
#   --accelerator=LABEL     tpu-v5-lite-podslice, tpu-v6e-slice, tpu-v5p-slice,
#                           tpu-v4-podslice; nvidia-h100-80gb, nvidia-l4, ...
#   --chips=4               TPU chips or GPUs of a node
#   --topology=4x4          of a TPU slice, as its node pool has it
#   --slices=1              TPU slices
#   --nodes=1               GPU nodes
#   --spot                  nodes of a spot pool
#   --namespace=default
#   --service-account=default  of Kubernetes, which may read and write the data
#   --env=NAME=VALUE        for the training; again for each. No secrets: they
#                           show in the manifest
#   --max-restarts=20       how often the JobSet starts again
#   --grace=120             seconds from SIGTERM to SIGKILL; spot nodes have less
#   --port=8476             where the processes on GPU nodes meet
#   --dry-run               prints every command and the manifest, and runs none

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/commands.sh
source "$here/commands.sh"

declare -A option+=(
  [name]='' [image]='' [accelerator]='' [chips]=4 [topology]='' [slices]=1
  [nodes]=1 [spot]=no [namespace]=default [service-account]=default
  [max-restarts]=20 [grace]=120 [port]=8476)
lists='env'
env=()
# Nodes of one run come minutes apart, and pull an image of gigabytes each. Pods
# that give up by then would use up the restarts.
added+=(--wait_s=1800)

# The words as JSON strings with commas.
json() {
  local word list=''
  for word; do
    word=${word//\\/\\\\}
    list+=", \"${word//\"/\\\"}\""
  done
  printf '%s' "${list:2}"
}

# map NAME VALUE...: a JSON object; the values are JSON already.
map() {
  local list=''
  while (($#)); do
    list+=", $(json "$1"): $2"
    shift 2
  done
  printf '{%s}' "${list:2}"
}

# Like json; Kubernetes would read $(NAME) as a variable.
literal() {
  # shellcheck disable=SC2016  # nothing is to expand
  local word words=() reference='$(' plain='$$('
  for word; do
    words+=("${word//"$reference"/"$plain"}")
  done
  json "${words[@]}"
}

parse "$@"
require name image accelerator
require_number chips slices nodes max-restarts grace port
require_recipe
require_workdir 'the pod'
[[ ${option[name]} =~ ^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$ ]] ||
  stop "--name='${option[name]}' must be at most 52 lowercase letters, digits" \
    'and hyphens, a letter first and no hyphen last: Kubernetes wants that.'
if [[ ${option[accelerator]} = tpu* ]]; then
  ((option[nodes] == 1)) ||
    stop "--nodes=${option[nodes]} is for GPUs; the nodes of a TPU slice" \
      'follow from --topology and --chips.'
else
  [[ -z ${option[topology]} && ${option[slices]} = 1 ]] ||
    stop '--topology and --slices are for TPUs, and' \
      "--accelerator=${option[accelerator]} is none."
fi
dry || command -v kubectl > /dev/null ||
  stop 'kubectl is not there: https://kubernetes.io/docs/tasks/tools/'

for word in "${option[@]}" "${train[@]}" "${env[@]}"; do
  [[ $word != *[[:cntrl:]]* ]] ||
    stop "${word@Q} has a character that a manifest cannot hold."
done

args=$(literal "${train[@]}")
variables=()
for variable in "${env[@]}"; do
  [[ $variable = ?*=* ]] || stop "--env=$variable is not NAME=VALUE."
  variables+=("$(map name "$(json "${variable%%=*}")" \
    value "$(literal "${variable#*=}")")")
done
label=cloud.google.com
selector=()
if [[ ${option[accelerator]} = tpu* ]]; then
  [[ ${option[topology]} =~ ^[0-9]+(x[0-9]+)+$ ]] ||
    stop "--topology='${option[topology]}' must be the slice's, e.g. 4x4."
  total=$((${option[topology]//x/*}))
  ((option[chips] > 0 && total % option[chips] == 0)) ||
    stop "the $total chips of --topology=${option[topology]} do not make" \
      "nodes of --chips=${option[chips]}."
  hosts=$((total / option[chips]))
  slices=${option[slices]}
  device=google.com/tpu
  selector+=("$label/gke-tpu-accelerator" "$(json "${option[accelerator]}")")
  selector+=("$label/gke-tpu-topology" "$(json "${option[topology]}")")
  # A slice is a node pool, and each Job has one to itself.
  annotations=$(map alpha.jobset.sigs.k8s.io/exclusive-topology \
    "$(json "$label/gke-nodepool")")
  # The devices belong to root.
  security=$(map privileged true runAsUser 0)
else
  hosts=${option[nodes]}
  slices=1
  device=nvidia.com/gpu
  selector+=("$label/gke-accelerator" "$(json "${option[accelerator]}")")
  annotations=$(map)
  security=$(map)
  if ((hosts > 1)); then
    # By flags: JAX would need the Kubernetes client and the right to read pods.
    index="metadata.annotations['batch.kubernetes.io/job-completion-index']"
    field=$(map fieldRef "$(map fieldPath "$(json "$index")")")
    variables+=("$(map name "$(json PROCESS_ID)" valueFrom "$field")")
    host=${option[name]}-train-0-0.${option[name]}
    # shellcheck disable=SC2016  # Kubernetes puts the number in
    args+=", $(json "--coordinator=$host:${option[port]}" \
      "--num_processes=$hosts" '--process_id=$(PROCESS_ID)')"
  fi
fi
[[ ${option[spot]} = no ]] ||
  selector+=("$label/gke-spot" "$(json true)")
list=$(printf ', %s' "${variables[@]}")

declare -A values=(
  [NAME]=${option[name]} [IMAGE]=$(json "${option[image]}")
  [ANNOTATIONS]=$annotations [MAX_RESTARTS]=${option[max-restarts]}
  [SLICES]=$slices [HOSTS]=$hosts [GRACE]=${option[grace]}
  [SERVICE_ACCOUNT]=$(json "${option[service-account]}")
  [NODE_SELECTOR]=$(map "${selector[@]}") [ARGS]="[$args]" [ENV]="[${list:2}]"
  [SECURITY_CONTEXT]=$security [DEVICE]=$device [CHIPS]=${option[chips]})
template=$(sed '/^ *#/d' "$here/gke_jobset.yaml")
manifest=''
while [[ $template = *"\${"* ]]; do
  manifest+=${template%%"\${"*}
  template=${template#*"\${"}
  manifest+=${values[${template%%"}"*}]}
  template=${template#*"}"}
done
manifest+=$template

jobset=("${option[name]}" "--namespace=${option[namespace]}")
found=$(ask JobSet:Failed kubectl get jobset "${jobset[@]}" --ignore-not-found \
  '--output=jsonpath={.kind}:{.status.terminalState}')
case $found in
  '') ;;
  JobSet:?*)
    # Until its pods are gone: the new ones have the same names.
    ! dry || echo '# If there is one of this name that has ended:'
    run kubectl delete jobset "${jobset[@]}" --cascade=foreground
    ;;
  *)
    stop "the JobSet ${option[name]} is there and has not ended; it starts" \
      'again by itself. To change it, delete it first:' \
      "$(quoted kubectl delete jobset "${jobset[@]}")"
    ;;
esac

command=(kubectl create "--namespace=${option[namespace]}" -f -)
if dry; then
  printf "%s <<'MANIFEST'\n%s\nMANIFEST\n" "$(quoted "${command[@]}")" \
    "$manifest"
else
  run "${command[@]}" <<< "$manifest"
fi
