"""Processes that are asked for one thing at a time: a worker for each rival, and effnet's benchmark."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """Why an engine is left out."""


def lines_of(file):
    file.seek(0)
    return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def reason(said):
    """The line in which a program says why it ended."""
    lines = lines_of(said)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines[-1:] or ["it said nothing"])[0]


def ending(code):
    """How a process ended."""
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


class Worker:
    """A process of `rivals.worker`. It stands still while another is asked.

    Engines keep threads that turn idly for a while after their work, and PyTorch's compiler keeps processes: on two cores
    they slowed down whatever was measured next. So the worker and its children are stopped between its turns.
    """

    def __init__(self, folder, threads):
        count = str(threads)
        environment = dict(os.environ, OMP_NUM_THREADS=count, MKL_NUM_THREADS=count)
        # A cache of this run's own, so that the seconds of torch.compile are those of a first time.
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TOOLS), os.environ.get("PYTHONPATH")]))
        self.said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rivals.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=environment,
            start_new_session=True,
        )

    def ask(self, request, limit):
        """The answer, which may take `limit` seconds."""
        self.signal(signal.SIGCONT)
        try:
            return self.answer(request, limit)
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, which):
        """To the worker and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, which)

    def answer(self, request, limit):
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the end of its output tells
        ready, _, _ = select.select([self.process.stdout], [], [], limit)
        if not ready:
            self.process.kill()
            raise Failed(f"no answer within {limit:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"{ending(self.process.wait())}: {reason(self.said)}")
        answer = json.loads(line)
        if answer.get("problem"):
            raise Failed(answer["problem"])
        return answer

    def close(self):
        self.signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.said.close()


def run_once(command, limit):
    """The last line of a program's output, and its peak memory in bytes. It may take `limit` seconds."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:  # a pipe could fill up
        try:
            process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=said)
        except OSError as error:
            raise Failed(f"{command[0]}: {error.strerror}") from None
        late = threading.Timer(limit, process.kill)  # SIGKILL is then the reason
        late.start()
        _, status, usage = os.wait4(process.pid, 0)
        late.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise Failed(f"{ending(process.returncode)}: {reason(said)}")
        return lines_of(out)[-1], usage.ru_maxrss * 1024
