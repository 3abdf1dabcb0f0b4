"""Executor for untrusted programs: limits, isolation, and a verdict the program cannot forge.

    executor = Executor(allow_code_execution=True)
    checks = Checks(code="assert add(1, 2) == 3", names=("add",))
    verdict = executor.run_untrusted("def add(a, b): return a + b", checks)

The program runs in one confined process, the tests in another; only plain values cross (`rpc`). Isolation is
described in `sandbox` and docs/code_evaluation.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sm_diffusion.evaluation.execution.limits import DEFAULT_LIMITS, ExecutionLimits
from sm_diffusion.evaluation.execution.sandbox import MECHANISMS
from sm_diffusion.types import UserError

STATUSES = ("passed", "failed", "exception", "exited", "timeout", "memory", "output", "error")
_WORKER = Path(__file__).with_name("supervisor.py")
_GRACE_SECONDS = 30.0  # beyond the wall limit, for the supervisor to start, clean up and report


@dataclass(frozen=True)
class Checks:
    """The tests of one problem. They run in a process of their own, as trusted code.

    code:     Python source; the program passes when it runs to its end without an exception.
    names:    names of the program the tests use; each must exist once the program has run.
    preamble: Python source executed before `names` are bound: imports and helpers of the benchmark, never of the
              program.
    """

    code: str
    names: tuple[str, ...]
    preamble: str = ""


@dataclass(frozen=True)
class Job:
    """One program and its tests; what `limits` does not say is the executor's."""

    program: str
    checks: Checks
    limits: ExecutionLimits | None = None


@dataclass(frozen=True)
class Verdict:
    """Outcome of one job.

    status:      passed; failed (a test did not hold); exception (the program raised); exited (its process ended);
                 timeout; memory; output (printed too much); error (the executor could not run it: not the
                 program's fault, and never a pass).
    detail:      one line of explanation, empty when passed.
    seconds:     wall time from start to verdict.
    output_head: first 2,000 bytes the program printed.
    isolation:   what confined the program.
    """

    status: str
    detail: str = ""
    seconds: float = 0.0
    output_head: str = ""
    isolation: tuple[str, ...] = field(default=(), compare=False)

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def _make_folder() -> str:
    """A job's folder on the host: mount points, or the work folders themselves where there is no private root."""
    folder = tempfile.mkdtemp(prefix="smd-exec-")
    os.chmod(folder, 0o711)
    return folder


def _remove(folder: str) -> None:
    """Delete a job's folder; folders the program locked are unlocked first. Follows no symbolic link."""
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        os.chmod(folder, stat.S_IRWXU)
        for parent, children, _ in os.walk(folder):
            for name in children:
                path = os.path.join(parent, name)
                if not os.path.islink(path):
                    os.chmod(path, stat.S_IRWXU)
        shutil.rmtree(folder)


def _package_folders(packages: Sequence[str]) -> tuple[list[str], list[str]]:
    """Folders of the installed packages (with the `NAME.libs` beside them) and the folders to search for them."""
    folders, parents = [], []
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            continue
        folder = os.path.realpath(next(iter(spec.submodule_search_locations)))
        folders += [path for path in (folder, f"{folder}.libs") if os.path.isdir(path)]
        parents.append(os.path.dirname(folder))
    return folders, sorted(set(parents))


