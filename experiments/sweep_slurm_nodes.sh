#!/bin/bash
# A sweep whose units are too large for one host: each unit runs on all the nodes of a task.
#
#     sbatch experiments/sweep_slurm_nodes.sh PLAN.yaml /shared/runs/sweep
#
# JAX connects the processes of one srun (--distributed finds them through Slurm); process 0 alone
# writes. With an array on top, several such groups share the plan: --shard auto is the group's part.
#SBATCH --job-name=bridgex-sweep-nodes
#SBATCH --array=0-1
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -euo pipefail

plan=${1:?give the plan}
out=${2:?give the directory of the sweep}

# 4 nodes × 8 GPUs: parameters over the 8 of a node, batches over the nodes. A process that dies
# ends the others within a minute (--kill-on-bad-exit does so at once); the requeued job continues.
exec srun --kill-on-bad-exit=1 \
    bridgex sweep "$plan" --out "$out" --shard auto --distributed --mesh data=4,tensor=8 --grace 240
