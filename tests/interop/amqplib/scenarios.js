// What users of amqplib do, against a broker that is shared with other scenarios.
"use strict";

const assert = require("node:assert/strict");
const { randomBytes } = require("node:crypto");
const { credentials } = require("amqplib");
const { scenario, eventually, once, Inbox, channelRefused } = require("./harness");

// --- Publishing -------------------------------------------------------------------------------------------------------

scenario("every publish is confirmed", async (client) => {
  const channel = await client.confirmChannel();
  const { queue } = await channel.assertQueue(client.unique("queue"), { durable: true });
  const confirmed = [];
  for (let number = 0; number < 500; number += 1) {
    channel.sendToQueue(queue, Buffer.from(String(number)), { persistent: true }, (error) => {
      assert.equal(error, null);
      confirmed.push(number);
    });
  }
  await channel.waitForConfirms();
  assert.deepEqual(confirmed, [...Array(500).keys()]);
  assert.equal((await channel.checkQueue(queue)).messageCount, 500);
});

scenario("properties and headers come back as they were sent", async (client) => {
  const channel = await client.channel();
  const { queue } = await channel.assertQueue("", { exclusive: true });
  const sent = {
    contentType: "application/json",
    contentEncoding: "identity",
    deliveryMode: 2,
    priority: 7,
    correlationId: "correlation",
    replyTo: "elsewhere",
    expiration: "60000",
    messageId: "message",
    timestamp: 1_700_000_000,
    type: "kind",
    userId: "guest",
    appId: "application",
  };
  const headers = {
    text: "tëxt",
    yes: true,
    nothing: null,
    small: -1,
    large: 2 ** 40,
    fraction: 0.5,
    bytes: Buffer.from([0, 255]),
    list: [1, "two", [3]],
    table: { nested: { deep: "value" } },
    when: { "!": "timestamp", value: 1_700_000_000 },
  };
  channel.sendToQueue(queue, Buffer.from("body"), { ...sent, headers });
  const message = await eventually(() => channel.get(queue, { noAck: true }), "the message");
  for (const [name, value] of Object.entries(sent)) assert.equal(message.properties[name], value, name);
  assert.deepEqual(message.properties.headers, headers);
  assert.equal(message.content.toString(), "body");
});

scenario("an unroutable mandatory message is returned before it is confirmed", async (client) => {
  const channel = await client.confirmChannel();
  const seen = [];
  channel.on("return", (message) => seen.push(message));
  const nowhere = client.unique("nowhere");
  channel.publish("", nowhere, Buffer.from("lost"), { mandatory: true, messageId: "one" }, () => seen.push("confirmed"));
  await channel.waitForConfirms();
  assert.equal(seen.length, 2);
  assert.equal(seen[1], "confirmed");
  const { fields, properties, content } = seen[0];
  assert.equal(fields.replyCode, 312);
  assert.equal(fields.replyText, "NO_ROUTE");
  assert.equal(fields.exchange, "");
  assert.equal(fields.routingKey, nowhere);
  assert.equal(properties.messageId, "one");
  assert.equal(content.toString(), "lost");
});

async function bodiesOfManySizesComeBack(client, frameMax) {
  const channel = await (await client.connect({ frameMax })).createConfirmChannel();
  const { queue } = await channel.assertQueue(client.unique("queue"), { durable: true });
  const inbox = await Inbox.open(channel, queue, { noAck: true });
  // Around the edges of one and two frames, and far beyond.
  const sizes = [0, 1, frameMax - 9, frameMax - 8, frameMax - 7, 2 * (frameMax - 8), 2 * frameMax, 3_000_001];
  const bodies = sizes.map((size) => randomBytes(size));
  for (const body of bodies) channel.sendToQueue(queue, body, { persistent: true });
  await channel.waitForConfirms();
  const received = (await inbox.wait(bodies.length)).map((message) => message.content);
  bodies.forEach((body, index) => assert(body.equals(received[index]), `a body of ${body.length} bytes`));
}

