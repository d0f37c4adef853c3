#!/usr/bin/env bash
# A whole Slurm on this machine, with its own munge, ports and state in FOLDER: two nodes of one core and two GPUs that are only counted, a
# partition `low` that `high` pre-empts. No system service, no file outside FOLDER. Needs Debian's slurm-wlm and munge.
#   tests/cluster/slurm.sh start FOLDER    prints the SLURM_CONF to use;  tests/cluster/slurm.sh stop FOLDER
set -euo pipefail
what=$1 folder=$2
export PATH="$PATH:/usr/sbin:/sbin"

stop() {
  if [ -s "$folder/slurmctld.pid" ]; then # jobs outlive the daemons
    export SLURM_CONF="$folder/slurm.conf"
    timeout 10 scancel --user="$(id -un)" || true
    for _ in $(seq 75); do [ -n "$(timeout 10 squeue --noheader 2>/dev/null)" ] || break; sleep 0.2; done
  fi
  for file in "$folder"/slurmd-n?.pid "$folder"/slurmctld.pid "$folder"/munged.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  done
}

if [ "$what" = stop ]; then stop; exit 0; fi
[ "$what" = start ] || { echo "start or stop?" >&2; exit 1; }

mkdir -p "$folder"/{state,spool/n1,spool/n2,munge}
chmod 755 "$folder"; chmod 700 "$folder/munge"
(umask 077; head -c 1024 /dev/urandom > "$folder/munge/key")
munged --force --key-file="$folder/munge/key" --seed-file="$folder/munge/seed" --socket="$folder/munge.socket" \
  --pid-file="$folder/munged.pid" --log-file="$folder/munged.log"

host=$(hostname -s) user=$(id -un)
read -r port1 port2 port3 < <(python3 -c "
import socket
open_ = [socket.socket() for _ in range(3)]
[s.bind(('127.0.0.1', 0)) for s in open_]
print(*(s.getsockname()[1] for s in open_))")
cat > "$folder/gres.conf" <<END
Name=gpu File=$folder/gpu[0-1]
END
touch "$folder/gpu0" "$folder/gpu1"
# cred_expire: how long Slurm waits before it starts a job again that was queued anew (120 s by default)
cat > "$folder/slurm.conf" <<END
ClusterName=ldmlab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port1
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=3
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$port2 CPUs=1 RealMemory=2000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$port3 CPUs=1 RealMemory=2000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
END
export SLURM_CONF="$folder/slurm.conf"
slurmctld
for node in n1 n2; do slurmd -N "$node"; done
for _ in $(seq 100); do
  [ "$(sinfo --noheader --format=%T --partition=low 2>/dev/null)" = idle ] && { echo "$SLURM_CONF"; exit 0; }
  sleep 0.2
done
echo "Slurm did not come up; see $folder/*.log" >&2
stop
exit 1
