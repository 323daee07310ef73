"""The doctor's judgements: what is wrong is called wrong, and each remedy can be typed."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict

import pytest

from runtime.doctor import StoreFacts, _in_force, check_folder, check_generations, check_port, judge_python, judge_store
from runtime.doctor_kafka import MIN_RETENTION_MS, TopicFacts, judge_broker, judge_dead_letters, judge_topic
from runtime.findings import Finding, exit_code, render
from sandbox.topics import DEAD_LETTERS
from tests.worlds import make_generation, write_generation_folder

GOOD_INFO = {
    "redis_version": "7.2.4",
    "valkey_version": "9.1.2",
    "aof_enabled": 1,
    "maxmemory_policy": "noeviction",
    "used_memory": 100,
    "maxmemory": 1000,
}


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def store(
    clock_difference_s: float = 0.0, shebang: bool = True, counts_trends: bool = True, **info: object
) -> dict[str, Finding]:
    return by_name(judge_store("here:6379", StoreFacts(GOOD_INFO | info, clock_difference_s, shebang, counts_trends)))


def test_frozen_rows_are_told_with_the_reason_and_the_way_back() -> None:
    facts = StoreFacts(GOOD_INFO, 0.0, True, True, "1700000000000:odd rows since noon")
    finding = by_name(judge_store("here:6379", facts))["rows"]
    assert finding.ok is None
    assert "odd rows since noon" in finding.found and "nearline unfreeze" in finding.remedy
    assert "rows" not in by_name(judge_store("here:6379", StoreFacts(GOOD_INFO, 0.0, True, True)))


def test_a_rebuild_that_nobody_finished_is_told_with_what_finishes_it(tmp_path) -> None:
    told = by_name(judge_store("here:6379", StoreFacts(GOOD_INFO, 0.0, True, True, None, "generations activate g1")))
    assert told["rebuild"].ok is None
    assert "nearline generations activate g1" in told["rebuild"].remedy
    assert _in_force(str(tmp_path)) == (0, "")
    for share, again in ((None, "activate g1"), ({"generation_id": "g2", "percent": 12.5}, "share --percent 12.5")):
        current = {"generation_id": "g1", "activation": 3, "share": share}
        (tmp_path / "CURRENT").write_text(json.dumps(current))
        assert _in_force(str(tmp_path)) == (3, f"generations {again}")


def test_that_nobody_counts_trends_is_a_piece_of_advice() -> None:
    finding = store(counts_trends=False)["trends"]
    assert finding.ok is None
    assert "nearline trends" in str(finding.remedy)


def topic(partitions: int = 4, **config: str) -> dict[str, Finding]:
    good = {
        "retention.ms": str(MIN_RETENTION_MS),
        "cleanup.policy": "delete",
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": "3600000",
    }
    return by_name(judge_topic("playback", "here:9092", TopicFacts(18, partitions, good | config)))


def letters(partitions: int = 1, **config: str) -> dict[str, Finding]:
    facts = TopicFacts(18, partitions, DEAD_LETTERS | config)
    return by_name(judge_dead_letters("playback.dlq", "here:9092", facts))


def test_a_store_run_as_it_should_be_has_nothing_to_mend():
    assert all(finding.ok for finding in store().values())


def test_what_loses_data_is_bad_and_says_what_to_type_and_which_line_to_write():
    eviction = store(maxmemory_policy="allkeys-lru")["store eviction"]
    assert eviction.ok is False
    assert "CONFIG SET maxmemory-policy noeviction" in eviction.remedy
    assert "`maxmemory-policy noeviction` in valkey.conf" in eviction.remedy
    durability = store(aof_enabled=0)["store durability"]
    assert durability.ok is False
    assert "CONFIG SET appendonly yes" in durability.remedy


@pytest.mark.parametrize(
    ("version", "shebang", "ok"), [("6.2.7", True, False), ("7.0.1", True, True), ("7.0.1", False, False)]
)
def test_redis_before_7_or_without_scripts_is_refused(version, shebang, ok):
    info = {name: value for name, value in GOOD_INFO.items() if name != "valkey_version"} | {"redis_version": version}
    assert judge_store("here", StoreFacts(info, 0.0, shebang, True))[0].ok is ok


@pytest.mark.parametrize(("used", "limit", "ok"), [(100, 1000, True), (900, 1000, False), (100, 0, None)])
def test_memory_is_held_against_its_limit_and_a_missing_limit_is_advice(used, limit, ok):
    assert store(used_memory=used, maxmemory=limit, total_system_memory=10_000)["store memory"].ok is ok


@pytest.mark.parametrize(("difference_s", "ok"), [(0.3, True), (-6.0, False), (7.5, False)])
def test_a_clock_seconds_off_is_bad(difference_s, ok):
    assert store(clock_difference_s=difference_s)["clock"].ok is ok


def test_a_missing_topic_says_how_to_create_it():
    finding = topic(partitions=0)["topic"]
    assert finding.ok is False
    assert "kafka-topics.sh --bootstrap-server here:9092 --create --topic playback" in finding.remedy


def test_a_compacted_topic_is_bad_and_a_short_retention_or_one_partition_is_advice():
    assert topic(**{"cleanup.policy": "compact"})["topic clean-up"].ok is False
    assert topic(**{"retention.ms": "3600000"})["topic retention"].ok is None
    assert topic(**{"retention.ms": "-1"})["topic retention"] == Finding("topic retention", True, "for ever")
    assert topic(partitions=1)["topic"].ok is None
    assert all(finding.ok for finding in topic().values())


def test_time_stamps_far_ahead_are_advice_unless_the_broker_stamps_itself():
    for_ever = {"message.timestamp.after.max.ms": str(2**63 - 1)}
    finding = topic(**for_ever)["topic time stamps"]
    assert finding.ok is None
    assert finding.remedy.endswith("--add-config message.timestamp.after.max.ms=3600000")
    assert topic(**for_ever, **{"message.timestamp.type": "LogAppendTime"})["topic time stamps"].ok is True
    old = TopicFacts(11, 4, {"message.timestamp.difference.max.ms": str(2**63 - 1)})
    assert "timestamp.difference.max.ms=" in by_name(judge_topic("p", "h:1", old))["topic time stamps"].remedy


def test_dead_letters_as_the_sandbox_keeps_them_are_fine_and_every_other_way_is_advice():
    assert [finding.ok for finding in letters().values()] == [True]
    for name, setting, bad, good in (
        ("clean-up", "cleanup.policy", "compact", "delete"),
        ("retention", "retention.ms", "604800000", "-1"),
        ("segments", "segment.ms", str(2**63 - 1), "86400000"),
    ):
        (finding,) = letters(**{setting: bad}).values()
        assert (finding.name, finding.ok) == (f"dead letters {name}", None)
        assert finding.remedy.endswith(f"--alter --topic playback.dlq --add-config {setting}={good}")
    (missing,) = letters(partitions=0).values()
    assert missing.ok is None
    assert "--create --topic playback.dlq" in missing.remedy


def test_a_remedy_names_a_command_that_exists(tmp_path):
    (tmp_path / "CURRENT").write_text("nothing")
    assert "./run nearline generations rollback" in check_generations(str(tmp_path))[1].remedy


@pytest.mark.parametrize(
    ("fetch_version", "words"), [(18, "Kafka 4.1 or newer"), (14, "Kafka 3.1 or newer"), (99, "Kafka 4.1")]
)
def test_a_brokers_release_is_inferred_from_what_it_speaks(fetch_version, words):
    assert words in judge_broker("here", fetch_version).found


def test_a_broker_too_old_to_know_is_bad():
    assert judge_broker("here", 4).ok is False


def test_python_below_the_minimum_is_bad():
    assert judge_python((3, 10, 9)).ok is False
    assert judge_python((3, 11, 0)).ok is True


def test_a_generation_in_force_must_be_complete(tmp_path):
    assert check_generations(str(tmp_path))[1].ok is None
    (tmp_path / "CURRENT").write_text(json.dumps({"generation_id": "20250101-a", "activation": 7}))
    assert check_generations(str(tmp_path))[1].ok is False
    (tmp_path / "20250101-a").mkdir()
    assert check_generations(str(tmp_path))[1].ok is False
    write_generation_folder(tmp_path, make_generation(generation_id="20250101-a"))
    assert check_generations(str(tmp_path))[1] == Finding("generation in force", True, "20250101-a")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes, its manifest says"),
        (lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]), "is corrupt"),
        (lambda file: file.unlink(), "No such file"),
        (lambda file: (file.parent / "manifest.json").write_text("{}"), "manifest.json: field format"),
    ],
)
def test_a_generation_that_is_not_as_it_was_written_is_told_with_what_is_wrong(tmp_path, damage, found) -> None:
    write_generation_folder(tmp_path, make_generation(generation_id="g1"))
    (tmp_path / "CURRENT").write_text(json.dumps({"generation_id": "g1", "activation": 1}))
    assert check_generations(str(tmp_path))[1].ok is True
    damage(tmp_path / "g1" / "items.parquet")
    told = check_generations(str(tmp_path))[1]
    assert told.ok is False and found in told.found and "generations rollback" in told.remedy


def test_during_a_share_the_candidate_must_be_complete_too(tmp_path):
    current = {
        "generation_id": "g1",
        "activation": 7,
        "previous": "longer-name",
        "share": {"generation_id": "g2", "percent": 5},
    }
    for name in ("g1", "longer-name"):
        write_generation_folder(tmp_path, make_generation(generation_id=name))
    (tmp_path / "CURRENT").write_text(json.dumps(current))
    in_force, candidate = check_generations(str(tmp_path))[1:]
    assert in_force == Finding("generation in force", True, "g1")
    assert (candidate.name, candidate.ok) == ("candidate", False) and "share --stop" in candidate.remedy
    write_generation_folder(tmp_path, make_generation(generation_id="g2"))
    assert check_generations(str(tmp_path))[2] == Finding("candidate", True, "g2")
    (tmp_path / "g2" / "item_factors.npy").unlink()
    candidate = check_generations(str(tmp_path))[2]
    assert candidate.ok is False and "rows stand still" in candidate.remedy
    assert "generations share --percent 5" in candidate.remedy and "share --stop" in candidate.remedy


def test_a_current_that_no_updater_can_read_is_bad_though_its_generation_is_whole(tmp_path):
    write_generation_folder(tmp_path, make_generation(generation_id="g1"))
    share = {"generation_id": "g2", "percent": 200}
    (tmp_path / "CURRENT").write_text(json.dumps({"generation_id": "g1", "activation": 7, "share": share}))
    (in_force,) = check_generations(str(tmp_path))[1:]
    assert in_force.ok is False and "CURRENT says" in in_force.found


def test_a_folder_that_does_not_exist_yet_is_fine_where_it_can_be_made(tmp_path):
    assert check_folder("lake", str(tmp_path / "a" / "b"), "X").ok is True
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert check_folder("lake", str(tmp_path / "file" / "b"), "NEARLINE_LAKE_PATH").ok is False
    assert check_folder("lake", "s3://bucket/lake", "X").ok is None


def test_a_port_in_use_is_advice_because_it_may_be_ours():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert check_port("health", "127.0.0.1", other.getsockname()[1], "NEARLINE_HEALTH__PORT").ok is None
    assert check_port("health", "127.0.0.1", 0, "X").ok is True


def test_advice_does_not_fail_the_command_and_the_report_shows_every_remedy(capsys):
    findings = [Finding("a", True, "fine"), Finding("b", None, "so so", "try [this]")]
    assert exit_code(findings) == 0
    findings.append(Finding("c", False, "broken", "type that " + "x" * 200))
    assert exit_code(findings) == 1
    render(findings)
    out = capsys.readouterr().out
    assert "→ try [this]" in out
    assert "x" * 200 in out
    assert json.dumps([asdict(finding) for finding in findings])
