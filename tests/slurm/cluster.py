"""A Slurm of one node on this machine: munged, slurmctld and slurmd on loopback.

    with cluster(folder) as completed: ...       # completed(): what Slurm says of finished jobs

Needs root and Debian's packages ``slurm-wlm`` and ``munge``. slurm.conf must lie at its default
place, or ``srun`` inside a job does not find it; a foreign one is left alone and ends the test.
Without a database there is no ``sacct``: the controller's job completion log (``jobcomp/filetxt``)
says which jobs were Slurm's and how they ended.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CONF = Path("/etc/slurm/slurm.conf")
OURS = "# made by tests/slurm/cluster.py"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
TEMPLATE = """{ours}
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.log
KillWait=5
MinJobAge=86400
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def cluster(folder: Path) -> Iterator[Callable[[], str]]:
    """Bring the cluster up, its state below a new ``folder``; take it down at the end."""
    _check()
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 - 500
    text = TEMPLATE.format(
        ours=OURS, host=socket.gethostname(), folder=folder, cpus=os.cpu_count(), memory=memory
    )
    CONF.parent.mkdir(exist_ok=True)
    CONF.write_text(text)
    pids = [folder / "slurmd.pid", folder / "slurmctld.pid"]
    try:
        pids += _start_munge()
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon], check=True)
        _wait_for_node()
        yield lambda: (folder / "jobcomp.log").read_text()
    finally:
        for pid in pids:
            if pid.exists():
                subprocess.run(["kill", pid.read_text().strip()], check=False)
        CONF.unlink()


def _check() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"no {', '.join(missing)} here: 'apt-get install slurm-wlm munge' first")
    if os.geteuid() != 0:
        raise SystemExit("Slurm's daemons are started as root: run this in a container or as root")
    if CONF.exists() and not CONF.read_text().startswith(OURS):
        raise SystemExit(f"{CONF} is there already: this machine has a Slurm of its own")


def _start_munge() -> list[Path]:
    """Start munged unless it answers already; the files with the ids to end later."""
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return []
    if not Path("/etc/munge/munge.key").exists():
        subprocess.run(["mungekey", "--create"], check=True)
    for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
        Path(folder).mkdir(exist_ok=True)
        shutil.chown(folder, "munge", "munge")
    subprocess.run(["munged"], check=True, user="munge", group="munge")
    return [Path("/run/munge/munged.pid")]


def _wait_for_node() -> None:
    for _ in range(60):
        shown = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True).stdout
        if shown.strip() in ("idle", "mix", "alloc"):
            return
        time.sleep(1)
    raise SystemExit(f"Slurm's node does not come up: {shown or 'no answer'}")
