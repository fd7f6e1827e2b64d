#!/bin/bash
# One sweep over the tasks of a Slurm array; every task does its part of the units.
#
#     sbatch experiments/sweep_slurm.sh experiments/sweep_builtin.yaml /shared/runs/sweep
#
# The directory must be on a file system that all nodes see. Tasks need not start together, and the
# array may be submitted again at any time, in any size: what is complete is left alone. The table
# appears with the last unit, whichever task makes it.
#SBATCH --job-name=bridgex-sweep
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
# After a preemption the task is queued again, and continues with the parts of its units.
#SBATCH --requeue
# SIGTERM to srun's processes two minutes before the time is over: the current unit may end, or is
# dropped and its parts kept.
#SBATCH --signal=TERM@120
# On GPUs: #SBATCH --gres=gpu:1
set -euo pipefail

plan=${1:?give the plan}
out=${2:?give the directory of the sweep}

# auto: the part follows from SLURM_ARRAY_TASK_ID, _MIN, _STEP and _COUNT.
exec srun bridgex sweep "$plan" --out "$out" --shard auto --grace 90