scenario("large bodies are split and joined at the smallest frames", (client) => bodiesOfManySizesComeBack(client, 4096));

scenario("large bodies are split and joined at large frames", (client) => bodiesOfManySizesComeBack(client, 131072));

scenario("a body that one client splits is joined for another with larger frames", async (client) => {
  const small = await (await client.connect({ frameMax: 4096 })).createConfirmChannel();
  const large = await (await client.connect({ frameMax: 131072 })).createChannel();
  const { queue } = await small.assertQueue(client.unique("queue"));
  const body = randomBytes(100_000);
  const inbox = await Inbox.open(large, queue, { noAck: true });
  small.sendToQueue(queue, body);
  await small.waitForConfirms();
  assert((await inbox.wait(1))[0].content.equals(body));
});

// --- Consuming --------------------------------------------------------------------------------------------------------

scenario("a prefetch bounds what is unacknowledged", async (client) => {
  const channel = await client.confirmChannel();
  const { queue } = await channel.assertQueue(client.unique("queue"));
  for (let number = 0; number < 10; number += 1) channel.sendToQueue(queue, Buffer.from(String(number)));
  await channel.waitForConfirms();
  await channel.prefetch(3);
  const inbox = await Inbox.open(channel, queue);
  await inbox.wait(3);
  // A request that is answered after the consumer was offered everything: nothing more has come by then.
  assert.equal((await channel.checkQueue(queue)).messageCount, 7);
  assert.deepEqual(inbox.bodies, ["0", "1", "2"]);
  channel.ack(inbox.messages[0]);
  await inbox.wait(4);
  channel.ack(inbox.messages[3], true);
  await inbox.wait(7);
  assert.deepEqual(inbox.bodies, ["0", "1", "2", "3", "4", "5", "6"]);
  channel.ackAll();
  await inbox.wait(10);
});

scenario("a nacked message comes back to its place, marked as redelivered", async (client) => {
  const channel = await client.confirmChannel();
  const { queue } = await channel.assertQueue(client.unique("queue"));
  for (const body of ["a", "b", "c"]) channel.sendToQueue(queue, Buffer.from(body));
  await channel.waitForConfirms();
  const first = await channel.get(queue);
  assert.equal(first.fields.messageCount, 2);
  assert.equal(first.fields.redelivered, false);
  channel.nack(first);
  const again = await channel.get(queue);
  assert.equal(again.content.toString(), "a");
  assert.equal(again.fields.redelivered, true);
  channel.reject(again, false);
  const rest = [await channel.get(queue), await channel.get(queue)];
  assert.deepEqual(rest.map((message) => message.content.toString()), ["b", "c"]);
  channel.nackAll(true);
  assert.equal((await channel.checkQueue(queue)).messageCount, 2);
  assert.deepEqual(await channel.purgeQueue(queue), { messageCount: 2 });
  assert.equal(await channel.get(queue), false);
});

scenario("recover gives unacknowledged messages out again", async (client) => {
  const channel = await client.confirmChannel();
  const { queue } = await channel.assertQueue(client.unique("queue"));
  channel.sendToQueue(queue, Buffer.from("m"));
  await channel.waitForConfirms();
  const inbox = await Inbox.open(channel, queue);
  await inbox.wait(1);
  await channel.recover();
  await inbox.wait(2);
  assert.equal(inbox.messages[1].fields.redelivered, true);
});

scenario("messages that a lost client held go to another", async (client) => {
  const connection = await client.connect();
  connection.on("error", () => {});
  const doomed = await connection.createConfirmChannel();
  doomed.on("error", () => {});
  const { queue } = await doomed.assertQueue(client.unique("queue"));
  for (const body of ["a", "b"]) doomed.sendToQueue(queue, Buffer.from(body));
  await doomed.waitForConfirms();
  await (await Inbox.open(doomed, queue)).wait(2);
  connection.connection.stream.destroy(new Error("cut"));
  const inbox = await Inbox.open(await client.channel(), queue);
  await inbox.wait(2);
  assert.deepEqual(inbox.bodies, ["a", "b"]);
  assert(inbox.messages.every((message) => message.fields.redelivered));
});

