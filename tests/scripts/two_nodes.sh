#!/usr/bin/env bash
# README's cluster commands, line by line, on two "nodes" of this machine, with one learner rank and one engine on each.
#
#   sudo tests/scripts/two_nodes.sh            # trains, looks for the results where `train` says, resumes: 5 minutes
#   sudo tests/scripts/two_nodes.sh --apart    # without the shared folder: must fail before a model is loaded
#
# A node is a network namespace with a hostname, processes, HOME, /tmp, /dev/shm and /mnt of its own; both have a copy of
# the repository and use its .venv. The one folder that both see is README's SHARED. Needs root, iproute2 and util-linux.
set -euo pipefail

repository=$(cd "$(dirname "$0")/../.." && pwd)
venv=$(readlink -f "$repository/.venv")
apart=$([[ ${1:-} == --apart ]] && echo yes || echo no)
work=$(mktemp -d)
declare -A address=([head]=10.77.0.1 [worker]=10.77.0.2) first=()
# Few steps; two ranks of more than half a node, so that each node has one.
settings=(data.phantom_images=120 data.eval_questions=40 train.prompts_per_step=8 train.group_size=4 run.save_every=1
  learner.world_size=2 learner.cpus_per_rank=1.1 rollout.cpus_per_actor=0.6 run.keep_checkpoints=1)

clean_up() {
  # The first process of a node: the kernel ends the others with it. Nothing less than SIGKILL ends it from outside.
  for name in "${!first[@]}"; do kill -KILL "${first[$name]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  ip netns del medr1-head 2>/dev/null || true
  ip netns del medr1-worker 2>/dev/null || true
  echo "(what the nodes left is in $work)"
}
trap clean_up EXIT

start_node() {
  local name=$1 own=$work/$1
  mkdir -p "$own"/{tmp,repository} "$work/shared"
  git -C "$repository" ls-files -z --cached --others --exclude-standard | grep -zv '^\.venv' |
    tar -C "$repository" --null --files-from=- -cf - | tar -C "$own/repository" -xf -
  printf '127.0.0.1 localhost\n%s head\n%s worker\n' "${address[head]}" "${address[worker]}" >"$own/hosts"
  ip netns exec "medr1-$name" unshare --mount --uts --ipc --pid --fork --kill-child bash -c '
    set -e
    name=$1 own=$2 shared=$3 venv=$4
    hostname "$name"
    mount --make-rprivate /
    mount -t proc proc /proc
    mount --bind "$own/hosts" /etc/hosts
    mount -t tmpfs tmpfs /mnt
    mkdir -p /mnt/home /mnt/shared /mnt/medr1_ray /mnt/venv
    mount --bind "$own/repository" /mnt/medr1_ray
    [[ $shared == none ]] || mount --bind "$shared" /mnt/shared
    mount --bind "$venv" /mnt/venv
    mount --bind "$own/tmp" /tmp
    mount -t tmpfs tmpfs /dev/shm
    [[ -x $venv/bin/python ]] || { mkdir -p "$venv"; mount --bind /mnt/venv "$venv"; }
    touch /mnt/ready
    while sleep 1; do :; done
  ' node "$name" "$own" "$([[ $apart == yes ]] && echo none || echo "$work/shared")" "$venv" &
  local unshared=$!
  until first[$name]=$(pgrep -P "$unshared") && [[ -e /proc/${first[$name]}/root/mnt/ready ]]; do
    kill -0 "$unshared"
    sleep 0.2
  done
}

