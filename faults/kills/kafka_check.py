"""Whether a history of Kafka's clients, and the logs at its end, keep what is promised.

Each check takes the history and the logs and tells what it has found wrong; none of them needs a broker. The promises:

- every acknowledged record is in the log, once, at the offset of its acknowledgement, and no record is there that
  nobody sent; what one producer sent to one partition is there in its order;
- whoever read an offset has read what is still there;
- ends of partitions and the offsets of groups never go back, and never are behind what was acknowledged before;
- a transaction's records are seen all or none, an aborted one's never, and each input was transformed once;
- a record that a share group was told to be settled is nobody's any more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from faults.kills.history import TOLD_MAX, Broken, Event, History
from faults.kills.kafka_logs import Logs, Partition, Record

SHARE_DELIVERIES_MAX: Final = 10


def check_sent(history: History, logs: Logs, topics: Iterable[str], *, compacted: bool = False) -> Iterator[Broken]:
    """Of topics with idempotent producers: what was acknowledged is there once and in order, and nothing else is."""
    names = set(topics)
    sent: Counter[str] = Counter()
    acked: dict[Partition, dict[int, str]] = defaultdict(dict)
    for event in history.of("send", "acked", "refused"):
        if event.what == "refused":
            yield Broken(f"{event.client}: a record was refused: {event.facts['error']}", history.around(event.at))
        elif event.facts["topic"] not in names:
            continue
        elif event.what == "send":
            sent[event.client] = event.facts["first"] + event.facts["count"]
        else:
            for number, partition, offset in event.facts["records"]:
                value = f"{event.client}:{number}"
                place = (event.facts["topic"], partition)
                other = acked[place].setdefault(offset, value)
                if other != value:
                    yield Broken(f"{place} {offset} was acknowledged for {other} and {value}", history.about(value))
    for place, records in logs.all.items():
        if place[0] in names:
            yield from _check_order(history, logs, place, records, sent)
            if compacted:
                yield from _check_compacted(history, logs, place, acked[place])
            else:
                yield from _check_acked(history, logs, place, acked[place])


def _check_order(
    history: History, logs: Logs, place: Partition, records: list[Record], sent: Counter[str]
) -> Iterator[Broken]:
    last: dict[str, int] = {}
    before = -1
    for record in records:
        client, _, number = record.value.rpartition(":")
        if record.offset <= before:
            yield Broken(f"{place}: offset {record.offset} comes after {before}", logs.neighbours(place, record.offset))
        if not number.isdecimal() or int(number) >= sent[client]:
            yield Broken(
                f"{place} {record.offset}: nobody sent {record.value!r}", logs.neighbours(place, record.offset)
            )
        elif int(number) <= last.get(client, -1):
            lines = [*history.about(f"[{number},{place[1]},", client=client), *logs.neighbours(place, record.offset)]
            how = "twice" if int(number) == last[client] else "out of order"
            yield Broken(f"{place} {record.offset}: {record.value} is there {how}", lines)
        else:
            last[client] = int(number)
        before = record.offset


def _check_acked(history: History, logs: Logs, place: Partition, acked: dict[int, str]) -> Iterator[Broken]:
    there = {record.offset: record.value for record in logs.all[place]}
    for offset, value in acked.items():
        if there.get(offset) != value:
            client, _, number = value.rpartition(":")
            lines = [*history.about(f"[{number},{place[1]},", client=client), *logs.neighbours(place, offset)]
            yield Broken(f"{place} {offset}: {value} was acknowledged, {there.get(offset)!r} is there", lines)


def _check_compacted(history: History, logs: Logs, place: Partition, acked: dict[int, str]) -> Iterator[Broken]:
    """A key's last acknowledged record may be gone only when a later one of the same key is there."""
    there = {record.offset: record.value for record in logs.all[place]}
    newest = {record.key: record.offset for record in logs.all[place]}
    last: dict[str, int] = {}
    for offset, value in acked.items():
        key = key_of(value)
        last[key] = max(offset, last.get(key, -1))
        if offset in there and there[offset] != value:
            yield Broken(f"{place} {offset}: {value} was acknowledged, {there[offset]} is there", history.about(value))
    for key, offset in last.items():
        if newest.get(key, -1) < offset:
            lines = [*logs.neighbours(place, offset), *history.about(f",{place[1]},{offset}]")]
            yield Broken(
                f"{place}: of key {key} offset {offset} is the last acknowledged, {newest.get(key)} found", lines
            )


