"""The doctor finds what is wrong, and changes nothing."""

import platform

import pytest

from ...errors import UserError
from ...runtime.detect import JOB_VARIABLES
from ...runtime.start import start_processes
from .. import doctor as doctor_module
from ..doctor import doctor


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (*JOB_VARIABLES, "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "JAX_DEBUG_NANS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def test_a_sound_environment_exits_0(tmp_path, capsys):
    assert doctor(run_dir=tmp_path / "runs" / "new") == 0
    out = capsys.readouterr().out
    assert "fail" not in out
    assert not (tmp_path / "runs").exists()  # it changes nothing
    for fact in (platform.python_version(), "cpu", "JAX_PLATFORMS=cpu", str(tmp_path)):
        assert fact in out


@pytest.mark.parametrize(
    "values",
    [
        ("host:1", "2"),
        ("host:1", "2", "2"),
        ("host:1", "two", "0"),
        ("host", "2", "0"),
        ("::1", "2", "0"),
    ],
)
def test_a_wrong_trio_fails(tmp_path, monkeypatch, capsys, values):
    for name, value in zip(JOB_VARIABLES, values, strict=False):
        monkeypatch.setenv(name, value)
    assert doctor(run_dir=tmp_path) == 2
    assert "to do" in capsys.readouterr().out.partition("fail")[2]
    with pytest.raises(UserError, match=f"{JOB_VARIABLES[0]}={values[0]}"):
        start_processes()


def test_a_right_trio_is_shown(tmp_path, monkeypatch, capsys):
    for name, value in zip(JOB_VARIABLES, ("host:1234", "2", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert doctor(run_dir=tmp_path) == 0
    assert "JAX_PROCESS_ID=1" in capsys.readouterr().out


def test_old_and_missing_packages_fail(tmp_path, monkeypatch, capsys):
    bounds = {"jax": "99.0", "flax": "0.9.9", "no-such-package": ""}
    monkeypatch.setattr(doctor_module, "requirements", lambda: bounds)
    assert doctor(run_dir=tmp_path) == 2
    failures = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert len(failures) == 2
    assert "older than 99.0" in failures[0]
    assert "no-such-package" in failures[1]


def test_a_run_dir_below_a_file_fails(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert doctor(run_dir=tmp_path / "file" / "run") == 2
    assert "cannot write" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["", "demo"])  # a run, or the folder of them all
def test_damaged_checkpoints_are_counted(tmp_path, capsys, where):
    for number in range(2):
        state = tmp_path / where / "checkpoints" / f"00000014.damaged-{number}" / "state"
        state.mkdir(parents=True)
        (state / "d").write_bytes(b"0" * 60_000_000)
    assert doctor(run_dir=tmp_path) == 0
    out = capsys.readouterr().out
    assert "warn  2 damaged checkpoints were set aside there, 0.1 GB\n      to do: delete" in out
    assert f"{tmp_path / where / 'checkpoints'}/*.damaged-*" in out


def test_a_costly_setting_and_a_job_without_srun_warn(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_DEBUG_NANS", "0")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert doctor(run_dir=tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    warned = [line for line in lines if line.startswith("warn") and "GB free" not in line]
    assert [("ALLOCATOR" in line, "Slurm" in line) for line in warned] == [
        (False, True),
        (True, False),
    ]
