#!/usr/bin/env bash
# A Slurm of one node on this machine, for tests: slurm.sh start FOLDER | stop FOLDER. As root; FOLDER is its own.
#
# Everything lies in FOLDER: configuration, keys, state, logs. Clients find it by SLURM_CONF=FOLDER/slurm.conf. Two
# partitions, of which `high` preempts `low`: SIGTERM to its steps, 40 seconds of grace, requeue.
set -euo pipefail
action=$1 folder=$(realpath -m "$2")
host=$(hostname -s)

configure() {
    mkdir -p "$folder"/{state,spool,munge}
    chmod 755 "$folder"
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
    chmod 400 "$folder/munge/key"
    chown -R munge: "$folder/munge"
    echo CgroupPlugin=autodetect >"$folder/cgroup.conf"
    # cred_expire is also what a requeued job waits for, 120 seconds by default; the node has more CPUs on paper
    # than here, so that jobs of several tasks start
    cat >"$folder/slurm.conf" <<EOF
ClusterName=cfgjax
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=15
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=40 OverSubscribe=NO State=UP
PartitionName=high Nodes=$host MaxTime=INFINITE PriorityTier=10 OverSubscribe=NO State=UP
EOF
}

start() {
    configure
    export SLURM_CONF=$folder/slurm.conf
    runuser -u munge -- munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
        --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF"
    for _ in $(seq 60); do
        if [ "$(sinfo --noheader --partition=low --format=%T 2>/dev/null)" = idle ]; then
            exit 0
        fi
        sleep 1
    done
    echo "the node did not come up; see $folder/slurmctld.log and $folder/slurmd.log" >&2
    exit 1
}

stop() {
    SLURM_CONF=$folder/slurm.conf scontrol shutdown || true
    sleep 2
    for pid in "$folder"/*.pid "$folder/munge/pid"; do
        [ -e "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true
    done
    rm -rf "$folder"
}

case $action in
start | stop) "$action" ;;
*)
    echo "usage: slurm.sh start|stop FOLDER" >&2
    exit 2
    ;;
esac