scenario("a consumer is told that its queue is gone", async (client) => {
  const channel = await client.channel();
  const { queue } = await channel.assertQueue(client.unique("queue"));
  const inbox = await Inbox.open(channel, queue);
  await (await client.channel()).deleteQueue(queue);
  assert.deepEqual(await inbox.wait(1), [null]);
});

scenario("a cancelled consumer gets nothing more", async (client) => {
  const channel = await client.confirmChannel();
  const { queue } = await channel.assertQueue(client.unique("queue"));
  const inbox = await Inbox.open(channel, queue, { consumerTag: "mine" });
  assert.equal(inbox.consumerTag, "mine");
  assert.deepEqual(await channel.cancel("mine"), { consumerTag: "mine" });
  channel.sendToQueue(queue, Buffer.from("m"));
  await channel.waitForConfirms();
  assert.equal((await channel.checkQueue(queue)).messageCount, 1);
  assert.equal(inbox.messages.length, 0);
});

scenario("a consumer of higher priority is served first", async (client) => {
  const channel = await client.confirmChannel();
  const { queue } = await channel.assertQueue(client.unique("queue"));
  await channel.prefetch(1);
  const low = await Inbox.open(channel, queue, { priority: 1 });
  const high = await Inbox.open(channel, queue, { priority: 10 });
  channel.sendToQueue(queue, Buffer.from("first"));
  await high.wait(1);
  channel.sendToQueue(queue, Buffer.from("second"));
  await low.wait(1);
  assert.deepEqual([high.bodies, low.bodies], [["first"], ["second"]]);
});

scenario("an exclusive consumer keeps others out", async (client) => {
  const { queue } = await (await client.channel()).assertQueue(client.unique("queue"));
  await Inbox.open(await client.channel(), queue, { exclusive: true });
  const other = await client.channel();
  const text = `403 (ACCESS-REFUSED) with message "ACCESS_REFUSED - queue '${queue}' in vhost '/' in exclusive use"`;
  await channelRefused(other, 403, text, () => Inbox.open(other, queue));
});

// --- Routing ----------------------------------------------------------------------------------------------------------

async function boundQueue(client, channel, exchange, pattern, options) {
  const { queue } = await channel.assertQueue(client.unique("queue"));
  await channel.bindQueue(queue, exchange, pattern, options);
  return queue;
}

async function bodiesIn(channel, queue) {
  const bodies = [];
  for (let message; (message = await channel.get(queue, { noAck: true })); ) bodies.push(message.content.toString());
  return bodies;
}

scenario("fanout copies to every queue", async (client) => {
  const channel = await client.confirmChannel();
  const { exchange } = await channel.assertExchange(client.unique("fanout"), "fanout");
  const queues = [];
  for (let number = 0; number < 3; number += 1) queues.push(await boundQueue(client, channel, exchange, ""));
  channel.publish(exchange, "ignored", Buffer.from("m"));
  await channel.waitForConfirms();
  for (const queue of queues) assert.deepEqual(await bodiesIn(channel, queue), ["m"]);
});

scenario("topics match words", async (client) => {
  const channel = await client.confirmChannel();
  const { exchange } = await channel.assertExchange(client.unique("topic"), "topic");
  const queues = {};
  for (const pattern of ["a.*", "a.#", "#.c", "*.b.*"]) {
    queues[pattern] = await boundQueue(client, channel, exchange, pattern);
  }
  for (const key of ["a", "a.b", "a.b.c", "x.c"]) channel.publish(exchange, key, Buffer.from(key));
  await channel.waitForConfirms();
  const expected = { "a.*": ["a.b"], "a.#": ["a", "a.b", "a.b.c"], "#.c": ["a.b.c", "x.c"], "*.b.*": ["a.b.c"] };
  for (const [pattern, queue] of Object.entries(queues)) {
    assert.deepEqual(await bodiesIn(channel, queue), expected[pattern], pattern);
  }
});

