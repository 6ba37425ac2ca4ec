// What the scenarios share: names that no other scenario has, connections that are closed behind it, and waiting.
//
// `node FILE URL NAME` runs one scenario; its exit code tells whether it passed. What only the driver can do (restart the
// broker, stop its process) a scenario asks for by a line on standard output, and goes on when a line comes back.
"use strict";

const assert = require("node:assert/strict");
const { randomUUID } = require("node:crypto");
const readline = require("node:readline");
const amqplib = require("amqplib");

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

// The arguments of the next `name` of an emitter.
function once(emitter, name) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${name} within ${DEADLINE_MS} ms`)), DEADLINE_MS);
    emitter.once(name, (...values) => {
      clearTimeout(timer);
      resolve(values);
    });
  });
}

class Client {
  constructor(url) {
    this.url = url;
    this.opened = [];
    this.names = [];
    this.answers = null;
  }

  async connect(query = {}, options = {}) {
    const connection = await amqplib.connect(`${this.url}?${new URLSearchParams(query)}`, options);
    this.opened.push(connection);
    return connection;
  }

  async channel() {
    return (await this.connect()).createChannel();
  }

  async confirmChannel() {
    return (await this.connect()).createConfirmChannel();
  }

  unique(stem) {
    this.names.push(`${stem}-${randomUUID()}`);
    return this.names.at(-1);
  }

  // Let the driver do what a client cannot.
  async ask(what) {
    this.answers ??= readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
    process.stdout.write(`ask ${what}\n`);
    assert.equal((await this.answers.next()).value, what);
  }

  async clean() {
    for (const connection of this.opened) await connection.close().catch(() => {});
    const connection = await amqplib.connect(this.url);
    for (const name of this.names) {
      for (const remove of ["deleteQueue", "deleteExchange"]) {
        const channel = await connection.createChannel();
        channel.on("error", () => {});
        await channel[remove](name).catch(() => {});
      }
    }
    await connection.close();
  }
}

// One consumer and what it has received, in order. A cancelled one has `null` last.
class Inbox {
  static async open(channel, queue, options = {}) {
    const inbox = new Inbox();
    inbox.messages = [];
    const { consumerTag } = await channel.consume(queue, (message) => inbox.messages.push(message), options);
    inbox.consumerTag = consumerTag;
    return inbox;
  }

  get bodies() {
    return this.messages.map((message) => message && message.content.toString());
  }

  async wait(count) {
    await eventually(() => this.messages.length >= count, `${count} deliveries, after ${this.messages.length}`);
    assert.equal(this.messages.length, count);
    return this.messages;
  }
}

// What `act` does must make the broker close the channel, with this code and text.
async function channelRefused(channel, code, text, act) {
  const closed = once(channel, "error");
  // The promise of the failed call says the same as the event; some calls have none.
  Promise.resolve(act()).catch(() => {});
  const [error] = await closed;
  assert.equal(error.code, code);
  assert.match(error.message, new RegExp(RegExp.escape?.(text) ?? text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")));
}

async function main() {
  const [url, name] = process.argv.slice(2);
  const client = new Client(url);
  await scenarios.get(name)(client);
  await client.clean();
}

if (require.main !== module) {
  // After the scenarios have been registered.
  setImmediate(() => {
    main().then(
      () => process.exit(0),
      (error) => {
        console.error(error);
        process.exit(1);
      },
    );
  });
}

module.exports = { scenario, eventually, once, Inbox, channelRefused };