LEDGER_KEYS: Final = 5


def key_of(value: str) -> str:
    """The key of a record in the compacted topic: its producer's slot, and its number in turn."""
    client, _, number = value.rpartition(":")
    return f"{client.rpartition('-')[0]}/{int(number) % LEDGER_KEYS}"


def check_reads(history: History, logs: Logs) -> Iterator[Broken]:
    """Who has read an offset has read what is there, committed records only, and in order within one assignment."""
    there = {place: {record.offset: record.value for record in records} for place, records in logs.all.items()}
    for event in history.of("read", "taken"):
        last: dict[Partition, int] = {}
        for topic, partition, offset, value, *_ in event.facts["records"]:
            place = (topic, partition)
            found = there.get(place)
            if found is not None and found.get(offset) != value:
                lines = [*logs.neighbours(place, offset), *history.about(f"{partition},{offset},")]
                yield Broken(f"{event.client} read {value} at {place} {offset}, {found.get(offset)!r} is there", lines)
            if event.what == "read" and offset <= last.get(place, -1):
                yield Broken(f"{event.client} read {place} {offset} after {last[place]}", [str(event)])
            last[place] = offset
    for event in history.of("unexpected", "fatal"):
        yield Broken(f"{event.client}: {event.facts['error']}", history.around(event.at))


def check_offsets(history: History, logs: Logs, committed: dict[str, dict[Partition, int]]) -> Iterator[Broken]:
    """Committed offsets and ends of partitions never go back. `committed` are the groups' offsets at the end."""
    reached: dict[tuple[str, Partition], list[tuple[Event, int]]] = defaultdict(list)
    for event in history.of("offsets"):
        for topic, partition, offset in event.facts["places"]:
            group = event.client.rpartition("-")[0].rpartition(".")[0]
            reached[group, (topic, partition)].append((event, offset))
    for (group, place), answers in reached.items():
        yield from _check_never_back(group, place, answers)
        last = max(offset for _, offset in answers)
        if committed[group].get(place, -1) < last:
            lines = [str(event) for event, _ in answers[-20:]]
            yield Broken(f"group {group}: {place} is at {committed[group].get(place)}, {last} was answered", lines)
    yield from _check_ends(history, logs)


def _check_never_back(group: str, place: Partition, answers: list[tuple[Event, int]]) -> Iterator[Broken]:
    """No commit that began after the answer to another one is behind it."""
    by_answer = sorted(answers, key=lambda answer: answer[0].at)
    index, highest = 0, -1
    for event, offset in sorted(answers, key=lambda answer: float(answer[0].facts["began"])):
        while by_answer[index][0].at < event.facts["began"]:
            highest = max(highest, by_answer[index][1])
            index += 1
        if offset < highest:
            lines = [str(other) for other, _ in answers if abs(other.at - event.at) < 5]
            yield Broken(f"group {group}: {place} went back from {highest} to {offset}", lines)


def _check_ends(history: History, logs: Logs) -> Iterator[Broken]:
    """The high watermark as clients were told it: never lower than before, nor than what was acknowledged before."""
    known: dict[Partition, list[tuple[float, int, Event]]] = defaultdict(list)
    for event in history.of("end"):
        known[tuple(event.facts["place"])].append((event.at, event.facts["high"], event))
    for event in history.of("acked"):
        for _, partition, offset in event.facts["records"]:
            known[event.facts["topic"], partition].append((event.at, offset + 1, event))
    for place, points in known.items():
        points.sort(key=lambda point: point[0])
        looks = sorted((event for _, _, event in points if event.what == "end"), key=lambda event: event.facts["began"])
        index, highest, by = 0, -1, ""
        for look in looks:
            while points[index][0] < look.facts["began"]:
                if points[index][1] > highest:
                    highest, by = points[index][1], str(points[index][2])
                index += 1
            if look.facts["high"] < highest:
                yield Broken(f"the end of {place} went back from {highest} to {look.facts['high']}", [by, str(look)])
        if place in logs.ends and points and logs.ends[place][1] < max(point[1] for point in points):
            yield Broken(f"the end of {place} is {logs.ends[place][1]}, and has been further", [str(points[-1][2])])


