"""The classic group protocol request by request, with the error codes that clients act upon."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from kio.schema.find_coordinator.v4.request import FindCoordinatorRequest
from kio.schema.heartbeat.v4.request import HeartbeatRequest
from kio.schema.join_group.v7.request import JoinGroupRequest, JoinGroupRequestProtocol
from kio.schema.leave_group.v4.request import LeaveGroupRequest, MemberIdentity
from kio.schema.offset_commit.v8 import request as offset_commit
from kio.schema.offset_fetch.v8 import request as offset_fetch
from kio.schema.sync_group.v5.request import SyncGroupRequest, SyncGroupRequestAssignment

from tests.support.kafka_client import Unique
from tests.support.raw_kafka import RawKafka
from tests.support.waiting import eventually

UNKNOWN_TOPIC_OR_PARTITION = 3
OFFSET_METADATA_TOO_LARGE = 12
ILLEGAL_GENERATION = 22
INCONSISTENT_GROUP_PROTOCOL = 23
INVALID_GROUP_ID = 24
UNKNOWN_MEMBER_ID = 25
INVALID_SESSION_TIMEOUT = 26
REBALANCE_IN_PROGRESS = 27
MEMBER_ID_REQUIRED = 79
FENCED_INSTANCE_ID = 82


class RawMember:
    """One member, on a connection of its own."""

    def __init__(self, kafka: str, group: str, *, instance_id: str | None = None) -> None:
        self.connection = RawKafka(kafka)
        self.group = group
        self.instance_id = instance_id
        self.member_id = ""
        self.generation = -1

    def __enter__(self) -> RawMember:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.socket.close()

    def join_request(
        self,
        *protocols: tuple[str, bytes],
        protocol_type: str = "consumer",
        session_timeout_s: float = 10,
        rebalance_timeout_s: float = 10,
    ) -> JoinGroupRequest:
        return JoinGroupRequest(
            group_id=self.group,
            session_timeout=timedelta(seconds=session_timeout_s),
            rebalance_timeout=timedelta(seconds=rebalance_timeout_s),
            member_id=self.member_id,
            group_instance_id=self.instance_id,
            protocol_type=protocol_type,
            protocols=tuple(
                JoinGroupRequestProtocol(name=name, metadata=metadata)
                for name, metadata in protocols or (("range", b"m"),)
            ),
        )

    def begin_join(self, *protocols: tuple[str, bytes], **options: Any) -> JoinGroupRequest:
        """Send the join, having asked for a member id first where there is none."""
        request = self.join_request(*protocols, **options)
        if not self.member_id and self.instance_id is None:
            answer = self.connection.ask(request)
            assert answer.error_code == MEMBER_ID_REQUIRED
            self.member_id = answer.member_id
            request = self.join_request(*protocols, **options)
        self.connection.send(request)
        return request

    def end_join(self, request: JoinGroupRequest) -> Any:
        answer = self.connection.receive(request)
        if answer.error_code == 0:
            self.member_id, self.generation = answer.member_id, answer.generation_id
        return answer

    def join(self, *protocols: tuple[str, bytes], **options: Any) -> Any:
        return self.end_join(self.begin_join(*protocols, **options))

    def sync_request(self, assignments: dict[str, bytes]) -> SyncGroupRequest:
        return SyncGroupRequest(
            group_id=self.group,
            generation_id=self.generation,
            member_id=self.member_id,
            group_instance_id=self.instance_id,
            protocol_type="consumer",
            protocol_name="range",
            assignments=tuple(
                SyncGroupRequestAssignment(member_id=member_id, assignment=assignment)
                for member_id, assignment in assignments.items()
            ),
        )

    def sync(self, assignments: dict[str, bytes] | None = None) -> tuple[int, bytes]:
        answer = self.connection.ask(self.sync_request(assignments or {}))
        return int(answer.error_code), bytes(answer.assignment)

    def heartbeat(self, generation: int | None = None) -> int:
        answer = self.connection.ask(
            HeartbeatRequest(
                group_id=self.group,
                generation_id=self.generation if generation is None else generation,
                member_id=self.member_id,
                group_instance_id=self.instance_id,
            )
        )
        return int(answer.error_code)

    def wait_for_rebalance(self) -> None:
        eventually(lambda: self.heartbeat() == REBALANCE_IN_PROGRESS, "a rebalance")

    def leave(self) -> int:
        identity = MemberIdentity(member_id=self.member_id, group_instance_id=self.instance_id)
        answer = self.connection.ask(LeaveGroupRequest(group_id=self.group, members=(identity,)))
        return int(answer.error_code) or int(answer.members[0].error_code)

    def commit(
        self, topic: str, offset: int, *, partition: int = 0, generation: int | None = None, metadata: str | None = None
    ) -> int:
        place = offset_commit.OffsetCommitRequestPartition(
            partition_index=partition, committed_offset=offset, committed_metadata=metadata
        )
        request = offset_commit.OffsetCommitRequest(
            group_id=self.group,
            generation_id_or_member_epoch=self.generation if generation is None else generation,
            member_id=self.member_id,
            group_instance_id=self.instance_id,
            topics=(offset_commit.OffsetCommitRequestTopic(name=topic, partitions=(place,)),),
        )
        return int(self.connection.ask(request).topics[0].partitions[0].error_code)

    def committed(self, topic: str) -> int:
        wanted = offset_fetch.OffsetFetchRequestTopics(name=topic, partition_indexes=(0,))
        group = offset_fetch.OffsetFetchRequestGroup(group_id=self.group, topics=(wanted,))
        answer = self.connection.ask(offset_fetch.OffsetFetchRequest(groups=(group,)))
        return int(answer.groups[0].topics[0].partitions[0].committed_offset)


@pytest.fixture
def group(unique: Unique) -> str:
    return unique("group")


def stable(kafka: str, group: str) -> RawMember:
    """A group with one member, which has its assignment."""
    member = RawMember(kafka, group)
    assert member.join().error_code == 0
    assert member.sync({member.member_id: b"all"}) == (0, b"all")
    return member


class TestJoining:
    def test_the_first_member_leads_and_assigns(self, kafka: str, group: str) -> None:
        with RawMember(kafka, group) as member:
            answer = member.join(("range", b"one"), ("roundrobin", b"two"))
            assert (answer.error_code, answer.generation_id, answer.leader) == (0, 1, member.member_id)
            assert (answer.protocol_type, answer.protocol_name) == ("consumer", "range")
            assert [(each.member_id, bytes(each.metadata)) for each in answer.members] == [(member.member_id, b"one")]
            assert member.sync({member.member_id: b"yours"}) == (0, b"yours")
            assert member.heartbeat() == 0

    def test_a_second_member_makes_a_new_generation(self, kafka: str, group: str) -> None:
        with stable(kafka, group) as first, RawMember(kafka, group) as second:
            joining = second.begin_join(("range", b"second"))
            first.wait_for_rebalance()
            answer = first.join(("range", b"first"))
            assert (answer.error_code, answer.generation_id) == (0, 2)
            other = second.end_join(joining)
            assert (other.error_code, other.generation_id, other.leader) == (0, 2, answer.leader)
            leader, follower = (first, second) if answer.leader == first.member_id else (second, first)
            # The follower waits for what the leader decides.
            waiting = follower.sync_request({})
            follower.connection.send(waiting)
            assert leader.sync({leader.member_id: b"A", follower.member_id: b"B"}) == (0, b"A")
            assert bytes(follower.connection.receive(waiting).assignment) == b"B"

    def test_only_the_leader_is_told_who_the_members_are(self, kafka: str, group: str) -> None:
        with stable(kafka, group) as first, RawMember(kafka, group) as second:
            joining = second.begin_join(("range", b"second"))
            first.wait_for_rebalance()
            answers = [first.join(("range", b"first")), second.end_join(joining)]
            sizes = {answer.member_id == answer.leader: len(answer.members) for answer in answers}
            assert sizes == {True: 2, False: 0}

    def test_the_protocol_is_one_that_all_have(self, kafka: str, group: str) -> None:
        with RawMember(kafka, group) as first, RawMember(kafka, group) as second:
            first.join(("sticky", b""), ("range", b""))
            first.sync({first.member_id: b""})
            joining = second.begin_join(("roundrobin", b""), ("range", b""))
            first.wait_for_rebalance()
            assert first.join(("sticky", b""), ("range", b"")).protocol_name == "range"
            assert second.end_join(joining).protocol_name == "range"

    def test_a_member_with_nothing_in_common_is_refused(self, kafka: str, group: str) -> None:
        with stable(kafka, group), RawMember(kafka, group) as other:
            assert other.connection.ask(other.join_request(("sticky", b""))).error_code == INCONSISTENT_GROUP_PROTOCOL
            refused = other.connection.ask(other.join_request(("range", b""), protocol_type="connect"))
            assert refused.error_code == INCONSISTENT_GROUP_PROTOCOL

    def test_a_member_without_an_id_is_given_one(self, kafka: str, group: str) -> None:
        with RawMember(kafka, group) as member:
            answer = member.connection.ask(member.join_request())
            assert answer.error_code == MEMBER_ID_REQUIRED
            assert answer.member_id.startswith("raw-"), "the client's id begins it"

    def test_an_id_that_the_group_did_not_give_is_unknown(self, kafka: str, group: str) -> None:
        with RawMember(kafka, group) as member:
            member.member_id = "stranger"
            assert member.connection.ask(member.join_request()).error_code == UNKNOWN_MEMBER_ID

    @pytest.mark.parametrize("session_timeout_s", [0, 0.001, 100_000])
    def test_a_session_timeout_out_of_range_is_refused(self, kafka: str, group: str, session_timeout_s: float) -> None:
        with RawMember(kafka, group) as member:
            answer = member.connection.ask(member.join_request(session_timeout_s=session_timeout_s))
            assert answer.error_code == INVALID_SESSION_TIMEOUT

    def test_an_empty_group_id_is_refused(self, kafka: str) -> None:
        with RawMember(kafka, "") as member:
            assert member.connection.ask(member.join_request()).error_code == INVALID_GROUP_ID

    def test_without_protocols_it_is_refused(self, kafka: str, group: str) -> None:
        with RawMember(kafka, group) as member:
            request = JoinGroupRequest(
                group_id=group,
                session_timeout=timedelta(seconds=10),
                rebalance_timeout=timedelta(seconds=10),
                member_id="",
                group_instance_id=None,
                protocol_type="consumer",
                protocols=(),
            )
            assert member.connection.ask(request).error_code == INCONSISTENT_GROUP_PROTOCOL

    def test_a_member_that_does_not_rejoin_in_time_is_left_behind(self, kafka: str, group: str) -> None:
        """Its heartbeats do not help it: the rebalance goes on after the rebalance timeout."""
        with RawMember(kafka, group) as first, RawMember(kafka, group) as second:
            first.join(rebalance_timeout_s=0.5)
            first.sync({first.member_id: b""})
            answer = second.join(rebalance_timeout_s=0.5)
            assert (answer.error_code, answer.generation_id, answer.leader) == (0, 2, second.member_id)
            assert [member.member_id for member in answer.members] == [second.member_id]
            assert first.heartbeat() == UNKNOWN_MEMBER_ID


class TestGenerations:
    def test_another_generation_is_illegal(self, kafka: str, group: str, topic: str) -> None:
        with stable(kafka, group) as member:
            assert member.heartbeat(generation=7) == ILLEGAL_GENERATION
            assert member.commit(topic, 1, generation=7) == ILLEGAL_GENERATION
            assert member.commit(topic, 1) == 0
            assert member.committed(topic) == 1
            member.generation = 7
            assert member.sync()[0] == ILLEGAL_GENERATION

    def test_a_member_that_left_is_unknown(self, kafka: str, group: str, topic: str) -> None:
        with stable(kafka, group) as member:
            assert member.leave() == 0
            assert member.leave() == UNKNOWN_MEMBER_ID
            assert member.heartbeat() == UNKNOWN_MEMBER_ID
            assert member.sync()[0] == UNKNOWN_MEMBER_ID
            assert member.commit(topic, 1) == UNKNOWN_MEMBER_ID

    def test_a_member_of_a_group_that_never_was_is_unknown(self, kafka: str, group: str) -> None:
        with RawMember(kafka, group) as member:
            member.member_id, member.generation = "nobody", 1
            assert member.heartbeat() == UNKNOWN_MEMBER_ID
            assert member.sync()[0] == UNKNOWN_MEMBER_ID
            assert member.leave() == UNKNOWN_MEMBER_ID

    def test_during_a_rebalance_offsets_may_still_be_committed(self, kafka: str, group: str, topic: str) -> None:
        with stable(kafka, group) as first, RawMember(kafka, group) as second:
            second.begin_join()
            first.wait_for_rebalance()
            assert first.commit(topic, 5) == 0
            assert first.sync()[0] == REBALANCE_IN_PROGRESS

    def test_a_sync_again_has_the_same_answer(self, kafka: str, group: str) -> None:
        with stable(kafka, group) as member:
            assert member.sync() == (0, b"all")

    def test_the_leader_s_join_begins_a_rebalance(self, kafka: str, group: str) -> None:
        with stable(kafka, group) as member:
            assert member.join().generation_id == 2

    def test_a_member_that_says_nothing_is_gone_after_its_session(self, kafka: str, group: str) -> None:
        with RawMember(kafka, group) as silent, RawMember(kafka, group) as other:
            silent.join(session_timeout_s=1, rebalance_timeout_s=60)
            silent.sync({silent.member_id: b""})
            # Its session ends while the rebalance waits for it.
            answer = other.join(rebalance_timeout_s=60)
            assert [member.member_id for member in answer.members] == [other.member_id]


class TestStaticMembers:
    def test_one_that_comes_back_has_a_new_id_and_its_old_assignment(self, kafka: str, group: str) -> None:
        with RawMember(kafka, group, instance_id="me") as before, RawMember(kafka, group, instance_id="me") as after:
            before.join()
            before.sync({before.member_id: b"mine"})
            answer = after.join()
            assert answer.error_code == 0
            assert answer.generation_id == before.generation
            assert after.member_id != before.member_id
            assert after.sync() == (0, b"mine")
            assert before.heartbeat() == FENCED_INSTANCE_ID
            assert after.heartbeat() == 0

    def test_one_leaves_by_its_instance_id(self, kafka: str, group: str) -> None:
        with RawMember(kafka, group, instance_id="me") as member:
            member.join()
            member.sync({member.member_id: b"mine"})
            member_id, member.member_id = member.member_id, ""
            assert member.leave() == 0
            member.member_id = member_id
            assert member.heartbeat() == UNKNOWN_MEMBER_ID


class TestOffsets:
    def test_of_an_unknown_partition_are_refused(self, kafka: str, group: str, topic: str, unique: Unique) -> None:
        with stable(kafka, group) as member:
            assert member.commit(topic, 1, partition=9) == UNKNOWN_TOPIC_OR_PARTITION
            assert member.commit(unique("missing"), 1) == UNKNOWN_TOPIC_OR_PARTITION

    def test_with_too_much_metadata_are_refused(self, kafka: str, group: str, topic: str) -> None:
        with stable(kafka, group) as member:
            assert member.commit(topic, 1, metadata="x" * 5000) == OFFSET_METADATA_TOO_LARGE
            assert member.commit(topic, 1, metadata="x" * 4000) == 0

    def test_are_committed_without_a_group_s_protocol_while_it_has_no_members(
        self, kafka: str, group: str, topic: str
    ) -> None:
        with RawMember(kafka, group) as outsider:
            assert outsider.commit(topic, 3) == 0
            with stable(kafka, group) as member:
                assert outsider.commit(topic, 4) != 0
                assert member.leave() == 0
            assert outsider.commit(topic, 5) == 0
            assert outsider.committed(topic) == 5


def test_the_coordinator_is_a_broker_that_can_be_reached(raw: RawKafka, kafka: str, group: str) -> None:
    answer = raw.ask(FindCoordinatorRequest(coordinator_keys=(group, "another")))
    for coordinator in answer.coordinators:
        assert (coordinator.error_code, f"{coordinator.host}:{coordinator.port}") == (0, kafka)
