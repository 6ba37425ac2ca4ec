// What Node services do with kafkajs.
"use strict";

const { CompressionTypes } = require("kafkajs");
const { assert, eventually, Inbox, main, refused, scenario } = require("./harness");

const numbered = (count, partition) =>
  Array.from({ length: count }, (_, number) => ({ key: `key-${number}`, value: `${number}`, partition }));

async function comeOutAsTheyWentIn(client, compression) {
  const topic = await client.topic();
  const producer = await client.producer();
  const timestamp = `${Date.now() - 60_000}`;
  const [answer] = await producer.send({
    topic,
    compression,
    acks: -1,
    messages: [
      { key: "key", value: "value".repeat(100), headers: { one: "1", many: ["2", "3"] }, timestamp },
      { key: null, value: Buffer.from([0, 255]) },
      { key: "tombstone", value: null },
    ],
  });
  assert.deepEqual([answer.errorCode, answer.baseOffset, answer.partition], [0, "0", 0]);
  const inbox = await Inbox.open(client, topic);
  const [first, second, third] = await inbox.wait(3);
  assert.equal(first.key.toString(), "key");
  assert.equal(first.value.toString(), "value".repeat(100));
  assert.equal(first.timestamp, timestamp);
  assert.equal(first.headers.one.toString(), "1");
  assert.deepEqual(first.headers.many.map(String), ["2", "3"]);
  assert.deepEqual([second.key, second.value], [null, Buffer.from([0, 255])]);
  assert.deepEqual([third.key.toString(), third.value, third.offset], ["tombstone", null, "2"]);
}

scenario("messages come out as they went in", (client) => comeOutAsTheyWentIn(client, CompressionTypes.None));

scenario("compressed messages come out as they went in", (client) => comeOutAsTheyWentIn(client, CompressionTypes.GZIP));

scenario("every level of acknowledgement", async (client) => {
  const topic = await client.topic();
  const producer = await client.producer();
  for (const acks of [0, 1, -1]) await producer.send({ topic, acks, messages: numbered(10) });
  const inbox = await Inbox.open(client, topic);
  await inbox.wait(30);
});

scenario("one key stays in one partition", async (client) => {
  const topic = await client.topic({ numPartitions: 5 });
  const producer = await client.producer();
  for (let round = 0; round < 3; round += 1) await producer.send({ topic, messages: numbered(20) });
  const inbox = await Inbox.open(client, topic);
  const partitions = new Map();
  for (const { key, partition } of await inbox.wait(60)) {
    partitions.set(key.toString(), (partitions.get(key.toString()) ?? new Set()).add(partition));
  }
  assert([...partitions.values()].every((found) => found.size === 1));
});

scenario("an idempotent producer", async (client) => {
  const topic = await client.topic();
  const producer = await client.producer({ idempotent: true, maxInFlightRequests: 1 });
  for (let round = 0; round < 20; round += 1) await producer.send({ topic, messages: numbered(10) });
  const inbox = await Inbox.open(client, topic);
  const messages = await inbox.wait(200);
  assert.deepEqual(
    messages.map(({ offset }) => Number(offset)),
    Array.from({ length: 200 }, (_, number) => number),
  );
});

scenario("several topics in one batch", async (client) => {
  const topics = [await client.topic(), await client.topic()];
  const producer = await client.producer();
  await producer.sendBatch({ topicMessages: topics.map((topic) => ({ topic, messages: numbered(5) })) });
  for (const topic of topics) await (await Inbox.open(client, topic)).wait(5);
});

scenario("members share partitions and hand them on", async (client) => {
  const topic = await client.topic({ numPartitions: 4 });
  const first = await Inbox.open(client, topic);
  await eventually(() => first.assignment.length === 4, "the first has all partitions");
  const second = await Inbox.open(client, topic, { groupId: first.groupId });
  await eventually(() => first.assignment.length === 2 && second.assignment.length === 2, "each has its half");
  const producer = await client.producer();
  for (let partition = 0; partition < 4; partition += 1) await producer.send({ topic, messages: numbered(5, partition) });
  await eventually(() => first.messages.length === 10 && second.messages.length === 10, "each gets its half");
  await second.consumer.disconnect();
  await eventually(() => first.assignment.length === 4, "the first has all partitions again");
});

scenario("a group goes on where it stopped", async (client) => {
  const topic = await client.topic();
  const producer = await client.producer();
  await producer.send({ topic, messages: numbered(10) });
  const before = await Inbox.open(client, topic);
  await before.wait(10);
  await before.consumer.disconnect();
  await producer.send({ topic, messages: [{ value: "new" }] });
  const after = await Inbox.open(client, topic, { groupId: before.groupId });
  await after.wait(1);
  assert.deepEqual(after.values, ["new"]);
});

