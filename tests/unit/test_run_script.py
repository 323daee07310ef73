"""`./run` sets itself up whatever it meets, says what is missing, and keeps stdout for the program.

The script runs in a copy of its own with a made-up Python that writes down how it is called: no network, no real install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "run"
TOOLS = (
    "awk",
    "cat",
    "cksum",
    "date",
    "dirname",
    "echo",
    "env",
    "mkdir",
    "mv",
    "readlink",
    "rm",
    "sh",
    "sleep",
    "cp",
    "chmod",
)

FAKE_PYTHON = """#!/bin/sh
# minor version: MINOR; `ensurepip` there: ENSUREPIP
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
"-c import sys; print("*) echo MINOR ;;
*"import ensurepip, venv"*) exit ENSUREPIP ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip install"*/kernels.lock) cp "$VENV_DIR/kernels.lock" "$CALLS.kernels" ;;
"-m pip install"*) sleep "${PIP_TAKES:-0}"; [ ! -e "$BREAK_PIP" ] || { echo "no route" >&2; exit 1; } ;;
*viewers.precompile*) echo "compiling $$" >&2; exec sleep "${COMPILING_TAKES:-0}" ;;
*/nearline.py*) shift; echo "program $$ $*" ;;
esac
"""


@dataclass
class Checkout:
    """A copy of the script with two locks, and a PATH that holds only what a test puts there."""

    root: Path
    bin: Path
    calls: Path
    env: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def add_python(self, name: str, *, minor: int, ensurepip: bool = True) -> None:
        text = FAKE_PYTHON.replace("echo MINOR", f"echo {minor}").replace(
            "exit ENSUREPIP", f"exit {int(not ensurepip)}"
        )
        self.add(name, text)

    def popen(self, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "run"), *arguments],
            env=self.env,
            cwd=cwd or self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
        process = self.popen(*arguments, cwd=cwd)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def installs(self) -> int:
        return sum("pip install" in line for line in self.called())

    def called(self) -> list[str]:
        """What Python was called with, each call one line, in order."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root, binaries = tmp_path / "with space" / "repo", tmp_path / "bin"
    (root / "requirements").mkdir(parents=True)
    binaries.mkdir()
    shutil.copy(RUN, root / "run")
    for name in ("run", "dev"):
        (root / "requirements" / f"{name}.lock").write_text(f"{name}==1 --hash=sha256:0\n")
    for tool in TOOLS:
        if found := shutil.which(tool):
            (binaries / tool).symlink_to(os.path.realpath(found) if tool != "sh" else found)
    calls = tmp_path / "calls"
    env = {
        "PATH": str(binaries),
        "CALLS": str(calls),
        "BREAK_PIP": str(tmp_path / "break-pip"),
        "VENV_DIR": str(root / ".venv"),
    }
    return Checkout(root, binaries, calls, env)


def test_no_recent_python_is_told_with_a_remedy(checkout):
    checkout.add_python("python3", minor=9)
    status, out, err = checkout.run("demo")
    assert status == 2
    assert out == ""
    assert "Python 3.11 or newer is needed" in err
    assert "apt-get install python3 python3-venv" in err


def test_no_python_at_all_is_told_with_a_remedy(checkout):
    status, _, err = checkout.run("demo")
    assert status == 2
    assert "python3 here is: missing" in err


def test_a_shim_that_does_not_run_is_passed_over(checkout):
    checkout.add("python3", "#!/bin/sh\necho 'pyenv: python3: command not found' >&2\nexit 127\n")
    checkout.add("python3.14", "#!/bin/sh\nexit 127\n")
    checkout.add_python("python3.12", minor=12)
    status, out, err = checkout.run("demo")
    assert (status, out.split()[0]) == (0, "program"), err
    assert "pyenv" not in err


def test_a_python_without_venv_is_told_with_debians_package(checkout):
    checkout.add_python("python3", minor=13, ensurepip=False)
    status, out, err = checkout.run("demo")
    assert (status, out) == (2, "")
    assert "apt-get install python3-venv" in err


def test_installs_once_with_hashes_and_wheels_only_and_then_is_silent(checkout):
    checkout.add_python("python3", minor=11)
    _, out, err = checkout.run("nearline", "settings")
    assert out.endswith("settings\n")
    assert "installing requirements/run.lock" in err
    install = next(line for line in checkout.calls.read_text().splitlines() if "pip install" in line)
    assert "--require-hashes --only-binary :all:" in install
    assert checkout.run("nearline", "settings")[2] == ""
    assert checkout.installs() == 1


def test_a_changed_lock_is_installed(checkout):
    checkout.add_python("python3", minor=11)
    checkout.run("nearline")
    (checkout.root / "requirements" / "run.lock").write_text("run==2 --hash=sha256:1\n")
    checkout.run("nearline")
    assert checkout.installs() == 2


def test_what_dev_installs_serves_the_program_too(checkout):
    checkout.add_python("python3", minor=11)
    checkout.run("test")
    checkout.run("nearline")
    assert checkout.installs() == 1


