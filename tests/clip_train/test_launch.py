"""The variables of launchers, as they are set by torchrun, srun, sbatch, salloc and mpirun."""

import os
import re

import pytest

from clip_train import ClipTrainError
from clip_train.launch import LAUNCHERS, Launch, read_launch

# What SLURM 22.05 sets in the second of two tasks of `srun` on two nodes, and in the batch script around it.
STEP = {
    "SLURM_JOB_ID": "41",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
}
SCRIPT = {"SLURM_JOB_ID": "41", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "h",
    "MASTER_PORT": "29500",
}
MEET = {"MASTER_ADDR": "h", "MASTER_PORT": "29500"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"}


@pytest.fixture
def launched(monkeypatch):
    """Reads the launch of a process with these variables."""

    def read(variables: dict[str, str]) -> Launch:
        ours = re.compile("SLURM_|OMPI_|PMI_|MPI_|TORCHELASTIC_|MASTER_|RANK$|WORLD_SIZE$|LOCAL_RANK$")
        for name in filter(ours.match, list(os.environ)):
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return read_launch()

    return read


def test_a_task_of_srun_is_a_rank(launched):
    launch = launched(STEP)
    assert (launch.rank, launch.size, launch.local, launch.host) == (1, 2, 0, "n1")
    assert 20_000 <= launch.port < 32_500


def test_the_tasks_of_one_node_need_no_name_service(launched):
    assert launched({**STEP, "SLURM_STEP_NUM_NODES": "1"}).host == "localhost"
    assert launched({**STEP, "SLURM_STEP_NUM_NODES": "2"}).host == "n1"


def test_what_the_user_says_about_the_meeting_place_comes_first(launched):
    launch = launched({**STEP, **MEET})
    assert (launch.rank, launch.host, launch.port) == (1, "h", 29500)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SCRIPT,
        {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "2"},  # the shell of salloc
        {**SCRIPT, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "2"},  # the shell as an interactive step
        {**STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        {"WORLD_SIZE": "1"},
    ],
)
def test_without_a_step_of_several_tasks_it_is_one_process(launched, variables):
    assert launched(variables) == Launch()


@pytest.mark.parametrize("outer", [{}, STEP, OPEN_MPI])
def test_torchrun_counts_before_what_started_it(launched, outer):
    assert launched({**outer, **TORCHRUN}) == Launch(rank=5, size=8, local=1, host="h", port=29500)


@pytest.mark.parametrize("outer", [{}, STEP])
@pytest.mark.parametrize("variables", [OPEN_MPI, HYDRA])
def test_the_ranks_of_mpirun(launched, outer, variables):
    assert launched({**outer, **variables, **MEET}) == Launch(rank=3, size=4, local=1, host="h", port=29500)


def test_mpirun_says_no_meeting_place(launched):
    with pytest.raises(ClipTrainError, match="MASTER_ADDR, the host of rank 0, is not set"):
        launched(OPEN_MPI)


def test_variables_that_agree_are_fine(launched):
    assert launched({**STEP, "RANK": "1", "WORLD_SIZE": "2"}).rank == 1


@pytest.mark.parametrize("plain", [{"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "0"}, {"WORLD_SIZE": "4"}])
def test_variables_that_contradict_are_named(launched, plain):
    ours = " and ".join(f"{name} = {value}" for name, value in plain.items())
    told = f"{ours} contradict SLURM_PROCID = 1 and SLURM_STEP_NUM_TASKS = 2 of srun: unset {' and '.join(plain)}"
    with pytest.raises(ClipTrainError, match=told):
        launched({**STEP, **plain, **MEET})


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID"])
def test_a_variable_that_is_missing_is_named(launched, missing):
    with pytest.raises(ClipTrainError, match=f"{missing} is not set"):
        launched({name: value for name, value in STEP.items() if name != missing})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("solo", "solo"),
        ("a,b", "a"),
        ("n[1-2]", "n1"),
        ("gpu-a[03-05,09]-ib,gpu-b1", "gpu-a03-ib"),
        ("rack[0-3]node[01-16]", "rack0node01"),
        ("node[7,9]", "node7"),
    ],
)
def test_the_first_host_of_a_step(launched, nodes, host):
    assert launched({**STEP, "SLURM_STEP_NODELIST": nodes}).host == host


def test_steps_of_a_job_and_jobs_in_a_row_have_ports_of_their_own(launched):
    pairs = [(job, step) for job in range(41, 61) for step in range(100)]
    ports = {launched({**STEP, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).port for job, step in pairs}
    assert len(ports) == len(pairs)
    far = {launched({**STEP, "SLURM_JOB_ID": "4000000000", "SLURM_STEP_ID": str(step)}).port for step in range(1000)}
    assert len(far) == 1000


def test_each_launcher_names_its_own_variables():
    assert len({launcher.mark for launcher in LAUNCHERS}) == len(LAUNCHERS)
