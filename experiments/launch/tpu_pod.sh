#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Trains on a Cloud TPU pod: the same `mambaout train … --distributed` on all of its workers.
set -euo pipefail

usage() {
  cat <<'END'
usage: tpu_pod.sh VERB --name POD --zone ZONE [--project PROJECT] [--dry-run] …

  create   --accelerator TYPE --version IMAGE [--spot]
  install  [--setup COMMAND]           this checkout on all workers; COMMAND first, to mount /shared
  train    --config FILE --workdir DIR [-- SETTING …]     DIR: a folder that all workers see
  resume   what create, install and train take: whatever of it is needed, after a preemption
  logs     [--worker NUMBER]           follows the output; Ctrl-C ends only that
  stop                                 saves, so that train or resume goes on from there
  delete

--dry-run prints the commands instead of running them. See experiments/launch/README.md.
END
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

failed() { # what, next move
  printf 'error: %s failed, see above; %s\n' "$1" "$2" >&2
  exit 1
}

run() { # command and its arguments
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

quoted() { # words for another shell
  local text
  printf -v text '%q ' "$@"
  printf '%s' "${text% }"
}

on_workers() { # which, command
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" --command="$2"
}

required() { # options, without their --
  local option
  for option in "$@"; do
    [ -n "${!option}" ] || die "$verb needs --$option; tpu_pod.sh --help shows what else"
  done
}

create() {
  required accelerator version
  run gcloud compute tpus tpu-vm create "$name" "${place[@]}" \
    --accelerator-type="$accelerator" --version="$version" ${spot:+--spot} ||
    failed "creating $name" "where there is no capacity try another zone, or --spot"
}

install() {
  local folder
  folder=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf $(quoted "$folder")" EXIT
  run tar --exclude=./.git --exclude=./runs --exclude=./tests --exclude=./venv --exclude=./.venv \
    -czf "$folder/mambaout_jax.tar.gz" -C "$checkout" . ||
    failed "packing $checkout" "mend that and install again"
  run gcloud compute tpus tpu-vm scp "$folder/mambaout_jax.tar.gz" "$name:" "${place[@]}" \
    --worker=all || failed "copying to $name" "install again"
  # uv brings a Python that is new enough: that of the images is 3.10.
  on_workers all "set -e; ${setup:+$setup; }mkdir -p mambaout_jax; \
tar -xzf mambaout_jax.tar.gz -C mambaout_jax; python3 -m pip install -q --user uv; \
python3 -m uv venv -q --allow-existing --python 3.12 venv; \
python3 -m uv pip install -q --python venv/bin/python -e 'mambaout_jax[tpu,data]'" ||
    failed "installing on $name" "mend that and install again"
}

train() {
  required config workdir
  [[ $workdir != *://* ]] || die "$workdir is in a bucket, which is for runs of one process only: \
mount a folder that all workers see (install --setup) and give its path"
  [[ $workdir = /* ]] || die "--workdir=$workdir is relative, so that every worker has its own; give \
the path of a folder that all workers see"
  local command
  command=$(quoted ../venv/bin/mambaout train --config "$config" --workdir "$workdir" \
    ${settings[@]+"${settings[@]}"} --distributed)
  # In the background, so that it outlives the connection.
  on_workers all "cd mambaout_jax; if kill -0 \"\$(cat ../train.pid 2>/dev/null)\" 2>/dev/null; \
then echo 'a training is under way here' >&2; exit 1; fi; \
setsid nohup $command >>../train.log 2>&1 </dev/null & echo \$! >../train.pid" ||
    failed "starting on $name" "stop what still runs on its workers, wait for its end, train again"
}

resume() {
  required accelerator version config workdir
  local state
  if [ -n "$dry_run" ]; then
    state=
  else # one that was deleted has no state; another error is met again below, and told there
    state=$(gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format='value(state)') ||
      state=
  fi
  if [ "$state" != READY ]; then
    [ -z "$state" ] || delete
    create
    install
  fi
  train
}

logs() {
  on_workers "$worker" "tail -n 100 -F train.log" || failed "reading the log" "train first"
}

stop() {
  on_workers all "kill -TERM \"\$(cat train.pid)\"" ||
    failed "stopping" "logs tells whether a training has ended already"
}

delete() {
  run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet ||
    failed "deleting $name" "delete again: as long as it exists it costs"
}

verb=${1:-}
case $verb in
create | install | train | resume | logs | stop | delete) shift ;;
-h | --help | '')
  usage
  exit
  ;;
*) die "there is no verb $verb; there are create, install, train, resume, logs, stop and delete" ;;
esac
name='' zone='' project='' accelerator='' version='' spot='' setup='' config=''
workdir='' worker=0 dry_run='' settings=()
while [ $# -gt 0 ]; do
  case $1 in
  --name | --zone | --project | --accelerator | --version | --setup | --config | --workdir | --worker)
    [ $# -gt 1 ] || die "$1 needs a value"
    printf -v "${1#--}" '%s' "$2"
    shift 2
    ;;
  --spot | --dry-run)
    option=${1#--}
    printf -v "${option//-/_}" yes
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
required name zone
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
place=(--zone="$zone" ${project:+--project="$project"})
[ -n "$dry_run" ] || command -v gcloud >/dev/null ||
  die "there is no gcloud here; install it from cloud.google.com/sdk, and gcloud auth login"
"$verb"