def test_the_demo_compiles_while_it_installs(checkout):
    checkout.add_python("python3", minor=11)
    lock = "aaa==1 --hash=sha256:0\nnumba==2 \\\n    --hash=sha256:1\nnumpy==3 \\\n    --hash=sha256:2\nzzz==4 --hash=sha256:3\n"
    (checkout.root / "requirements" / "run.lock").write_text(lock)
    checkout.env["PIP_TAKES"] = "1"
    assert checkout.run("demo")[0] == 0
    kernels = Path(checkout.env["CALLS"] + ".kernels").read_text()
    assert kernels == "numba==2 \\\n    --hash=sha256:1\nnumpy==3 \\\n    --hash=sha256:2\n"
    named = ("kernels.lock", "precompile", "run.lock", "nearline.py")
    order = [name for line in checkout.called() for name in named if name in line]
    assert sorted(order) == sorted(named)  # each once
    assert (order[0], order[-1]) == ("kernels.lock", "nearline.py")


def test_the_demo_compiles_where_everything_is_installed(checkout):
    checkout.add_python("python3", minor=11)
    checkout.run("nearline")
    assert checkout.run("demo")[0] == 0
    deadline_s = time.monotonic() + 10
    while not (compiling := sum("precompile" in line for line in checkout.called())):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert compiling == 1


def test_setup_tells_all_where_its_errors_go_to_a_file(checkout, tmp_path):
    """It shares the file with what compiles: whoever opens it again begins it anew."""
    checkout.add_python("python3", minor=11)
    told = tmp_path / "told"
    with told.open("w") as file:
        subprocess.run([checkout.root / "run", "setup"], env=checkout.env, stderr=file, check=True, timeout=60)
    text = told.read_text()
    assert [word for word in ("installing", "compiling", "installed in", "\0") if word in text] == [
        "installing",
        "compiling",
        "installed in",
    ]


def test_without_awk_the_kernels_are_compiled_once_all_is_installed(checkout):
    checkout.add_python("python3", minor=11)
    (checkout.bin / "awk").unlink()
    assert checkout.run("setup")[0] == 0
    calls = [name for line in checkout.called() for name in ("kernels.lock", "dev.lock", "precompile") if name in line]
    assert calls == ["dev.lock", "precompile"]


def test_an_install_that_fails_leaves_nothing_that_compiles(checkout):
    checkout.add_python("python3", minor=11)
    checkout.env |= {"COMPILING_TAKES": "100", "PIP_TAKES": "1"}  # longer than `run` waits for whoever holds its stderr
    Path(checkout.env["BREAK_PIP"]).touch()
    assert checkout.run("setup")[0] == 2


def test_an_install_that_failed_is_told_and_done_again(checkout):
    checkout.add_python("python3", minor=11)
    Path(checkout.env["BREAK_PIP"]).touch()
    status, out, err = checkout.run("demo")
    assert (status, out) == (2, "")
    assert "no route" in err
    assert "HTTPS_PROXY" in err
    Path(checkout.env["BREAK_PIP"]).unlink()
    assert checkout.run("demo")[0] == 0
    assert not (checkout.root / ".venv.lock").exists()


def test_two_starts_at_once_install_once(checkout):
    checkout.add_python("python3", minor=11)
    checkout.env["PIP_TAKES"] = "1"
    both = [checkout.popen("nearline", "a"), checkout.popen("nearline", "b")]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert checkout.installs() == 1


def test_the_lock_of_a_start_that_died_is_taken_over(checkout):
    checkout.add_python("python3", minor=11)
    ended = subprocess.Popen(["true"])
    ended.wait()
    (checkout.root / ".venv.lock").mkdir()
    (checkout.root / ".venv.lock" / "pid").write_text(f"{ended.pid}\n")
    assert checkout.run("nearline")[0] == 0
    assert not (checkout.root / ".venv.lock").exists()


def test_arguments_and_working_directory_reach_the_program_untouched(checkout, tmp_path):
    checkout.add_python("python3", minor=11)
    _, out, _ = checkout.run("demo", "--json", "two words", "*", cwd=tmp_path)
    assert out.endswith("demo --json two words *\n")


def test_the_program_takes_the_scripts_place_so_that_signals_reach_it(checkout):
    checkout.add_python("python3", minor=11)
    process = checkout.popen("demo")
    out, _ = process.communicate(timeout=60)
    assert out.split()[1] == str(process.pid)


def test_it_may_be_called_through_a_link(checkout, tmp_path):
    checkout.add_python("python3", minor=11)
    (tmp_path / "link").symlink_to(checkout.root / "run")
    process = subprocess.run(
        [tmp_path / "link", "nearline", "x"], env=checkout.env, capture_output=True, text=True, check=True
    )
    assert process.stdout.endswith("x\n")


def test_help_and_no_verb_print_the_usage_and_an_unknown_verb_fails(checkout):
    assert checkout.run("help")[:2] == checkout.run()[:2]
    assert checkout.run("help")[1].startswith("usage: ./run VERB")
    status, out, err = checkout.run("dmeo")
    assert (status, out) == (2, "")
    assert "no such verb: dmeo" in err
