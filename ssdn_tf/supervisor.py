"""Keeps one worker of several going: bounds its wait for the others, and starts it anew when another is lost.

The worker is a child process, because TensorFlow, while it waits for other workers, hears no signal and lets no
other Python code run, and because its collectives cannot be set up twice in one process.
"""

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

_CHANNEL = "SSDN_SUPERVISOR"  # file descriptor of the child's end
_ATTEMPT = 60.0  # seconds; a worker that was started again may have met what was left of the session before
_PR_SET_PDEATHSIG = 1  # of Linux, prctl(2)
LOST = 75  # exit code of a child that has lost the others (EX_TEMPFAIL)


class _Link:
    """The child's end of the line to its supervisor."""

    def __init__(self, number):
        self.channel = socket.socket(fileno=number)
        threading.Thread(target=self._follow, daemon=True).start()
        if sys.platform == "linux":
            # Also while TensorFlow lets no Python thread run.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def _follow(self):
        self.channel.recv(1)  # empty: the other end is gone
        os._exit(1)


_link = None


def join():
    """True in a process that `supervise` has started, which from now on ends when its supervisor does."""
    global _link
    number = os.environ.pop(_CHANNEL, None)
    if number is not None:
        _link = _Link(int(number))
    return _link is not None


def report_connected():
    """Tells the supervisor, where there is one, that all workers have met."""
    if _link:
        _link.channel.sendall(b"1")


def supervise(task, wait_seconds, tell=print):
    """Runs this process's own command in a child, again where it must be.

    Args:
        task: distribution.Task.
        wait_seconds: for the other workers, at the start and after one was lost.
        tell: function (text).

    Returns:
        The exit code for this process.
    """
    others = [address for i, address in enumerate(task.addresses) if i != task.index]
    child = _Child()
    with child.hears_signals():
        why = "waiting for"
        while True:
            tell(f"worker {task.index}: {why} {', '.join(others)} (at most {wait_seconds / 60:g} min)")
            code = _until_connected(child, wait_seconds)
            if code is None:
                _complain(task, others)
                return 1
            if code != LOST:
                return code if code >= 0 else 128 - code
            why = "another worker is lost; waiting for"


def _until_connected(child, wait_seconds):
    """Exit code of a child that has met the others, or has ended for a reason of its own; None if time is over."""
    until = time.monotonic() + wait_seconds
    while True:
        child.start()
        if child.connects(min(until, time.monotonic() + _ATTEMPT)):
            return child.wait()
        code = child.end()
        if code not in (LOST, -signal.SIGKILL) or child.interrupted:
            return 130 if child.interrupted else code
        if time.monotonic() >= until:
            return None
        time.sleep(1)


def _complain(task, others):
    silent = [address for address in others if not answers(address)]
    print(
        f"error: TF_CONFIG: expected {len(task.addresses)} workers to find each other, "
        f"received no answer from {', '.join(silent or others)}.",
        file=sys.stderr,
        flush=True,
    )


def answers(address):
    """True if something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False


class _Child:
    def __init__(self):
        self.process = self.channel = None
        self.connected = self.interrupted = False

    def start(self):
        self.connected = False
        self.channel, other = socket.socketpair()
        command = [sys.executable, *sys.orig_argv[1:]]
        with other:
            environment = os.environ | {_CHANNEL: str(other.fileno())}
            # A group of its own: Ctrl-C reaches it through us, once.
            self.process = subprocess.Popen(
                command, env=environment, pass_fds=[other.fileno()], start_new_session=True
            )

    def connects(self, until):
        """Waits for the child's word; False if it ends, is interrupted or the time is over."""
        while not self.interrupted and time.monotonic() < until:
            if select.select([self.channel], [], [], 0.2)[0]:
                self.connected = self.channel.recv(1) == b"1"
                return self.connected
        return False

    def wait(self):
        code = self.process.wait()
        self.channel.close()
        return code

    def end(self):
        """Exit code; kills the child if it still runs."""
        self.channel.close()
        try:
            return self.process.wait(timeout=0 if self.interrupted else 1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def hears_signals(self):
        return _Signals(self)

    def receive(self, number, _):
        self.interrupted = True
        if self.connected and self.process.poll() is None:
            self.process.send_signal(number)


class _Signals:
    def __init__(self, child):
        self.child = child

    def __enter__(self):
        self.before = {s: signal.signal(s, self.child.receive) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
