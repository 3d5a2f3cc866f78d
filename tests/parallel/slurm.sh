#!/usr/bin/env bash
# A Slurm of one node on this machine, for test_slurm.py. As root, on Debian or Ubuntu:
#   tests/parallel/slurm.sh start|stop
# Needs neither systemd nor a name that resolves; all it writes stands in one folder.
set -euo pipefail

folder=/run/toycircuits-slurm
link=/etc/slurm/slurm.conf # where sbatch and its like look
export SLURM_CONF=$folder/slurm.conf

stop() {
    local daemon
    for daemon in slurmd slurmctld munged; do
        [ -e $folder/$daemon.pid ] || continue
        kill "$(cat $folder/$daemon.pid)" 2>/dev/null || true
        # Daemons remove the file when they end.
        for _ in {1..100}; do [ -e $folder/$daemon.pid ] || break; sleep 0.1; done
    done
    if [ "$(readlink $link)" = $SLURM_CONF ]; then rm $link; fi
    rm -rf $folder
}

start() {
    if ! type slurmctld slurmd sbatch munged >/dev/null 2>&1; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            munge slurmctld slurmd slurm-client
    fi
    if [ -e $link ] || [ -e $folder ]; then
        echo "a Slurm is set up already: see $link and $folder" >&2
        exit 1
    fi
    install -d -m 755 $folder $folder/munge $folder/state $folder/spool ${link%/*}

    # A munged of our own: the packaged one may run, with another key.
    (umask 077 && head -c 1024 /dev/urandom >$folder/key)
    munged --force --key-file=$folder/key --socket=$folder/munge/socket \
        --pid-file=$folder/munged.pid --log-file=$folder/munged.log --seed-file=$folder/seed

    # SlurmctldHost, NodeAddr: the address is given, since the machine's name may not resolve.
    # SlurmUser: there may be no user `slurm`, and folders need no other owner then.
    # linuxproc, task/none, none: without cgroups, which containers often lack or may not write.
    # config_overrides: the node has what is written here, whatever the machine has; two workers
    #   of one core fit on any.
    # ReturnToService: a node that was down is used again as soon as its slurmd answers.
    # KillWait: seconds between SIGTERM and SIGKILL.
    cat >$SLURM_CONF <<END
ClusterName=toycircuits
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=2 RealMemory=4096 State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    echo "IgnoreSystemd=yes" >$folder/cgroup.conf # slurmd reads it all the same
    ln -s $SLURM_CONF $link

    slurmctld -c
    slurmd
    for _ in {1..100}; do
        [ "$(sinfo --noheader --format=%T 2>/dev/null)" != idle ] || return 0
        sleep 0.3
    done
    echo "Slurm does not come up; the last lines of its logs:" >&2
    tail -n 20 $folder/*.log >&2
    exit 1
}

case ${1:-} in
    start | stop) "$1" ;;
    *) echo "usage: $0 start|stop" >&2 && exit 2 ;;
esac
