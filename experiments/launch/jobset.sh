#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on GKE: fills in jobset_tpu.yaml or jobset_gpu.yaml and applies it.
set -euo pipefail

usage() {
  cat <<'END'
usage: jobset.sh tpu|gpu --name RUN --image IMAGE --config FILE[:ARG] --workdir /shared/DIR
         --claim CLAIM --nodes COUNT --accelerator TYPE [--topology AxB] [--chips COUNT]
         [--restarts COUNT] [--namespace NAME] [--context NAME] [--dry-run] [-- SETTING …]

  --image      has mambaout on its PATH, and FILE
  --claim      a persistent volume claim that all machines can write to; becomes /shared
  --nodes      machines
  --chips      of a machine (default: 4 TPUs, 8 GPUs)
  --topology   of TPUs only, as the node pool has it: all chips, COUNT times COUNT of them
  --restarts   how often all start again after one has ended (default: 50)
  --dry-run    prints what would be applied

See experiments/launch/README.md.
END
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

json() { # a string for YAML and for Kubernetes, which would replace $(NAME)
  local text=$1
  [[ $text != *[[:cntrl:]]* ]] || die "$text: an argument must be one line"
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//"\$("/"\$\$("}"
}

fill() { # name, text: replaces {{name}}
  template=${template//"{{$1}}"/"$2"}
}

kind=${1:-}
case $kind in
tpu | gpu) shift ;;
-h | --help | '')
  usage
  exit
  ;;
*) die "there is no kind $kind; there are tpu and gpu" ;;
esac
name='' image='' config='' workdir='' claim='' nodes='' accelerator='' topology='' chips=''
restarts=50 namespace='' context='' dry_run='' settings=()
while [ $# -gt 0 ]; do
  case $1 in
  --name | --image | --config | --workdir | --claim | --nodes | --accelerator | --topology | --chips | \
    --restarts | --namespace | --context)
    [ $# -gt 1 ] || die "$1 needs a value"
    printf -v "${1#--}" '%s' "$2"
    shift 2
    ;;
  --dry-run)
    dry_run=yes
    shift
    ;;
  -h | --help)
    usage
    exit
    ;;
  --)
    shift
    settings=("$@")
    break
    ;;
  *) die "there is no argument $1; settings such as --config.seed=1 come after --" ;;
  esac
done
for option in name image config workdir claim nodes accelerator; do
  [ -n "${!option}" ] || die "--$option is missing; jobset.sh --help shows what is needed"
done
[ -n "$chips" ] || case $kind in tpu) chips=4 ;; gpu) chips=8 ;; esac
for option in nodes chips restarts; do
  [[ ${!option} =~ ^(0|[1-9][0-9]*)$ ]] || die "--$option=${!option} is not a whole number"
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  die "--name=$name: small letters, digits and - only, at most 40, a letter first"
[[ $workdir = /shared/* ]] || die "--workdir=$workdir is not below /shared, where the machines see \
the files of each other; a bucket is for runs of one process only"
if [ "$kind" = tpu ]; then
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] ||
    die "--topology=$topology is not that of a slice, such as 4x4 or 2x2x4"
  [ $((${topology//x/*})) = $((nodes * chips)) ] ||
    die "--topology=$topology are $((${topology//x/*})) chips, but $nodes machines with $chips have \
$((nodes * chips)): give other --nodes or --chips"
else
  [ -z "$topology" ] || die "--topology is for tpu only"
fi

if [ "$kind" = tpu ]; then
  joined=--distributed
else
  joined="--distributed=$name-train-0-0.$name:1234,$nodes,"
fi
arguments=$(json train)
for argument in --config "$config" --workdir "$workdir" ${settings[@]+"${settings[@]}"} "$joined"; do
  arguments+=", $(json "$argument")"
done
[ "$kind" = tpu ] || arguments="${arguments%\"}\$(INDEX)\""

template=$(cat "$(dirname "${BASH_SOURCE[0]}")/jobset_$kind.yaml")
fill nodes "$nodes"
fill chips "$chips"
fill restarts "$restarts"
for option in name image claim accelerator topology; do
  fill "$option" "$(json "${!option}")"
done
fill arguments "[$arguments]" # last: it may hold anything
if [ -n "$dry_run" ]; then
  printf '%s\n' "$template"
  exit
fi
command -v kubectl >/dev/null || die "there is no kubectl here; install it, and get the credentials \
of the cluster: gcloud container clusters get-credentials"
printf '%s\n' "$template" |
  kubectl ${context:+--context="$context"} ${namespace:+--namespace="$namespace"} apply -f - || {
  echo "error: kubectl could not apply the JobSet, see above; where $name has ended, kubectl delete \
jobset $name first: the run then goes on from its last checkpoint" >&2
  exit 1
}