class Executor:
    """Runs untrusted programs, `workers` at a time.

    allow_code_execution: must be True; code written by a model is about to run on this machine.
    limits:               the user's, which hold for every job; what they do not say is the problem's or the default.
    workers:              programs at a time; None means the number of usable CPU cores.
    packages:             installed packages programs may import beside the standard library; absent ones are ignored.
    mechanisms:           subset of `sandbox.MECHANISMS` to use; None means all that work here.

    Raises UserError when execution was not allowed, or when this machine cannot confine a program: files need
    `namespaces` or `landlock`, the network needs `namespaces` or `seccomp`, root needs `uid`.
    """

    def __init__(
        self,
        *,
        allow_code_execution: bool,
        limits: ExecutionLimits | None = None,
        workers: int | None = None,
        packages: Sequence[str] = ("numpy",),
        mechanisms: Sequence[str] | None = None,
    ) -> None:
        if allow_code_execution is not True:
            raise UserError(
                "allow_code_execution: running programs a model wrote is off; "
                "set allow_code_execution=true to run them in the sandbox"
            )
        if workers is not None and workers < 1:
            raise UserError(f"workers: {workers} is not a positive number; leave it out to use every core")
        unknown = set(mechanisms or ()) - set(MECHANISMS)
        if unknown:
            raise UserError(f"mechanisms: {sorted(unknown)} unknown; choose from {', '.join(MECHANISMS)}")
        self.limits = limits or ExecutionLimits()
        self.workers = workers or len(os.sched_getaffinity(0))
        self._packages, self._path = _package_folders(packages)
        self.packages = tuple(sorted({Path(folder).name.removesuffix(".libs") for folder in self._packages}))
        self.mechanisms, self.isolation = self._choose(mechanisms)

    def _choose(self, wanted: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The mechanisms that work, strongest set first, and what a trial run reported as active."""
        if not sys.platform.startswith("linux"):
            raise UserError(f"allow_code_execution: the sandbox needs Linux, this is {sys.platform}")
        available = ["namespaces", *_ask_worker({"do": "probe"}, timeout=_GRACE_SECONDS)["mechanisms"]]
        root = "uid" in available
        chosen = [name for name in MECHANISMS if name in (available if wanted is None else wanted)]
        verdict = Verdict("error")
        for attempt in [chosen] if wanted is not None else [chosen, [name for name in chosen if name != "namespaces"]]:
            if root and "uid" not in attempt:
                continue  # root is bound by no process limit
            if not {"namespaces", "landlock"} & set(attempt) or not {"namespaces", "seccomp"} & set(attempt):
                continue
            self.mechanisms = tuple(attempt)
            verdict = self.run_untrusted("def one(): return 1", Checks(code="assert one() == 1", names=("one",)))
            if verdict.passed:
                return self.mechanisms, verdict.isolation
        raise UserError(
            "allow_code_execution: no working sandbox here (needs user namespaces, root, or Landlock with seccomp on "
            f"Linux >= 5.13); available: {', '.join(available[1:]) or 'none'}; {verdict.detail or 'not enough'}"
        )

    def run_untrusted(self, program: str, checks: Checks, limits: ExecutionLimits | None = None) -> Verdict:
        """Run `program` against `checks`. Returns a Verdict whatever the program does; raises nothing for it.

        limits: of this program; what they do not say is as `limits_for` has it.
        """
        start = time.monotonic()
        bounds = (limits or ExecutionLimits()).over(self.limits_for()).values()
        folder = _make_folder()
        job = {
            "do": "run", "folder": folder, "mechanisms": self.mechanisms, "limits": bounds,
            "uid": _random_uid(), "packages": self._packages, "path": self._path, "source": program,
            "code": checks.code, "names": checks.names, "preamble": checks.preamble,
        }  # fmt: skip
        try:
            reply = _ask_worker(job, timeout=bounds["wall_seconds"] + _GRACE_SECONDS)
        except (OSError, ValueError) as error:
            return Verdict("error", f"supervisor: {error}"[:400], time.monotonic() - start)
        finally:
            _remove(folder)
        shown = (reply["status"], reply["detail"], reply["seconds"], reply["output"])
        return Verdict(*shown, isolation=tuple(reply["isolation"]))

    def limits_for(self, asked: ExecutionLimits | None = None) -> ExecutionLimits:
        """What bounds a program of a problem that asks for `asked`: the user's limits, else those, else the default."""
        return self.limits.over(asked).over(DEFAULT_LIMITS)

    def run_many(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Verdicts of all jobs, in their order."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda job: self.run_untrusted(job.program, job.checks, job.limits), jobs))

    def describe(self, asked: Mapping[str, ExecutionLimits | None] | None = None) -> dict[str, Any]:
        """For the protocol of a score: limits, mechanisms, isolation seen, packages, how verdicts are reached.

        asked: what each problem asks for, by its id. `limits` are those that bound most of the problems, `limits_of`
        holds the others' where there are any.
        """
        used = {name: self.limits_for(limits).values() for name, limits in (asked or {"": None}).items()}
        found = list(used.values())
        most = max(found, key=found.count)
        others = {name: limits for name, limits in used.items() if limits != most}
        lists = {name: list(vars(self)[name]) for name in ("mechanisms", "isolation", "packages")}
        how = "separate process, plain values cross"
        shown = {"limits": most, **({"limits_of": others} if others else {})}
        return {**shown, **lists, "python": sys.version.split()[0], "tests_run_in": how}


def _random_uid() -> int:
    """An even uid (the judge takes the next one) that no user has and that limits count alone."""
    table = Path("/proc/self/uid_map")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else ["0 0 4294967295"]
    ends = [int(line.split()[0]) + int(line.split()[2]) for line in lines]
    top = min(4_000_000_000, max(ends) - 2)
    return top * 3 // 8 * 2 + 2 * secrets.randbelow(max(1, top // 8))


def _read_answer(descriptor: int, timeout: float) -> bytes:
    """All bytes until the other side closes; TimeoutError (an OSError) after `timeout` s."""
    deadline, answer = time.monotonic() + timeout, b""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if poller.poll(1000 * left):
            data = os.read(descriptor, 1 << 16)
            if not data:
                return answer
            answer += data
    raise TimeoutError(f"no answer within {timeout} s")


def _worker_command() -> list[str]:
    """The interpreter itself, not a virtual environment's link to it, without site packages."""
    return [os.path.realpath(sys.executable), "-S", "-s", str(_WORKER)]


def _ask_worker(job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """One exchange with a fresh supervisor. Its standard input stays open: it ends everything when that closes.

    Raises TimeoutError on a timeout, ValueError when it ended without an answer.
    """
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    environment["PYTHONHASHSEED"] = "0"  # sets of strings have one order, in the tests and in the program
    data = json.dumps(job).encode()
    worker = subprocess.Popen(
        _worker_command(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment, start_new_session=True, cwd="/",
    )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stderr is not None
    answer = b""
    try:
        worker.stdin.write(len(data).to_bytes(8, "big") + data)
        worker.stdin.flush()
        answer = _read_answer(worker.stdout.fileno(), timeout)
    except BrokenPipeError:
        pass  # it died before it read the job; its last error line tells why
    finally:
        if not answer:
            worker.kill()
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.close()
        errors = worker.stderr.read().decode("utf-8", "replace").strip().splitlines()
        worker.wait()
        worker.stdout.close()
        worker.stderr.close()
    if len(answer) < 8:
        raise ValueError(errors[-1] if errors else f"ended with code {worker.returncode} and no answer")
    return dict(json.loads(answer[8:]))
