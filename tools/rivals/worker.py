"""A process with one engine. It reads a request a line and answers with a line, both JSON.

    {"do": "reference", ...}   makes the network of a case
    {"do": "start", ...}       starts an engine and checks it: version, seconds, distance
    {"do": "turn", ...}        times it: seconds of so many steps, and the process's peak memory in bytes

A request that fails is answered with its reason, under "problem". The process ends where its input ends.
"""

import json
import os
import sys
import time

from . import engines, reference


def peak_memory():
    """The most memory that this process had resident, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


class Worker:
    def __init__(self):
        self.engine = None

    def answer(self, request):
        if request["do"] == "reference":
            return reference.make(request)
        if request["do"] == "start":
            begin = time.perf_counter()
            self.engine = engines.start(request)
            spent = time.perf_counter() - begin
            return {"version": self.engine.version, "seconds": spent, "distance": self.engine.distance}
        spent = engines.seconds(
            self.engine, request["kind"], request["steps"], request["warm_steps"], request["warm_seconds"]
        )
        return {"seconds": spent, "memory": peak_memory()}


def main():
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # the reason is the answer
            message = next(iter(str(error).strip().splitlines()), "")
            answer = {"problem": f"{type(error).__name__}: {message}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
