"""What a client asks for is what the policy is asked for, and a mistake is one sentence that changes nothing."""

from typing import Any

import numpy as np
import pytest

from drifting_policy.chunking import ChunkExecutor, plan_noise
from drifting_policy.control.history import History
from drifting_policy.control.session import Request, Session, answer, check_names
from drifting_policy.control.wire import encode
from drifting_policy.types import ArraySpec, ConfigError, ObservationError, PolicySpec

SPEC = PolicySpec(
    {"pose": ArraySpec((2,)), "grip": ArraySpec(()), "image": ArraySpec((4, 4, 3), "uint8")}, ArraySpec((2,)), 3, 8, 4, 10.0
)


def step(number: int) -> dict[str, Any]:
    """The observation of control step `number`, as an environment gives it: float64, a plain float and bytes."""
    return {"pose": np.array([number, 0.1 * number]), "grip": 0.3 * number, "image": np.full((4, 4, 3), number, np.uint8)}


def session(**options: int) -> Session:
    return Session(SPEC, **({"max_prefix": 2, "max_batch": 3} | options))


def read(into: Session, **message: Any) -> Request:
    return into.read(encode(message))


def test_single_steps_become_the_windows_of_a_simulation() -> None:
    """The windows are bit for bit those that a ChunkExecutor shows its policy."""
    seen = []

    class Spy:
        spec, max_prefix = SPEC, 0

        def act(self, obs: Any, *, noise: Any = None, prefix: Any = None) -> np.ndarray:
            seen.append({key: value.copy() for key, value in obs.items()})
            return np.zeros((1, *SPEC.sample_shape), np.float32)

    executor, client = ChunkExecutor(Spy()), session()
    for episode in (0, 100):
        executor.reset()
        for number in range(episode, episode + 9):
            executor.step({key: np.asarray(value)[None] for key, value in step(number).items()})
            told = read(client, **step(number), reset=number == episode)
            if (number - episode) % SPEC.exec_horizon == 0:
                assert told.windows.keys() == seen[-1].keys()
                for key, window in told.windows.items():
                    np.testing.assert_array_equal(window, seen[-1][key], strict=True)
    assert len(seen) == 6


def test_windows_and_batches_pass_as_they_are_and_leave_the_history_alone() -> None:
    client = session()
    read(client, **step(1))
    window = {key: np.stack([np.asarray(step(n)[key]) for n in (7, 8, 9)]) for key in step(0)}
    told = read(client, **window)
    assert (told.several, told.windows["image"].shape, told.windows["grip"].dtype) == (False, (1, 3, 4, 4, 3), np.float32)
    several = {key: np.stack([value] * 2) for key, value in window.items()}
    told = read(client, **several)
    assert told.several
    np.testing.assert_array_equal(told.windows["pose"], several["pose"].astype(np.float32))
    assert read(client, **step(2)).windows["image"][0, :, 0, 0, 0].tolist() == [1, 1, 2]


def test_options_become_arguments() -> None:
    noise, prefix = np.float32(np.arange(16)).reshape(8, 2), np.arange(4.0).reshape(2, 2)
    told = read(session(), **step(0), noise=noise, prefix=prefix, sequence=7)
    assert told.sequence == 7
    np.testing.assert_array_equal(told.arguments()["noise"], noise[None])
    np.testing.assert_array_equal(told.arguments()["prefix"], np.float32(prefix[None]))
    assert read(session(), **step(0)).arguments() == {"noise": None}
    assert read(session(), **step(0), prefix=np.zeros((0, 2))).arguments() == {"noise": None}
    seeded = read(session(), **step(0), seed=np.int64(5), plan=3)
    np.testing.assert_array_equal(seeded.arguments()["noise"][0], plan_noise(5, 3, (8, 2)))
    np.testing.assert_array_equal(read(session(), **step(0), seed=5).arguments()["noise"][0], plan_noise(5, 0, (8, 2)))


