"""The process between a sandbox and one server: it starts the server and does not let it outlive its owner.

Started as a script by `sandbox/children.py` with nothing but the standard library (`python -I -S`), so it costs some ten
milliseconds and megabytes. Why a process and not `PR_SET_PDEATHSIG` in the server itself: that is Linux only and fires when the
*thread* that forked ends. A pipe closes whenever its owner ends, SIGKILL included, on every system.

Arguments: grace_s, lock file descriptor, log path, then the server's command line.
stdin:  one command a line: TERM, KILL, STOP, CONT. End of file means that the owner is gone: the server is stopped.
stdout: `pid N` once; `ok` after each command; `exit STATUS` when the server has ended.
"""

import os
import select
import signal
import subprocess
import sys
import time

OWNER_POLL_S = 0.5
"""How often the parent's id is looked at: a forked sibling that inherited the pipe could hold it open."""


def report(line: str) -> None:
    """Write one line to the owner; an owner that is gone is noticed by the main loop."""
    try:
        os.write(1, line.encode() + b"\n")
    except OSError:
        pass


def in_server() -> None:
    """What the server inherits. A file that may not grow (a quota, a full disk) is an error to handle, not a signal that ends it.

    Linux only, belt and braces: should this process be killed outright, the kernel kills the server."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main() -> int:
    """Run the server until it ends, the owner asks, or the owner is gone."""
    grace_s, lock_fd, log_path, command = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    owner = os.getppid()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    terminated: list[int] = []
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))

    with open(log_path, "ab", buffering=0) as log:
        try:
            # A session of its own: Ctrl-C in the terminal reaches the owner, which drains first and stops servers last.
            # The lock's descriptor is handed on, so the lock lasts exactly as long as the server.
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock_fd,),
                preexec_fn=in_server,
                restore_signals=True,
            )
        except OSError as error:
            log.write(f"cannot start {command[0]}: {error}\n".encode())
            report("exit 127")
            return 0
    report(f"pid {server.pid}")

    def send(number: int) -> None:
        if server.poll() is None:
            os.killpg(server.pid, number)

    def stop() -> None:
        """Ask, wait for the grace period, then insist. CONT first: a paused server cannot hear."""
        send(signal.SIGCONT)
        send(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        send(signal.SIGKILL)
        server.wait()

    pending = b""
    while server.poll() is None:
        readable, _, _ = select.select([0, wake_read], [], [], OWNER_POLL_S)
        if wake_read in readable:
            os.read(wake_read, 512)
        if 0 in readable:
            data = os.read(0, 512)
            if not data:
                stop()
                break
            *commands, pending = (pending + data).split(b"\n")
            for word in commands:
                if word == b"TERM":
                    send(signal.SIGCONT)
                send(getattr(signal, "SIG" + word.decode()))
                report("ok")
        if terminated or os.getppid() != owner:
            stop()
    report(f"exit {server.wait()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
