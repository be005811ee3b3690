"""The program serves the bundled policy as it is, and stops when it is told to."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drifting_policy.checkpoint import load_policy
from drifting_policy.control.client import RemoteError, RemotePolicy
from drifting_policy.demonstrations import bundled
from drifting_policy.serve import read_token
from drifting_policy.types import ConfigError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_program_serves_until_it_is_told_to_stop(number: int, tmp_path: Path) -> None:
    """Over the wire the chunks are those of the policy in this process, bit for bit."""
    (tmp_path / "token").write_text("secret\n")
    command = [sys.executable, "-m", "drifting_policy.serve", "ckpt=bundled", "port=0", "token_file=token"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            told = program.stdout.readline()
            port = int(re.search(r"ws://127\.0\.0\.1:(\d+)", told)[1])  # type: ignore[index]
            with pytest.raises(RemoteError, match="refuses the token"):
                RemotePolicy("127.0.0.1", port, timeout=60.0)
            with RemotePolicy("127.0.0.1", port, token="secret", timeout=60.0) as remote:
                policy, rng = load_policy(bundled("push_t")), np.random.default_rng(0)
                assert policy.spec.contract_hash in told
                assert remote.metadata["name"] == "bundled"
                obs = {key: rng.uniform(100, 400, (1, 2, *array.shape)) for key, array in policy.spec.observations.items()}
                noise = rng.normal(size=(1, *policy.spec.sample_shape)).astype(np.float32)
                obs = {key: value.astype(np.float32) for key, value in obs.items()}
                np.testing.assert_array_equal(remote.act(obs, noise=noise), policy.act(obs, noise=noise), strict=True)
                np.testing.assert_array_equal(remote.act(obs), policy.act(obs), strict=True)
            program.send_signal(number)
            rest, errors = program.communicate(timeout=60)
            assert (program.returncode, errors) == (0, "")
            assert rest.splitlines()[-1] == "stopped"
        finally:
            program.kill()


def test_the_token_is_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" secret \n")
    assert read_token(str(tmp_path / "token")) == "secret"
    assert read_token(None) is None
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        read_token(str(tmp_path / "empty"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(str(tmp_path / "binary"))
