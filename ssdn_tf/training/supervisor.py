"""Keeps one worker of several going: bounds its wait for the others, and starts it anew when another is lost.

The worker is a child process, because TensorFlow, while it waits for other workers, hears no signal and lets no
other Python code run, and because its collectives cannot be set up twice in one process.
"""

import ctypes
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

_CHANNEL = "SSDN_SUPERVISOR"  # file descriptor of the child's end, and when the first child was started
_LOADED, _CONNECTED = b"0", b"1"  # what a child says
_ATTEMPT = 60.0  # seconds; a worker that was started again may have met what was left of the session before
_SOON, _MOST_SOON = 60.0, 10  # workers that are lost so many seconds after they met, so often in a row, never stay
_PR_SET_PDEATHSIG = 1  # of Linux, prctl(2)
LOST = 75  # exit code of a child that has lost the others (EX_TEMPFAIL)


class _Link:
    """The child's end of the line to its supervisor."""

    def __init__(self, number, began):
        self.channel, self.began = socket.socket(fileno=number), began
        threading.Thread(target=self._follow, daemon=True).start()
        if sys.platform == "linux":
            # Also while TensorFlow lets no Python thread run.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def _follow(self):
        self.channel.recv(1)  # empty: the other end is gone
        os._exit(LOST)


_link = None


def join():
    """True in a process that `supervise` has started, which from now on ends when its supervisor does."""
    global _link
    text = os.environ.pop(_CHANNEL, None)
    if text is not None:
        number, began = text.split()
        _link = _Link(int(number), float(began))
    return _link is not None


def began():
    """When the supervisor of this process was started, on the clock of `time.monotonic`; None without one."""
    return _link.began if _link else None


def report_loaded():
    """Tells the supervisor, where there is one, that this process begins to look for the others."""
    if _link:
        _link.channel.sendall(_LOADED)


def report_connected():
    """Tells the supervisor, where there is one, that all workers have met."""
    if _link:
        _link.channel.sendall(_CONNECTED)


def supervise(task, wait_seconds, tell=print):
    """Runs this process's own command in a child, again where it must be.

    Args:
        task: tasks.Task.
        wait_seconds: for the other workers, at the start and after one was lost.
        tell: function (text).

    Returns:
        The exit code for this process.
    """
    others = [address for i, address in enumerate(task.addresses) if i != task.index]
    child = _Child(tell)
    with child.hears_signals():
        why, soon = "waiting for", 0
        while soon < _MOST_SOON:
            tell(f"worker {task.index}: {why} {', '.join(others)} (at most {wait_seconds / 60:g} min)")
            code, seconds = _until_connected(child, wait_seconds)
            if code is None:
                return _complain(task, others)
            if code != LOST or child.signals:
                return 130 if code == LOST else code if code >= 0 else 128 - code
            why = "another worker is lost; waiting for"
            soon = soon + 1 if seconds < _SOON else 0
    return _fail(
        f"expected workers that stay, received {soon} losses in a row, each within {_SOON:g} s of their meeting; "
        "the output of the others may say why."
    )


def _until_connected(child, wait_seconds):
    """(exit code, seconds after the meeting) of a child that has met the others, or has ended for a reason of its
    own; (None, 0) if time is over. Time begins when the first child is loaded, however long that takes."""
    until = None
    while True:
        child.start()
        loaded = child.says(_LOADED, math.inf)
        if loaded:
            now = time.monotonic()
            until = until or now + wait_seconds
            if child.says(_CONNECTED, min(until, now + _ATTEMPT)):
                met = time.monotonic()
                return child.wait(), time.monotonic() - met
        code = child.end()
        if child.signals:
            return 130, 0
        if not loaded or code not in (LOST, -signal.SIGKILL):
            return code, 0
        if time.monotonic() >= until:
            return None, 0
        time.sleep(1)


def _complain(task, others):
    silent = [address for address in others if not answers(address)]
    return _fail(
        f"TF_CONFIG: expected {len(task.addresses)} workers to find each other, "
        f"received no answer from {', '.join(silent or others)}, whose own output may say why."
    )


def _fail(problem):
    """Prints what was wrong; the exit code for it."""
    print(f"error: {problem}", file=sys.stderr, flush=True)
    return 1


def answers(address):
    """True if something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False


class _Child:
    def __init__(self, tell):
        self.tell, self.began = tell, time.monotonic()
        self.process = self.channel = None
        self.connected, self.signals = False, 0

    def start(self):
        self.connected = False
        self.channel, other = socket.socketpair()
        command = [sys.executable, *sys.orig_argv[1:]]
        with other:
            environment = os.environ | {_CHANNEL: f"{other.fileno()} {self.began}"}
            # A group of its own: Ctrl-C reaches it through us, once.
            self.process = subprocess.Popen(command, env=environment, pass_fds=[other.fileno()], start_new_session=True)

    def says(self, word, until):
        """Waits for the child's word; False if it ends, a signal comes or the time is over."""
        while not self.signals and time.monotonic() < until:
            if select.select([self.channel], [], [], 0.2)[0]:
                said = self.channel.recv(1) == word
                self.connected = said and word == _CONNECTED
                if self.connected and self.signals:  # it came between the word and here
                    self.process.send_signal(signal.SIGTERM)
                return said
        return False

    def wait(self):
        code = self.process.wait()
        self.channel.close()
        return code

    def end(self):
        """Exit code; kills the child if it still runs."""
        self.channel.close()
        try:
            return self.process.wait(timeout=0 if self.signals else 1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def hears_signals(self):
        return _Signals(self)

    def receive(self, number, _):
        """Passes a signal on. A child whose step waits for a worker that hangs does not hear it: the third ends it."""
        self.signals += 1
        if not self.connected or self.process.poll() is not None:
            return
        if self.signals == 1:
            self.process.send_signal(number)
        elif self.signals == 2:
            self.tell("waiting for the end of this step; once more ends the worker at once")
        else:
            self.process.kill()


class _Signals:
    def __init__(self, child):
        self.child = child

    def __enter__(self):
        self.before = {s: signal.signal(s, self.child.receive) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