# Run a command line on a node as its user types it, in the repository with .venv activated.
on() {
  local name=$1 line=${2//HEAD/${address[head]}}
  echo "$name\$ $line"
  nsenter --target "${first[$name]}" --mount --uts --ipc --net --pid \
    env -i HOME=/mnt/home TERM=dumb PYTHONUNBUFFERED=1 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    bash -c "cd /mnt/medr1_ray && . $venv/bin/activate && $environment && $line"
}

# The lines of README's section, without comments and with continued lines joined.
lines=$(sed -n '/^## Your cluster/,/^## /p' "$repository/README.md" | sed -n '/^```bash/,/^```$/p' | sed '/^```/d; s/ *#.*//' |
  sed -e ':a' -e '/\\$/{N;s/\\\n *//;ba}')
line() { grep -- "$1" <<<"$lines"; }
environment=$(line '^export')

for name in head worker; do ip netns add "medr1-$name"; done
ip link add medr1-head type veth peer name medr1-worker
for name in head worker; do
  ip link set "medr1-$name" netns "medr1-$name"
  ip -n "medr1-$name" addr add "${address[$name]}/24" dev "medr1-$name"
  ip -n "medr1-$name" link set "medr1-$name" up
  ip -n "medr1-$name" link set lo up
  start_node "$name"
done

on head "$(line get-auth-token)" >/dev/null
mkdir -p "/proc/${first[worker]}/root/mnt/home/.ray"
cp -p "/proc/${first[head]}/root/mnt/home/.ray/auth_token" "/proc/${first[worker]}/root/mnt/home/.ray/auth_token"
on head "$(line 'start --head') --num-cpus=2" | grep -i "runtime started"
on worker "$(line 'start --address') --num-cpus=2" | grep -i "runtime started"

submit="$(line configs/phantom_cpu.yaml) ${settings[*]}"
# A job that must end before its first step, with an error that has all of these parts.
refused() {
  local start=$SECONDS log=$work/refused.log
  if on head "$1" >"$log" 2>&1; then cat "$log"; echo "FAILED: it ended well"; exit 1; fi
  shift
  local error
  error=$(grep -m1 '^error:' "$log") || { cat "$log"; echo "FAILED: no error in one line"; exit 1; }
  for part in "$@"; do
    grep -qF -- "$part" <<<"$error" || { echo "FAILED: '$part' is not in: $error"; exit 1; }
  done
  if grep -q '^evaluation before' "$log"; then cat "$log"; echo "FAILED: too late"; exit 1; fi
  echo "refused after $((SECONDS - start)) s: $error"
}
if [[ $apart == yes ]]; then
  refused "$submit train.steps=2" "run.dir='/mnt/shared/runs/tiny' is not the same folder" "node worker does not see"
  # One rank and one engine, which find no room on the same node: either may be the one that is apart.
  engine="learner.world_size=1 rollout.actors=1 rollout.cpus_per_actor=1.2 run.dir=/mnt/shared/runs/engine"
  refused "$submit train.steps=2 $engine" "run.dir='/mnt/shared/runs/engine' is not the same folder" "node worker does not see"
  echo "PASSED: nothing was trained, and the node was named"
  exit
fi
refused "$submit train.steps=2 run.dir=runs/tiny" "run.dir='runs/tiny' lies in this Ray job's temporary copy"
refused "$submit train.steps=2 model.path=models/tiny" "model.path='models/tiny' is not in this Ray job's temporary copy"
cp -r "$repository/medr1_ray/tiny/model" "$work/head/tmp/model"
refused "$submit train.steps=2 model.path=/tmp/model run.dir=/mnt/shared/runs/model" "model.path='/tmp/model'" \
  "node worker does not see /tmp/model/config.json of node head"
for steps in 2 3; do
  on head "$submit train.steps=$steps$( ((steps == 2)) || echo " --resume")" 2>&1 | tee "$work/job-$steps.log"
  said=$(grep -oP '(?<=checkpoints are in ).*' "$work/job-$steps.log")
  results=$work/shared/${said#/mnt/shared/}
  grep -q "\"steps\": $steps" "$results/summary.json"
  shards=("$results/checkpoints/checkpoint-$steps/learner_state/"optimizer-0000[01]-*.safetensors)
  ((${#shards[@]} == 2))
done
echo "PASSED: both trainings left summary and all shards in $said, and the second went on where the first was saved"
