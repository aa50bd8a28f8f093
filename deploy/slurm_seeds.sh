#!/bin/bash
# Searches that differ in their seed, each on one GPU: a job array.
#
#   sbatch deploy/slurm_seeds.sh --flagfile=configs/cityscapes_search.flags
#
# A task that reaches its time limit saves and exits with 143; the same array, submitted again, resumes
# each search where it was and leaves finished ones as they are.
#SBATCH --job-name=auto-deeplab-seeds
#SBATCH --array=0-9
#SBATCH --gpus-per-task=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
set -u
runs=${RUNS:-runs}
srun python -m auto_deeplab_tf.search "$@" \
  --seed="$SLURM_ARRAY_TASK_ID" --run_dir="$runs/search-$SLURM_ARRAY_TASK_ID"
