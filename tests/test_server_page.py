"""docs/server.md, followed literally."""

import os
import re
import subprocess
import sys
from pathlib import Path

from drifting_policy import load_policy
from drifting_policy.control.server import Limits, greeting
from drifting_policy.control.session import OPTIONS
from drifting_policy.demonstrations import bundled

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "server.md").read_text()
BLOCK = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.DOTALL)


def test_the_code_works_as_it_stands(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count("<!-- run -->") == 3
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks) + "\nremote.close()\nserver.__exit__()\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_option_and_limit_is_told() -> None:
    assert all(f"`{name}`" in PAGE for name in OPTIONS)
    line = PAGE.split("get_server_metadata()")[1].splitlines()[0]
    assert all(name in line for name in greeting(load_policy(bundled("push_t"))))
    limits = Limits()
    told = [f"| `deadline` | {limits.deadline:g} s ", f"| `max_message` | {limits.max_message >> 20} MiB "]
    told += [f"| `connections` | {limits.connections} clients ", f"| windows in one request | {limits.max_batch} "]
    told += [f"| handshake | {limits.handshake:g} s ", f"| silence | {limits.keepalive:g} s"]
    assert [line for line in told if line not in PAGE] == []
