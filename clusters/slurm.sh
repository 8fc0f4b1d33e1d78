#!/usr/bin/env bash
# A Ray cluster inside a Slurm allocation, and one training on it. From the repository's root:
#
#   sbatch clusters/slurm.sh --config configs/medr1_qwen2vl_2b_think.yaml model.path=/shared/models/Qwen2-VL-2B-Instruct \
#     data.root=/shared/data/OmniMedVQA run.dir=/shared/runs/think learner.world_size=4 rollout.actors=4
#
# Arguments go to medr1_ray.train. The repository with its .venv, and run.dir, model.path and data.root as absolute paths,
# are on a file system that all nodes share.
# Untested on a Slurm cluster; docs/cluster.md says what was checked. Edit the lines of #SBATCH.
#SBATCH --job-name=medr1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
# Ten minutes before the time is over this script alone is told, or Slurm would end Ray before the run has saved.
#SBATCH --signal=B:TERM@600
set -euo pipefail

if (($# == 0)); then
  echo "error: give the arguments of medr1_ray.train, e.g. sbatch $0 --config configs/phantom_cpu.yaml run.dir=$HOME/runs/tiny" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:?this script runs under sbatch}"
export PATH="$PWD/.venv/bin:$PATH"
export RAY_AUTH_MODE=token
export RAY_JOB_STOP_WAIT_TIME_S=300 # `ray job stop` leaves a run this long for its checkpoint

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(head -n 1 <<<"$nodes")
port=6379
ray get-auth-token --generate >/dev/null # in the home directory, which the nodes share

echo "Ray's head on $head"
srun --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --port="$port" --dashboard-host=0.0.0.0 --disable-usage-stats \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" &
tasks=($!)
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
    bash -c 'until ray start --block --address='"$head:$port"' --num-cpus="$SLURM_CPUS_PER_TASK" \
      --num-gpus="$SLURM_GPUS_ON_NODE"; do sleep 5; done' &
  tasks+=($!)
fi
stop() { kill "${tasks[@]}" 2>/dev/null || true; }
trap stop EXIT

# The head takes jobs when its dashboard answers.
address="http://$head:8265"
for _ in $(seq 60); do
  ray job list --address "$address" >/dev/null 2>&1 && break
  sleep 5
done

job="medr1-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
trap 'ray job stop --address "$address" "$job"' TERM
# In the background, because a trap runs only when the command before it has ended.
ray job submit --address "$address" --submission-id "$job" --working-dir . -- python -m medr1_ray.train "$@" &
submission=$!
status=0
wait "$submission" || status=$?
# A signal that is trapped ends the wait, not the job.
if kill -0 "$submission" 2>/dev/null; then
  status=0
  wait "$submission" || status=$?
fi
exit "$status"
