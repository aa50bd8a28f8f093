#!/bin/bash
# A search on all GPUs of several hosts, one worker per host. The run folder, the records and the data
# must lie on a file system that is common to them.
#
#   sbatch deploy/slurm_search.sh --flagfile=configs/cityscapes_search.flags --run_dir=/shared/runs/search --batch_size=32
#
# Slurm sends SIGTERM five minutes before the time limit: the workers save at one common step and exit
# with 143, and the job is queued again; it resumes from that step.
#SBATCH --job-name=auto-deeplab-search
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -u
port=${WORKER_PORT:-2222}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/.*/\"&:$port\"/" | paste -sd,)
export CLUSTER="{\"worker\": [$hosts]}"
worker='export TF_CONFIG="{\"cluster\": $CLUSTER, \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
exec python -m auto_deeplab_tf.search --distribution_strategy=multi_worker_mirrored "$@"'
srun --kill-on-bad-exit=1 bash -c "$worker" worker "$@"
code=$?
if [ "$code" = 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
