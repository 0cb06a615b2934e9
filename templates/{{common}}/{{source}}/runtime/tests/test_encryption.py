"""Where JAX encrypts, whoever asks at a roll call shows a certificate, as JAX wants it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ..encryption import ENCRYPTION, PREFIX
from .callers import Start, free_port, wait_for


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate for all processes, which is its own authority."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    made = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=job -keyout k -out c"
    made += " -addext subjectAltName=IP:127.0.0.1,URI:job://acorn/7"
    subprocess.run(made.split(), cwd=folder, check=True, capture_output=True)
    files = (folder / "c", folder / "k", folder / "c")
    return dict(zip(ENCRYPTION, map(str, files), strict=True))


def test_where_jax_encrypts_a_process_shows_its_certificate(
    come: Start, certificates: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in certificates.items():
        monkeypatch.setenv(name, value)
    first = come(0)
    wait_for(lambda: first.words)
    for name in certificates:
        monkeypatch.delenv(name)
    stranger = come(1)
    wait_for(lambda: "process 0, which does not answer" in stranger.words)
    stranger.leave()
    assert first.words.startswith("process 1, which has not come")
    for name, value in certificates.items():
        monkeypatch.setenv(name, value)
    callers = [first, come(1), come(2)]
    for caller in callers:
        caller.join(10)
        assert not caller.is_alive()
        assert not caller.error


@pytest.mark.parametrize(
    ("address", "prefix", "ends"),
    [
        ("localhost", "", "error"),
        ("localhost", "job://acorn/", "go"),
        ("127.0.0.1", "x:", "silent"),
    ],
)
def test_a_certificate_names_the_coordinator_or_the_job(
    come: Start,
    certificates: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    prefix: str,
    ends: str,
) -> None:
    for name, value in (certificates | {PREFIX: prefix}).items():
        monkeypatch.setenv(name, value)
    at = f"{address}:{free_port()}"
    callers = [come(0, 2, at), come(1, 2, at)]
    if ends == "silent":
        wait_for(lambda: "without a URI that begins with x:" in callers[1].words)
        return
    for caller in callers[: 1 if ends == "error" else 2]:  # the launcher ends the others
        caller.join(10)
        assert not caller.is_alive()
        assert ("names its address" in caller.error) is (ends == "error")


def test_a_certificate_that_is_not_there_is_refused(
    come: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ENCRYPTION:
        monkeypatch.setenv(name, str(tmp_path / "nothing.pem"))
    second = come(1)
    second.join(10)
    assert "expected: PEM files: a certificate, its key, and that of the authority" in second.error