scenario("headers match all or any", async (client) => {
  const channel = await client.confirmChannel();
  const { exchange } = await channel.assertExchange(client.unique("headers"), "headers");
  const wanted = { colour: "red", size: 3 };
  const all = await boundQueue(client, channel, exchange, "", { ...wanted, "x-match": "all" });
  const any = await boundQueue(client, channel, exchange, "", { ...wanted, "x-match": "any" });
  channel.publish(exchange, "", Buffer.from("both"), { headers: wanted });
  channel.publish(exchange, "", Buffer.from("one"), { headers: { colour: "red", size: 4 } });
  channel.publish(exchange, "", Buffer.from("none"), { headers: { colour: "blue" } });
  await channel.waitForConfirms();
  assert.deepEqual(await bodiesIn(channel, all), ["both"]);
  assert.deepEqual(await bodiesIn(channel, any), ["both", "one"]);
});

scenario("exchanges are bound to exchanges, and have alternates", async (client) => {
  const channel = await client.confirmChannel();
  const { exchange: alternate } = await channel.assertExchange(client.unique("alternate"), "fanout");
  const { exchange: first } = await channel.assertExchange(client.unique("first"), "direct", {
    alternateExchange: alternate,
  });
  const { exchange: second } = await channel.assertExchange(client.unique("second"), "fanout", { internal: true });
  await channel.bindExchange(second, first, "known");
  const reached = await boundQueue(client, channel, second, "");
  const rest = await boundQueue(client, channel, alternate, "");
  for (const key of ["known", "unknown"]) channel.publish(first, key, Buffer.from(key));
  await channel.waitForConfirms();
  assert.deepEqual(await bodiesIn(channel, reached), ["known"]);
  assert.deepEqual(await bodiesIn(channel, rest), ["unknown"]);
});

// --- Dead letters, calls ----------------------------------------------------------------------------------------------

scenario("rejected and expired messages are dead-lettered with x-death", async (client) => {
  const channel = await client.confirmChannel();
  const { exchange } = await channel.assertExchange(client.unique("graveyard"), "fanout");
  const dead = await boundQueue(client, channel, exchange, "");
  const { queue } = await channel.assertQueue(client.unique("queue"), {
    deadLetterExchange: exchange,
    deadLetterRoutingKey: "buried",
    maxLength: 2,
  });
  channel.sendToQueue(queue, Buffer.from("rejected"));
  await channel.waitForConfirms();
  channel.reject(await channel.get(queue), false);
  channel.sendToQueue(queue, Buffer.from("expired"), { expiration: "1" });
  const inbox = await Inbox.open(channel, dead, { noAck: true });
  await inbox.wait(2);
  for (const body of ["dropped", "kept", "kept too"]) channel.sendToQueue(queue, Buffer.from(body));
  await inbox.wait(3);
  assert.deepEqual(inbox.bodies, ["rejected", "expired", "dropped"]);
  const deaths = inbox.messages.map((message) => message.properties.headers["x-death"][0]);
  assert.deepEqual(deaths.map((death) => death.reason), ["rejected", "expired", "maxlen"]);
  for (const death of deaths) {
    assert.equal(death.queue, queue);
    assert.equal(death.count, 1);
    assert.equal(death.exchange, "");
    assert.deepEqual(death["routing-keys"], [queue]);
    assert.equal(death.time["!"], "timestamp");
  }
  assert.equal(deaths[1]["original-expiration"], "1");
  assert.equal(inbox.messages[0].properties.headers["x-first-death-reason"], "rejected");
  assert.equal(inbox.messages[0].fields.routingKey, "buried");
  assert.equal(inbox.messages[1].properties.expiration, undefined);
});

