// What needs a broker of one's own: one that is stopped and started again, or has a memory budget of 1 MiB.
"use strict";

const assert = require("node:assert/strict");
const { scenario, eventually, once, Inbox } = require("./harness");

scenario("a recovering connection goes on after a restart", async (client) => {
  const queue = client.unique("queue");
  const received = [];
  const setup = async (model) => {
    const channel = await model.createChannel();
    await channel.assertQueue(queue, { durable: true });
    await channel.consume(queue, (message) => {
      received.push(message.content.toString());
      channel.ack(message);
    });
  };
  const connection = await client.connect({}, { recovery: { initialDelay: 50, maxDelay: 200, setup } });
  connection.on("error", () => {});
  const publish = async (body) => {
    const channel = await connection.createConfirmChannel();
    channel.on("error", () => {});
    channel.sendToQueue(queue, Buffer.from(body), { persistent: true });
    await channel.waitForConfirms();
    await channel.close();
  };
  await publish("before");
  await eventually(() => received.includes("before"), "a delivery before the restart");
  for (const end of ["restart", "kill and start"]) {
    const connected = once(connection, "connect");
    await client.ask(end);
    await connected;
    await publish(end);
    await eventually(() => received.includes(end), `a delivery after ${end}`);
  }
});

scenario("what was confirmed is there after a kill", async (client) => {
  const connection = await client.connect();
  connection.on("error", () => {});
  const channel = await connection.createConfirmChannel();
  channel.on("error", () => {});
  const { queue } = await channel.assertQueue(client.unique("queue"), { durable: true });
  for (let number = 0; number < 100; number += 1) {
    channel.sendToQueue(queue, Buffer.from(String(number)), { persistent: true });
  }
  await channel.waitForConfirms();
  const lost = once(connection, "close");
  await client.ask("kill and start");
  await lost;
  const inbox = await Inbox.open(await client.channel(), queue);
  await inbox.wait(100);
  assert.deepEqual(inbox.bodies, [...Array(100).keys()].map(String));
});

scenario("a broker that has stopped is noticed by its missing heartbeats", async (client) => {
  const connection = await client.connect({ heartbeat: 1 });
  const failed = once(connection, "error");
  await client.ask("pause");
  const [error] = await failed;
  assert.match(error.message, /Heartbeat timeout/);
  await client.ask("resume");
  await (await client.channel()).assertQueue("", { exclusive: true });
});

scenario("publishers are blocked while memory is short, and unblocked", async (client) => {
  const consumer = await client.channel();
  const { queue } = await consumer.assertQueue(client.unique("queue"), { durable: true });
  const inbox = await Inbox.open(consumer, queue);
  const connection = await client.connect();
  const publisher = await connection.createConfirmChannel();
  const blocked = once(connection, "blocked");
  // Held by the consumer, so none of it can go to the disk.
  for (let number = 0; number < 4; number += 1) publisher.sendToQueue(queue, Buffer.alloc(1 << 19), { persistent: true });
  assert.deepEqual(await blocked, ["low on memory"]);
  const unblocked = once(connection, "unblocked");
  consumer.ackAll();
  // A blocked connection's publishes are read again, and confirmed, when there is room.
  const settle = setInterval(() => inbox.messages.length && consumer.ackAll(), 10);
  await unblocked;
  await publisher.waitForConfirms();
  clearInterval(settle);
});
