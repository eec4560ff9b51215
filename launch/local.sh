#!/usr/bin/env bash
# Made by, and ready to edit:
#   cfgjax launch local --num_processes=2 --port=12355 --python=python3 --dry_run \
#       -- train --config=experiments/digits.py --workdir=runs/digits
export CFGJAX_COORDINATOR=127.0.0.1:12355 CFGJAX_NUM_PROCESSES=2
CFGJAX_PROCESS_ID=0 python3 -m cfgjax train \
    --config=experiments/digits.py \
    --workdir=runs/digits &
CFGJAX_PROCESS_ID=1 python3 -m cfgjax train \
    --config=experiments/digits.py \
    --workdir=runs/digits &
wait