def check_transactions(history: History, logs: Logs, source: str, target: str) -> Iterator[Broken]:
    """Transactions are seen whole or not at all, as they were answered, and each input is transformed once."""
    began: dict[str, Event] = {}
    fate: dict[str, str] = {}
    for event in history.of("begin", "committed", "aborted", "committing", "failed"):
        name = event.facts["transaction"]
        if event.what == "begin":
            began[name] = event
        else:
            fate[name] = event.what
    seen: dict[str, list[tuple[int, int]]] = defaultdict(list)
    outputs: dict[tuple[int, int], list[str]] = defaultdict(list)
    for place, records in logs.committed.items():
        for record in records if place[0] == target else ():
            name, partition, offset = record.value.split("|")
            if name not in began:
                yield Broken(
                    f"{place} {record.offset}: nobody sent {record.value}", logs.neighbours(place, record.offset)
                )
                continue
            seen[name].append((int(partition), int(offset)))
            outputs[int(partition), int(offset)].append(record.value)
    for name, event in began.items():
        inputs = sorted((partition, offset) for _, partition, offset in event.facts["inputs"])
        found = sorted(seen[name])
        end = fate.get(name, "begin")
        if found not in ([], inputs):
            yield Broken(f"transaction {name} is there in part: {len(found)} of {len(inputs)}", history.about(name))
        elif (end == "aborted" and found) or (end == "committed" and not found):
            yield Broken(f"transaction {name} was {end}, {len(found)} of its records are seen", history.about(name))
        elif end == "begin" and found:
            yield Broken(f"transaction {name} was never asked to commit, and is seen", history.about(name))
    for place, records in logs.committed.items():
        for record in records if place[0] == source else ():
            times = outputs.pop((place[1], record.offset), [])
            if len(times) != 1:
                lines = history.about(f'"{source}",{place[1]},{record.offset}]', *times)
                yield Broken(f"{place} {record.offset} was transformed {len(times)} times: {times}", lines)
    for place_of_input, values in list(outputs.items())[:TOLD_MAX]:
        yield Broken(f"{values} are made of {place_of_input}, where nothing is", history.about(*values))


def check_all_read(history: History, logs: Logs, group: str, topic: str) -> Iterator[Broken]:
    """Members of a group that commits what it has read have read every record between them."""
    read = {
        (partition, offset) for event in history.of("read") if event.client.startswith(f"{group}.")
        for _, partition, offset, _ in event.facts["records"]
    }  # fmt: skip
    for place, records in logs.all.items():
        for record in records if place[0] == topic else ():
            if (place[1], record.offset) not in read:
                lines = [
                    line for line in history.about(f'["{topic}",{place[1]},') if f" {group}." in line or "-" in line
                ]
                yield Broken(f"group {group} has passed over {place} {record.offset}", lines)


def check_share(history: History, logs: Logs, topic: str, deaths: list[float]) -> Iterator[Broken]:
    """Accepted and rejected records never come back; all others are with somebody, or were delivered too often.

    A client may show a record late that it was given before, so what counts is what the broker has answered: nobody who
    began after the answer is given the record, and no other is told that it has settled it.
    """
    settled: dict[tuple[int, int], Event] = {}
    begun = {event.client: event.at for event in history.of("starts")}
    taken: Counter[tuple[int, int]] = Counter()
    first: dict[tuple[int, int], float] = {}
    maybe: set[tuple[int, int]] = set()
    for event in history.of("taken", "settled"):
        if event.what == "taken":
            for name, partition, offset, _, kind, _ in event.facts["records"]:
                if name != topic:
                    continue
                place = (partition, offset)
                taken[place] += 1
                first.setdefault(place, event.at)
                if kind != "RELEASE":
                    maybe.add(place)
                end = settled.get(place)
                if end is not None and end.at < begun[event.client]:
                    yield Broken(f"share: {event.client} was given {place}, which was settled", [str(end), str(event)])
        elif event.facts["place"][0] == topic:
            for offset, kind in event.facts["records"]:
                place = (event.facts["place"][1], offset)
                if kind == "RELEASE":
                    continue
                if place in settled:
                    yield Broken(f"share: {place} was settled twice", [str(settled[place]), str(event)])
                settled.setdefault(place, event)
    for partition, records in logs.all.items():
        for record in records if partition[0] == topic else ():
            place = (partition[1], record.offset)
            if place in maybe:
                continue
            # Whoever died may have been given it, and have told nobody.
            unseen = sum(1 for at in deaths if at > first.get(place, 0.0) - 60)
            if taken[place] + unseen < SHARE_DELIVERIES_MAX:
                lines = history.about(f'["{topic}",{place[0]},{place[1]},')
                yield Broken(f"share: {place} is nobody's, after {taken[place]} deliveries", lines)