scenario("seeking, pausing and resuming", async (client) => {
  const topic = await client.topic();
  const producer = await client.producer();
  await producer.send({ topic, messages: numbered(10) });
  const inbox = await Inbox.open(client, topic);
  await inbox.wait(10);
  inbox.messages.length = 0;
  inbox.consumer.seek({ topic, partition: 0, offset: "7" });
  await eventually(() => inbox.messages.length >= 3, "the last three again");
  assert.deepEqual(inbox.values, ["7", "8", "9"]);
  inbox.consumer.pause([{ topic }]);
  await producer.send({ topic, messages: [{ value: "while paused" }] });
  inbox.consumer.resume([{ topic }]);
  await eventually(() => inbox.values.includes("while paused"), "what came while it was paused");
});

scenario("topics, partitions and records are administered", async (client) => {
  const admin = await client.admin();
  const topic = await client.topic({ numPartitions: 2 });
  assert((await admin.listTopics()).includes(topic));
  assert.equal(await admin.createTopics({ topics: [{ topic }] }), false);
  await admin.createPartitions({ topicPartitions: [{ topic, count: 4 }] });
  await eventually(async () => {
    const { topics } = await admin.fetchTopicMetadata({ topics: [topic] });
    return topics[0].partitions.length === 4;
  }, "four partitions");
  const producer = await client.producer();
  await producer.send({ topic, messages: numbered(10, 0) });
  await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: "6" }] });
  const [offsets] = (await admin.fetchTopicOffsets(topic)).filter(({ partition }) => partition === 0);
  assert.deepEqual([offsets.low, offsets.high], ["6", "10"]);
  await refused("UNKNOWN_TOPIC_OR_PARTITION", () => admin.deleteTopics({ topics: [client.unique("missing")] }));
});

scenario("offsets by time", async (client) => {
  const topic = await client.topic();
  const producer = await client.producer();
  const then = Date.now() - 3_600_000;
  const messages = Array.from({ length: 10 }, (_, number) => ({ value: `${number}`, timestamp: `${then + number}` }));
  await producer.send({ topic, messages, compression: CompressionTypes.GZIP });
  const admin = await client.admin();
  const [found] = await admin.fetchTopicOffsetsByTimestamp(topic, then + 4);
  assert.equal(found.offset, "4");
});

scenario("configurations are described and altered", async (client) => {
  const topic = await client.topic({ configEntries: [{ name: "retention.ms", value: "1000000" }] });
  const admin = await client.admin();
  const resource = { type: 2, name: topic };
  const value = async (name) => {
    const { resources } = await admin.describeConfigs({ includeSynonyms: false, resources: [resource] });
    return resources[0].configEntries.find(({ configName }) => configName === name).configValue;
  };
  assert.equal(await value("retention.ms"), "1000000");
  await admin.alterConfigs({
    validateOnly: false,
    resources: [{ ...resource, configEntries: [{ name: "cleanup.policy", value: "compact" }] }],
  });
  await eventually(async () => (await value("cleanup.policy")) === "compact", "the new policy");
  assert.equal(await value("retention.ms"), "604800000");
});

scenario("groups are administered", async (client) => {
  const topic = await client.topic();
  const producer = await client.producer();
  await producer.send({ topic, messages: numbered(10) });
  const inbox = await Inbox.open(client, topic);
  await inbox.wait(10);
  const admin = await client.admin();
  const { groupId } = inbox;
  const described = async () => (await admin.describeGroups([groupId])).groups[0];
  assert.equal((await described()).state, "Stable");
  assert.equal((await described()).members.length, 1);
  await refused("NON_EMPTY_GROUP", () => admin.deleteGroups([groupId]));
  await inbox.consumer.disconnect();
  await eventually(async () => (await described()).state === "Empty", "an empty group");
  const offset = async () => (await admin.fetchOffsets({ groupId, topics: [topic] }))[0].partitions[0].offset;
  assert.equal(await offset(), "10");
  await admin.setOffsets({ groupId, topic, partitions: [{ partition: 0, offset: "4" }] });
  assert.equal(await offset(), "4");
  await admin.resetOffsets({ groupId, topic, earliest: true });
  const again = await Inbox.open(client, topic, { groupId });
  await again.wait(10);
  await again.consumer.disconnect();
  assert((await admin.listGroups()).groups.some((group) => group.groupId === groupId));
  await admin.deleteGroups([groupId]);
  assert(!(await admin.listGroups()).groups.some((group) => group.groupId === groupId));
});

scenario("the cluster is described", async (client) => {
  const admin = await client.admin();
  const { brokers, controller, clusterId } = await admin.describeCluster();
  assert.equal(brokers.length, 1);
  assert.equal(controller, brokers[0].nodeId);
  assert(clusterId);
});

scenario("a message that is too large is refused", async (client) => {
  const topic = await client.topic({ configEntries: [{ name: "max.message.bytes", value: "10000" }] });
  const producer = await client.producer();
  await refused("MESSAGE_TOO_LARGE", () => producer.send({ topic, messages: [{ value: "x".repeat(20_000) }] }));
  await producer.send({ topic, messages: [{ value: "small" }] });
});

main();
