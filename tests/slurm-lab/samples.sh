#!/bin/bash
# Save what the Slurm commands of this version really print, as test data for parsers.
# Usage: samples.sh WORKDIR OUTDIR        (run up.sh and jobs.sh first)
set -uo pipefail
[ -f "${1:-}/env.sh" ] && [ -n "${2:-}" ] || { echo "samples.sh: usage: samples.sh WORKDIR OUTDIR" >&2; exit 1; }
W=$(cd "$1" && pwd); . "$W/env.sh"
mkdir -p "$2"; O=$(cd "$2" && pwd)
save() {    # save FILE COMMAND...: stdout; the command line goes to COMMANDS.txt
    local f=$1; shift
    timeout 20 "$@" >"$O/$f" 2>"$O/$f.err"; local rc=$?
    printf '%-32s rc=%d  %s\n' "$f" $rc "${*//$W/WORKDIR}" >>"$O/COMMANDS.txt"
    [ -s "$O/$f.err" ] || rm -f "$O/$f.err"
    [ $rc = 0 ] || [ -s "$O/$f" ] || rm -f "$O/$f"          # only the message of a refusal is left
}
rm -f "$O"/*

save version.txt            sinfo -V
# -- text, as people see it
save sinfo.txt              sinfo
save sinfo-N-l.txt          sinfo -N -l
save sinfo-R.txt            sinfo -R
save squeue.txt             squeue -a -r -t all
save scontrol-ping.txt      scontrol ping
save scontrol-nodes.txt     scontrol show node
save scontrol-nodes-o.txt   scontrol -o show node
save scontrol-nodes-d-o.txt scontrol -d -o show node
save scontrol-jobs-d.txt    scontrol show job -d
save scontrol-jobs-d-o.txt  scontrol -o -d show job
save scontrol-partitions-o.txt scontrol -o show partition
save scontrol-config.txt    scontrol show config
save scontrol-reservations.txt scontrol show reservation
save sdiag.txt              sdiag
# -- for programs
save sinfo-parse-CPUs.txt   sinfo -h -o '%C'
save sinfo-parse-nodes.txt  sinfo -h -N -o '%N|%R|%T|%C|%m|%e|%O|%G|%f|%E'
save sinfo-O-nodes.txt      sinfo -h -N -O 'NodeList:;,Partition:;,StateLong:;,CPUsState:;,Memory:;,AllocMem:;,FreeMem:;,CPUsLoad:;,Gres:;,GresUsed:;,Features:;,Reason:'
save sinfo-O-partitions.txt sinfo -h -O 'PartitionName:;,Available:;,StateCompact:;,Nodes:;,NodeAIOT:;,CPUsState:;,Time:;,GresUsed:'
save squeue-parse.txt       squeue -h -a -r -t all -o '%i|%A|%F|%K|%T|%u|%a|%P|%D|%C|%m|%b|%V|%S|%e|%L|%M|%l|%r|%N|%j'
save squeue-O.txt           squeue -h -a -r -O 'JobArrayID:;,JobID:;,State:;,UserName:;,Account:;,Partition:;,NumNodes:;,NumCPUs:;,MinMemory:;,tres-alloc:;,tres-per-node:;,Reason:;,NodeList:;,SubmitTime:;,StartTime:;,TimeUsed:;,TimeLimit:;,Name:'
save squeue-steps.txt       squeue -h -s -o '%i|%j|%u|%P|%M|%N'
F=JobID,JobIDRaw,JobName,User,Account,Partition,State,ExitCode,DerivedExitCode,Submit,Start,End,ElapsedRaw,TimelimitRaw,NNodes,NCPUS,ReqMem,ReqTRES,AllocTRES,NodeList,Reason
save sacct-X-P.txt          sacct -a -X -P -n -S now-1hour -o $F
save sacct-X-P-header.txt   sacct -a -X -P -S now-1hour -o $F
save sacct-steps-P.txt      sacct -a -P -S now-1hour -o "$F,MaxRSS,TotalCPU,CPUTimeRAW"
save sacct-finished-P.txt   sacct -a -X -P -n -S now-1hour -E now -s CD,F,TO,CA,NF,OOM,DL,PR,BF -o $F
save sshare-P.txt           sshare -a -P -l
save sreport-P.txt          sreport -P -n cluster AccountUtilizationByUser start=now-1days end=now+1hours -T cpu,gres/gpu
save sacctmgr-assoc-P.txt   sacctmgr -P list assoc
save jobcomp.txt            cat "$W/log/jobcomp.txt"
# -- a job's processes: on the node itself, as root
job=$(squeue -h -n train-llm -o %A); pid=$(pgrep -u labalice -x sleep | while read -r p; do
    tr '\0' '\n' <"/proc/$p/environ" | grep -qx "SLURM_JOB_ID=$job" && echo "$p" && break; done)
save scontrol-listpids.txt  scontrol listpids "$job"
save job-environ.txt        bash -c "tr '\\0' '\\n' </proc/$pid/environ | grep -E '^(SLURM|CUDA|ROCR|GPU)' | sort"
save job-cgroup.txt         cat "/proc/$pid/cgroup"
sed -i "s|$W|WORKDIR|g; s|${W//\//\\\\/}|WORKDIR|g" "$O"/*
echo "samples.sh: $(ls "$O" | wc -l) files in $O"; find "$O" -name '*.err' -printf '  refused: %f\n'
