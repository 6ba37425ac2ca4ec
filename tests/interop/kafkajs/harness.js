// What the scenarios share: names that no other scenario has, clients that are closed behind it, and waiting.
//
// `node FILE HOST:PORT NAME` runs one scenario; its exit code tells whether it passed.
"use strict";

const assert = require("node:assert/strict");
const { randomUUID } = require("node:crypto");
const { Kafka, logLevel } = require("kafkajs");

const DEADLINE_MS = 20_000;
const POLL_INTERVAL_MS = 10;

const scenarios = new Map();

function scenario(name, play) {
  assert(!scenarios.has(name), `two scenarios are called ${name}`);
  scenarios.set(name, play);
}

async function eventually(condition, what, deadlineMs = DEADLINE_MS) {
  const giveUpAt = Date.now() + deadlineMs;
  for (;;) {
    const value = await condition();
    if (value) return value;
    assert(Date.now() < giveUpAt, `not within ${deadlineMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_INTERVAL_MS));
  }
}

class Client {
  constructor(server) {
    this.kafka = new Kafka({ clientId: "kafkajs", brokers: [server], logLevel: logLevel.NOTHING, retry: { initialRetryTime: 50, retries: 5 } });
    this.opened = [];
    this.topics = [];
  }

  async opening(client) {
    this.opened.push(client);
    await client.connect();
    return client;
  }

  admin() {
    return this.opening(this.kafka.admin());
  }

  producer(options = {}) {
    return this.opening(this.kafka.producer({ allowAutoTopicCreation: false, ...options }));
  }

  unique(stem) {
    return `${stem}-${randomUUID()}`;
  }

  async topic(options = {}) {
    const topic = this.unique("kafkajs");
    const admin = await this.admin();
    assert.equal(await admin.createTopics({ topics: [{ topic, ...options }], waitForLeaders: true }), true);
    this.topics.push(topic);
    return topic;
  }

  async clean() {
    if (this.topics.length) await (await this.admin()).deleteTopics({ topics: this.topics });
    for (const client of this.opened.reverse()) await client.disconnect();
  }
}

// A consumer of a group, and what it has received.
class Inbox {
  static async open(client, topic, { groupId = client.unique("group"), fromBeginning = true, run = {}, ...options } = {}) {
    const inbox = new Inbox();
    Object.assign(inbox, { groupId, messages: [], assignment: [], joined: 0 });
    inbox.consumer = await client.opening(
      client.kafka.consumer({ groupId, sessionTimeout: 10_000, heartbeatInterval: 200, maxWaitTimeInMs: 100, ...options }),
    );
    inbox.consumer.on(inbox.consumer.events.GROUP_JOIN, ({ payload }) => {
      inbox.joined += 1;
      inbox.assignment = payload.memberAssignment[topic] ?? [];
    });
    await inbox.consumer.subscribe({ topics: [topic], fromBeginning });
    await inbox.consumer.run({
      eachMessage: async ({ partition, message }) => {
        inbox.messages.push({ partition, ...message });
      },
      ...run,
    });
    return inbox;
  }

  get values() {
    return this.messages.map(({ value }) => value && value.toString());
  }

  async wait(count) {
    await eventually(() => this.messages.length >= count, `${count} messages, after ${this.messages.length}`);
    assert.equal(this.messages.length, count);
    return this.messages;
  }
}

// What `act` does must fail with this type of Kafka's errors.
async function refused(type, act) {
  await assert.rejects(act, (error) => {
    const found = [error, error.cause, ...(error.errors ?? []), ...(error.groups ?? []).map((each) => each.error)];
    assert(
      found.some((each) => each && each.type === type),
      `${type} instead of ${error}`,
    );
    return true;
  });
}

async function main() {
  const [server, name] = process.argv.slice(2);
  const client = new Client(server);
  try {
    await scenarios.get(name)(client);
  } finally {
    await client.clean();
  }
}

module.exports = { assert, eventually, Inbox, main, refused, scenario };
