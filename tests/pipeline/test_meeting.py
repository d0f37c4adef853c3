"""Ranks that meet through a store: all that come are known, who is missing is named, what an earlier meeting left says nothing."""

import threading
import time
from pathlib import Path

import pytest
from torch.distributed import HashStore, TCPStore

from ldmlab.cli import command
from ldmlab.errors import TrainingError
from ldmlab.pipeline.meeting import Meeting, MissingRanks, failed_together, meet


def together(store: object, count: int, come: set[int], timeout: float) -> tuple[list[int], dict[int, Meeting]]:
    """Who the first rank misses, and the meeting as each rank sees it."""
    meetings = {rank: Meeting(store, rank, count, timeout) for rank in come}
    threads = [threading.Thread(target=meetings[rank].other) for rank in come - {0}]
    for thread in threads:
        thread.start()
    missing = meetings[0].first()
    for thread in threads:
        thread.join()
    return missing, meetings


def test_all_that_come_know_each_other_and_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    missing, meetings = together(HashStore(), 4, {0, 1, 2, 3}, 20.0)
    assert missing == [] and len({meeting.token for meeting in meetings.values()}) == 1
    host = meetings[3].host(0)
    assert host and meetings[3].named([0, 3]) == f"rank 0 on {host} (node 0 of 2), rank 3 on {host} (node 1 of 2)"


def test_who_does_not_come_is_missed_though_it_came_to_an_earlier_meeting() -> None:
    """torchrun's store outlives its rounds: the answers of the last one are still there."""
    store = HashStore()
    assert together(store, 3, {0, 1, 2}, 20.0)[0] == []
    missing, meetings = together(store, 3, {0, 1}, 1.0)
    assert missing == [2] and meetings[0].host(2) == "" and meetings[0].host(1)


def test_a_rank_does_not_take_an_old_confirmation_for_its_own() -> None:
    store = HashStore()
    together(store, 2, {0, 1}, 20.0)
    began = time.monotonic()
    assert not Meeting(store, 1, 2, 0.5).other() and time.monotonic() - began >= 0.5


def test_of_a_failed_operation_those_are_named_that_no_longer_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldmlab.pipeline.meeting.GRACE", 0.5)
    _, meetings = together(TCPStore("127.0.0.1", 0, 3, True, wait_for_workers=False), 3, {0, 1, 2}, 20.0)
    said: list[str] = []

    def notices(rank: int) -> None:
        try:
            with meetings[rank].answering():
                raise RuntimeError("[../third_party/gloo/…] Connection closed by peer [10.0.0.3]:41231")
        except MissingRanks as error:
            said.append(str(error))

    threads = [threading.Thread(target=notices, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 2 and all(
        text.startswith("rank 2 on ") and "rank 1 on" not in text.partition(" does not")[0] for text in said
    )


def test_where_all_answer_one_was_slower_than_the_timeout() -> None:
    """The first rank works alone for longer than the others wait: they fail, and so does it when it comes."""
    _, meetings = together(HashStore(), 2, {0, 1}, 20.0)
    said: list[str] = []

    def comes(rank: int, why: str) -> None:
        try:
            with meetings[rank].answering():
                raise RuntimeError(f"[../third_party/gloo/…] {why}")
        except TrainingError as error:
            said.append(f"{type(error).__name__} {error}")

    reasons = ("Connection closed by peer [10.0.0.3]:41231", "Timed out waiting 30000ms for recv operation to complete")
    threads = [threading.Thread(target=comes, args=each) for each in enumerate(reasons)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 2 and all(
        "TrainingError the ranks waited for one of them for more than" in text for text in said
    )


def test_a_rank_s_own_error_stays_what_it_is() -> None:
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), NotImplementedError("Timed out")):
        assert not failed_together(error)
        with pytest.raises(type(error), match=str(error)), Meeting(HashStore(), 0, 2, 1.0).answering():
            raise error


def test_a_single_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert meet(0.1) is None


def test_a_command_says_in_one_line_who_did_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from train import train

    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**told, "MASTER_PORT": "29417"}.items():
        monkeypatch.setenv(name, value)
    words = ["debug=tiny", "ae=pca_f4", "eval=none", "until=denoiser", "runtime.device=cpu", "runtime.timeout=1"]
    monkeypatch.setattr("sys.argv", ["src/train.py", *words, f"store={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        command(train, ranks=True)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert ended.value.code == 1
    assert said.startswith("error: rank 1 (node 1 of 2) did not come within runtime.timeout=1 s. Here: rank 0 on ")
