"""One run of wrk, with requests made here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from client import HOST, AnswerError

# wrk.init makes the request that is then sent without asking Lua again; a global function
# "request" would be called for each. What must be sent is put where init leaves its own.
LUA = """\
local init = wrk.init
wrk.init = function(arguments)
   init(arguments)
   wrk.request = function() return "%s" end
end
done = function(summary, latency)
   local errors = summary.errors
   io.write(string.format("RESULT %%d %%d %%d %%d %%d %%d %%d %%d %%d\\n",
      summary.requests, summary.duration,
      errors.connect, errors.read, errors.write, errors.status, errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
"""


def script(request: bytes) -> str:
    return LUA % "".join(f"\\{byte:03d}" for byte in request)


def run(
    request: bytes,
    port: int,
    work: Path,
    *,
    connections: int,
    seconds: int,
    core: int,
    scheme: str = "http",
) -> tuple[int, float, float, float]:
    """Requests, seconds, and the median and 99th percentile latency in microseconds."""
    path = work / "wrk.lua"
    path.write_text(script(request))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["-s", str(path), f"{scheme}://{HOST}:{port}/"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    results = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        raise AnswerError(f"wrk gave no result: {done.stdout[-500:]}{done.stderr[-500:]}")
    requests, duration, *errors, p50, p99 = (int(value) for value in results[0])
    if any(errors):
        kinds = zip(("connect", "read", "write", "status", "timeout"), errors, strict=True)
        raise AnswerError("wrk saw errors: " + ", ".join(f"{kind} {n}" for kind, n in kinds if n))
    if not requests:
        raise AnswerError("wrk completed no request")
    return requests, duration / 1e6, p50, p99