WINDOW = {key: np.stack([np.asarray(value)] * 3) for key, value in step(1).items()}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"pose": None}, "must be an array; got NoneType"),
        ({"pose": [0.0, 1.0]}, "must be an array; got list"),
        ({"pose": np.zeros(3)}, r"must have shape \(2,\); got \(3,\)"),
        ({"pose": np.zeros((3, 2))}, "must be one step, 3 steps or several windows"),
        ({"pose": np.array([np.nan, 0])}, "NaN"),
        ({"pose": np.array([1e300, 0])}, "infinity"),
        ({"pose": np.array(["a", "b"])}, "must fit into dtype float32"),
        ({"image": np.zeros((4, 4, 3))}, "must be uint8"),
        ({"extra": 1}, r"unknown: \['extra'\]"),
        ({"prompt": "go"}, r"unknown: \['prompt'\]"),
        ({"noise": np.zeros((7, 2))}, r"must have shape \(8, 2\)"),
        ({"noise": np.full((8, 2), np.inf)}, "NaN or infinity"),
        ({"noise": [[0, 0]] * 8}, "must be an array of numbers; got list"),
        ({"noise": np.zeros((8, 2)), "seed": 1}, "Give either seed or noise"),
        ({"seed": -1}, "whole number"),
        ({"seed": True}, "whole number"),
        ({"seed": 1.0}, "whole number"),
        ({"plan": 1}, "needs a seed"),
        ({"prefix": np.zeros((3, 2))}, "at most 2 commands; got 3"),
        ({"prefix": np.zeros((1, 3))}, r"must have shape \(1, 2\)"),
        ({"prefix": np.zeros(2)}, "must have shape"),
        ({"sequence": "1"}, "sequence must be a whole number"),
        ({"reset": 1}, "reset must be true or false"),
        ({**WINDOW, "pose": np.zeros((2, 2))}, r"must have shape \(3, 2\)"),
        ({key: np.stack([value] * 4) for key, value in WINDOW.items()}, "1 to 3 windows; got 4"),
        ({key: value[None][:0] for key, value in WINDOW.items()}, "1 to 3 windows; got 0"),
        ({key: value[None] for key, value in WINDOW.items()} | {"seed": 1}, "for several windows noise"),
        ({**{key: value[None] for key, value in WINDOW.items()}, "grip": np.zeros((2, 3))}, r"must have shape \(1, 3\)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_named_and_changes_nothing(message: dict[str, Any], words: str) -> None:
    client = session()
    read(client, **step(1))
    with pytest.raises(ObservationError, match=words) as told:
        read(client, **(step(2) | message))
    assert "\n" not in str(told.value)
    assert read(client, **step(3)).windows["image"][0, :, 0, 0, 0].tolist() == [1, 1, 3]


@pytest.mark.parametrize("message", [b"\x91\xc0", b"\xc0", encode({b"pose": 1}), "text", encode({})])
def test_what_is_no_map_of_observations_is_refused(message: bytes | str) -> None:
    with pytest.raises(ObservationError, match=r"\.$"):
        session().read(message)


def test_the_first_row_is_the_command_for_now() -> None:
    chunks = np.arange(16.0).reshape(1, 8, 2)
    told = answer(SPEC, read(session(), **step(0), sequence=3), chunks, {"infer_ms": 1.0})
    np.testing.assert_array_equal(told["actions"], np.float32(chunks[0, 2:]), strict=True)
    assert (told["sequence"], told["server_timing"]) == (3, {"infer_ms": 1.0})
    batch = read(session(), **{key: value[None] for key, value in WINDOW.items()})
    np.testing.assert_array_equal(answer(SPEC, batch, chunks, {})["chunk"], np.float32(chunks), strict=True)


@pytest.mark.parametrize("chunks", [np.zeros((1, 7, 2)), np.full((1, 8, 2), np.nan), np.zeros((2, 8, 2))])
def test_a_policy_that_returns_no_chunk_is_not_passed_on(chunks: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must return finite chunks"):
        answer(SPEC, read(session(), **step(0)), chunks, {})


def test_an_observation_cannot_have_the_name_of_an_option() -> None:
    with pytest.raises(ConfigError, match=r"\['reset'\]"):
        check_names(PolicySpec({"reset": ArraySpec(())}, ArraySpec((1,)), 1, 2, 1, 1.0))


def test_the_history_shares_no_memory() -> None:
    history, given = History(SPEC), step(1)
    first = history.push(given)
    given["image"][:] = 9
    second = history.push(step(2))
    assert first["image"].max() == 1
    assert second["image"][:, 0, 0, 0].tolist() == [1, 1, 2]
    assert not np.shares_memory(first["image"], second["image"])
