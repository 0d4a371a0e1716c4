#!/usr/bin/env bash
# Give a run a GPU of its own: make -j4 table2 SCALE=paper LAUNCH=data/bench/free_gpu.sh
#
# Usage:  data/bench/free_gpu.sh COMMAND ...   waits for a GPU, then runs COMMAND with it alone in
#         CUDA_VISIBLE_DEVICES. Teachers, trained, labeling or scored, take a whole GPU, which waits
#         until its students are done; up to STUDENTS (3) others share one.
#         GPUS: which to use, e.g. "0 1" (default: all that nvidia-smi lists).
# Locks lie in LOCKS (/tmp/free_gpu-USER); they go with the process, however that ends.
set -eu
gpus=${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader)}
locks=${LOCKS:-/tmp/free_gpu-$(id -un)}
slots=${STUDENTS:-3}
[ -n "$gpus" ] || { echo "error: free_gpu.sh: no GPU; set GPUS or leave LAUNCH away" >&2; exit 1; }
mkdir -p "$locks"

# take GPU SLOT ...: lock all these slots of a GPU, or none of them.
take() {
  local gpu=$1 fd held=()
  for slot in "${@:2}"; do
    exec {fd}> "$locks/$gpu-$slot"
    held+=("$fd")
    flock -n "$fd" || { for fd in "${held[@]}"; do exec {fd}>&-; done; return 1; }
  done
}

all=$(seq "$slots")
[ -n "$all" ] || { echo "error: free_gpu.sh: STUDENTS=$slots; at least 1 is needed" >&2; exit 1; }
case " $* " in *train_teacher.py*|*" --labels-only "*|*evaluate.py*/teacher-*) whole=yes ;; *) whole= ;; esac
while :; do
  for one in ${whole:-$all}; do  # students fill every GPU's first slot before its second
    for gpu in $gpus; do
      if take "$gpu" $([ "$whole" ] && echo "$all" || echo "$one"); then
        CUDA_VISIBLE_DEVICES=$gpu exec "$@"
      fi
    done
  done
  sleep "${PAUSE:-5}"
done
