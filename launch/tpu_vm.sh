#!/usr/bin/env bash
set -e
# Made by, and ready to edit:
#   cfgjax launch tpu_vm --action=create --zone=us-west4-a --accelerator_type=v5litepod-64 --runtime_version=v2-alpha-tpuv5-lite --spot --dry_run \
#       -- train --config=experiments/imagenet64.py --workdir=/mnt/runs/imagenet64
gcloud compute tpus queued-resources create imagenet64 \
    --node-id=imagenet64 \
    --accelerator-type=v5litepod-64 \
    --runtime-version=v2-alpha-tpuv5-lite \
    --spot \
    --zone=us-west4-a
# Made by, and ready to edit:
#   cfgjax launch tpu_vm --action=copy --zone=us-west4-a --dry_run \
#       -- train --config=experiments/imagenet64.py --workdir=/mnt/runs/imagenet64
gcloud compute tpus tpu-vm ssh imagenet64 \
    --worker=all \
    '--command=mkdir -p cfgjax' \
    --zone=us-west4-a
gcloud compute tpus tpu-vm scp \
    --recurse \
    cfgjax \
    experiments \
    pyproject.toml \
    setup.py \
    README.md \
    LICENSE \
    imagenet64:cfgjax/ \
    --worker=all \
    --zone=us-west4-a
# Made by, and ready to edit:
#   cfgjax launch tpu_vm --action=run --zone=us-west4-a --dry_run \
#       -- train --config=experiments/imagenet64.py --workdir=/mnt/runs/imagenet64
gcloud compute tpus tpu-vm ssh imagenet64 \
    --worker=all \
    '--command=set -e; cd cfgjax
if [ -e job.pid ] && kill -0 "$(cat job.pid)" 2> /dev/null; then echo "already running"; exit 1; fi
sudo apt-get install -y -q python3.11-venv && python3.11 -m venv .venv && .venv/bin/pip install -q -e '"'"'.[tpu]'"'"'
cat > job.sh <<"END"
#!/usr/bin/env bash
# 75 means preempted and saved: restart, unless stopped by `kill -TERM $(cat job.pid)`
export CFGJAX_GRACE_SECONDS=30
stopped= code=75
trap "stopped=1; kill -TERM \$child" TERM
while [ "$code" = 75 ] && [ -z "$stopped" ]; do
    .venv/bin/python -m cfgjax train \
        --config=experiments/imagenet64.py \
        --workdir=/mnt/runs/imagenet64 &
    child=$!
    wait "$child"; code=$?
    if [ -n "$stopped" ]; then wait "$child"; code=$?; fi
done
echo "ended with exit code $code"
rm job.pid
exit "$code"
END
nohup bash job.sh >> job.log 2>&1 < /dev/null &
echo $! > job.pid' \
    --zone=us-west4-a