scenario("calls are answered through direct reply-to", async (client) => {
  const server = await client.channel();
  const { queue } = await server.assertQueue(client.unique("calls"));
  await server.consume(queue, (message) => {
    const { replyTo, correlationId } = message.properties;
    assert.match(replyTo, /^amq\.rabbitmq\.reply-to\./);
    server.sendToQueue(replyTo, Buffer.from(String(message.content * 2)), { correlationId });
    server.ack(message);
  });
  const caller = await client.channel();
  const answers = await Inbox.open(caller, "amq.rabbitmq.reply-to", { noAck: true });
  for (let number = 0; number < 20; number += 1) {
    caller.sendToQueue(queue, Buffer.from(String(number)), {
      replyTo: "amq.rabbitmq.reply-to",
      correlationId: String(number),
    });
  }
  for (const message of await answers.wait(20)) {
    assert.equal(Number(message.content), message.properties.correlationId * 2);
  }
});

// --- Refusals ---------------------------------------------------------------------------------------------------------

scenario("an inequivalent declaration is refused with 406", async (client) => {
  const channel = await client.channel();
  const queue = client.unique("queue");
  await channel.assertQueue(queue, { durable: true });
  const text =
    `406 (PRECONDITION-FAILED) with message "PRECONDITION_FAILED - inequivalent arg 'durable' for queue '${queue}' ` +
    `in vhost '/': received 'false' but current is 'true'"`;
  await channelRefused(channel, 406, text, () => channel.assertQueue(queue, { durable: false }));
});

scenario("what does not exist is refused with 404", async (client) => {
  const connection = await client.connect();
  const missing = client.unique("missing");
  const refusals = {
    [`no queue '${missing}' in vhost '/'`]: (channel) => channel.checkQueue(missing),
    [`no exchange '${missing}' in vhost '/'`]: (channel) => channel.publish(missing, "", Buffer.from("m")),
  };
  for (const [reason, act] of Object.entries(refusals)) {
    const channel = await connection.createChannel();
    const text = `404 (NOT-FOUND) with message "NOT_FOUND - ${reason}"`;
    await channelRefused(channel, 404, text, () => act(channel));
  }
  // The connection has survived all of that.
  await (await connection.createChannel()).assertQueue("", { exclusive: true });
});

scenario("an unknown delivery tag is refused with 406", async (client) => {
  const channel = await client.channel();
  const text = `406 (PRECONDITION-FAILED) with message "PRECONDITION_FAILED - unknown delivery tag 99"`;
  await channelRefused(channel, 406, text, () => channel.ack({ fields: { deliveryTag: 99 } }));
});

scenario("a wrong password is refused", async (client) => {
  await assert.rejects(
    () => client.connect({}, { credentials: credentials.plain("guest", "wrong") }),
    /403 \(ACCESS-REFUSED\) with message "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN/,
  );
});

// --- Connections ------------------------------------------------------------------------------------------------------

scenario("a connection that closes while channels still publish is closed cleanly", async (client) => {
  const connection = await client.connect();
  const channel = await connection.createChannel();
  const { queue } = await channel.assertQueue("", { exclusive: true });
  // Until the channel's buffer is full; the close then overtakes what is in it.
  while (channel.sendToQueue(queue, Buffer.from("m")));
  const closed = once(connection, "close");
  await connection.close();
  assert.deepEqual(await closed, [undefined]);
});

scenario("the secret of a connection is updated", async (client) => {
  const connection = await client.connect();
  const updated = once(connection, "update-secret-ok");
  await connection.updateSecret(Buffer.from("guest"), "rotation");
  await updated;
  await (await connection.createChannel()).assertQueue("", { exclusive: true });
});

scenario("an idle connection is kept alive by heartbeats", async (client) => {
  const connection = await client.connect({ heartbeat: 1 });
  const lost = [];
  connection.on("error", (error) => lost.push(error));
  connection.on("close", (error) => lost.push(error));
  // One in every half interval. After two intervals without one of the broker's, amqplib would have given it up.
  let beats = 0;
  connection.connection.heartbeater.on("beat", () => (beats += 1));
  await eventually(() => beats >= 7, "seven heartbeats");
  assert.deepEqual(lost, []);
  await (await connection.createChannel()).assertQueue("", { exclusive: true });
});
