import static java.util.stream.Collectors.toList;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.AuthenticationFailureException;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.MissedHeartbeatException;
import com.rabbitmq.client.Recoverable;
import com.rabbitmq.client.RecoveryListener;
import com.rabbitmq.client.Return;
import com.rabbitmq.client.RpcClient;
import com.rabbitmq.client.RpcClientParams;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.IOException;
import java.util.Arrays;
import java.util.Date;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ConcurrentSkipListSet;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;

/**
 * What users of the Java client do. `java Scenarios URL NAME` plays one scenario and ends with 0 if it passes. What only
 * the driver can do, a scenario asks for by a line on standard output, and goes on when a line comes back.
 */
final class Scenarios {
  interface Play {
    void with(Client client) throws Exception;
  }

  private static final Map<String, Play> SCENARIOS = new HashMap<>();

  private static void scenario(String name, Play play) {
    SCENARIOS.put(name, play);
  }

  public static void main(String[] arguments) throws Exception {
    int status = 0;
    try {
      Client client = new Client(arguments[0]);
      SCENARIOS.get(arguments[1]).with(client);
      client.clean();
    } catch (Throwable failure) {
      failure.printStackTrace();
      status = 1;
    }
    // Threads of connections that a scenario has lost do not matter any more.
    System.exit(status);
  }

  // --- Publishing ---------------------------------------------------------------------------------------------------

  static {
    scenario("every publish is confirmed once, asynchronously", Scenarios::confirms);
    scenario("properties and headers come back as they were sent", Scenarios::properties);
    scenario("an unroutable mandatory message is returned before it is confirmed", Scenarios::mandatory);
    scenario("large bodies are split and joined at frames of any size", Scenarios::largeBodies);
    scenario("a transaction commits and rolls back", Scenarios::transactions);
  }

  private static void confirms(Client client) throws Exception {
    int count = 2_000;
    Channel channel = client.confirmChannel();
    String queue = client.queue(channel);
    ConcurrentSkipListSet<Long> outstanding = new ConcurrentSkipListSet<>();
    AtomicInteger confirmed = new AtomicInteger();
    AtomicInteger refused = new AtomicInteger();
    channel.addConfirmListener(
        (tag, multiple) -> {
          if (multiple) {
            List<Long> settled = List.copyOf(outstanding.headSet(tag, true));
            confirmed.addAndGet(settled.size());
            settled.forEach(outstanding::remove);
          } else if (outstanding.remove(tag)) {
            confirmed.incrementAndGet();
          }
        },
        (tag, multiple) -> refused.incrementAndGet());
    for (int number = 0; number < count; number++) {
      outstanding.add(channel.getNextPublishSeqNo());
      Client.publish(channel, queue, String.valueOf(number));
    }
    Client.eventually(outstanding::isEmpty, "all confirms");
    Client.equal(count, confirmed.get(), "confirmed");
    Client.equal(0, refused.get(), "refused");
    Client.equal(count, (int) channel.messageCount(queue), "messages");
  }

  private static void properties(Client client) throws Exception {
    Channel channel = client.channel();
    String queue = client.queue(channel);
    Map<String, Object> headers = new HashMap<>();
    headers.put("text", "tëxt");
    headers.put("yes", true);
    headers.put("nothing", null);
    headers.put("byte", (byte) -1);
    headers.put("short", (short) -2);
    headers.put("int", -3);
    headers.put("long", 1L << 40);
    headers.put("double", 0.5d);
    headers.put("float", 0.25f);
    headers.put("decimal", new java.math.BigDecimal("12.34"));
    headers.put("when", new Date(1_700_000_000_000L));
    headers.put("list", List.of(1, "two"));
    headers.put("table", Map.of("deep", 1));
    AMQP.BasicProperties sent =
        new AMQP.BasicProperties.Builder()
            .contentType("application/json")
            .contentEncoding("identity")
            .headers(headers)
            .deliveryMode(2)
            .priority(7)
            .correlationId("correlation")
            .replyTo("elsewhere")
            .expiration("60000")
            .messageId("message")
            .timestamp(new Date(1_700_000_000_000L))
            .type("kind")
            .userId("guest")
            .appId("application")
            .build();
    channel.basicPublish("", queue, sent, Client.bytes("body"));
    GetResponse got = channel.basicGet(queue, true);
    Map<String, Object> seen = new HashMap<>(got.getProps().getHeaders());
    // Texts come as LongString, which equals no String.
    seen.computeIfPresent("text", (name, value) -> value.toString());
    seen.computeIfPresent("list", (name, value) -> ((List<?>) value).stream().map(String::valueOf).collect(toList()));
    headers.put("list", List.of("1", "two"));
    Client.equal(headers, seen, "headers");
    Client.equal(
        sent.builder().headers(null).build().toString(),
        got.getProps().builder().headers(null).build().toString(),
        "properties");
  }

  private static void mandatory(Client client) throws Exception {
    Channel channel = client.confirmChannel();
    List<Object> seen = new CopyOnWriteArrayList<>();
    channel.addReturnListener((Return returned) -> seen.add(returned));
    channel.addConfirmListener((tag, multiple) -> seen.add(tag), (tag, multiple) -> seen.add("nack"));
    String nowhere = client.unique("nowhere");
    channel.basicPublish("", nowhere, true, null, Client.bytes("lost"));
    Client.eventually(() -> seen.size() == 2, "the return and the confirm");
    Return returned = (Return) seen.get(0);
    Client.equal(312, returned.getReplyCode(), "the code");
    Client.equal("NO_ROUTE", returned.getReplyText(), "the text");
    Client.equal(nowhere, returned.getRoutingKey(), "the routing key");
    Client.equal("lost", Client.text(returned.getBody()), "the body");
    Client.equal(1L, seen.get(1), "the confirm");
  }

  private static void largeBodies(Client client) throws Exception {
    for (int frameMax : new int[] {4096, 131072}) {
      ConnectionFactory factory = client.factory();
      factory.setRequestedFrameMax(frameMax);
      Connection connection = client.connect(factory);
      Client.equal(frameMax, connection.getFrameMax(), "frame_max");
      Channel channel = connection.createChannel();
      String queue = client.queue(channel);
      Client.Inbox inbox = new Client.Inbox(channel, queue, true);
      int[] sizes = {0, 1, frameMax - 9, frameMax - 8, frameMax - 7, 2 * (frameMax - 8), 2 * frameMax, 3_000_001};
      Random random = new Random(frameMax);
      byte[][] bodies = new byte[sizes.length][];
      for (int index = 0; index < sizes.length; index++) {
        bodies[index] = new byte[sizes[index]];
        random.nextBytes(bodies[index]);
        channel.basicPublish("", queue, null, bodies[index]);
      }
      List<Delivery> deliveries = inbox.await(sizes.length);
      for (int index = 0; index < sizes.length; index++) {
        Client.check(Arrays.equals(bodies[index], deliveries.get(index).getBody()), "a body of " + sizes[index]);
      }
    }
  }

  private static void transactions(Client client) throws Exception {
    Channel channel = client.channel();
    String queue = client.queue(channel);
    channel.txSelect();
    Client.publish(channel, queue, "rolled back");
    channel.txRollback();
    Client.publish(channel, queue, "committed");
    Client.equal(0, (int) channel.messageCount(queue), "messages before the commit");
    channel.txCommit();
    Client.equal("committed", Client.text(channel.basicGet(queue, true).getBody()), "the message");
    Client.equal(null, channel.basicGet(queue, true), "a second message");
  }

  // --- Consuming ----------------------------------------------------------------------------------------------------

  static {
    scenario("a prefetch bounds what is unacknowledged", Scenarios::prefetch);
    scenario("a nacked message comes back to its place, marked as redelivered", Scenarios::nack);
    scenario("messages of a connection that is lost go to another", Scenarios::lost);
    scenario("a consumer is told that its queue is gone", Scenarios::cancelled);
    scenario("an exclusive consumer keeps others out until it is cancelled", Scenarios::exclusiveConsumer);
    scenario("an exclusive queue is its connection's alone, and goes with it", Scenarios::exclusiveQueue);
    scenario("many channels of many threads share a connection", Scenarios::manyChannels);
  }

  private static void prefetch(Client client) throws Exception {
    Channel channel = client.confirmChannel();
    String queue = client.queue(channel);
    Client.publish(channel, queue, IntStream.range(0, 10).mapToObj(String::valueOf).toArray(String[]::new));
    channel.waitForConfirmsOrDie(Client.DEADLINE_MS);
    channel.basicQos(3);
    Client.Inbox inbox = new Client.Inbox(channel, queue, false);
    inbox.await(3);
    Client.equal(7, (int) channel.messageCount(queue), "ready");
    inbox.await(3);
    channel.basicAck(inbox.tag(0), false);
    inbox.await(4);
    channel.basicAck(inbox.tag(3), true);
    inbox.await(7);
    Client.equal(List.of("0", "1", "2", "3", "4", "5", "6"), inbox.bodies(), "bodies");
  }

  private static void nack(Client client) throws Exception {
    Channel channel = client.confirmChannel();
    String queue = client.queue(channel);
    Client.publish(channel, queue, "a", "b", "c");
    channel.waitForConfirmsOrDie(Client.DEADLINE_MS);
    GetResponse first = channel.basicGet(queue, false);
    Client.equal(2, first.getMessageCount(), "the others");
    channel.basicNack(first.getEnvelope().getDeliveryTag(), false, true);
    GetResponse again = channel.basicGet(queue, false);
    Client.equal("a", Client.text(again.getBody()), "the body");
    Client.check(again.getEnvelope().isRedeliver(), "redelivered");
    channel.basicReject(again.getEnvelope().getDeliveryTag(), false);
    Client.equal("b", Client.text(channel.basicGet(queue, true).getBody()), "the next body");
    Client.equal(1, channel.queuePurge(queue).getMessageCount(), "purged");
  }

  private static void lost(Client client) throws Exception {
    Channel doomed = client.confirmChannel();
    String queue = client.queue(doomed);
    Client.publish(doomed, queue, "a", "b");
    doomed.waitForConfirmsOrDie(Client.DEADLINE_MS);
    new Client.Inbox(doomed, queue, false).await(2);
    doomed.getConnection().abort();
    Client.Inbox inbox = new Client.Inbox(client.channel(), queue, false);
    inbox.await(2);
    Client.equal(List.of("a", "b"), inbox.bodies(), "bodies");
    Client.check(inbox.deliveries.stream().allMatch(each -> each.getEnvelope().isRedeliver()), "redelivered");
  }

  private static void cancelled(Client client) throws Exception {
    Channel channel = client.channel();
    String queue = client.queue(channel);
    Client.Inbox inbox = new Client.Inbox(channel, queue, false);
    client.channel().queueDelete(queue);
    Client.eventually(() -> inbox.cancelled.equals(List.of(inbox.tag)), "the cancellation");
  }

  private static void exclusiveConsumer(Client client) throws Exception {
    Channel channel = client.channel();
    String queue = client.queue(channel);
    Client.Inbox first = new Client.Inbox(channel, queue, true, true, Map.of());
    String text = "ACCESS_REFUSED - queue '" + queue + "' in vhost '/' in exclusive use";
    Client.channelRefused(client.channel(), 403, text, other -> new Client.Inbox(other, queue, true));
    channel.basicCancel(first.tag);
    Client.Inbox second = new Client.Inbox(client.channel(), queue, true, true, Map.of());
    Client.publish(channel, queue, "m");
    second.await(1);
  }

  private static void exclusiveQueue(Client client) throws Exception {
    Channel channel = client.channel();
    String queue = channel.queueDeclare("", false, true, true, null).getQueue();
    Client.check(queue.startsWith("amq.gen-"), queue);
    String locked =
        "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '" + queue + "' in vhost '/'. It could be "
            + "originally declared on another connection or the exclusive property value does not match that of the "
            + "original declaration.";
    Client.channelRefused(client.channel(), 405, locked, other -> other.queueDeclarePassive(queue));
    channel.getConnection().close();
    Client.channelRefused(
        client.channel(), 404, "NOT_FOUND - no queue '" + queue + "' in vhost '/'", other -> other.queueDeclarePassive(queue));
  }

  private static void manyChannels(Client client) throws Exception {
    int threads = 8;
    int each = 200;
    Connection connection = client.connect(client.factory());
    String queue = client.queue(connection.createChannel());
    Client.Inbox inbox = new Client.Inbox(connection.createChannel(), queue, true);
    List<Throwable> failures = new CopyOnWriteArrayList<>();
    Thread[] publishers = new Thread[threads];
    for (int thread = 0; thread < threads; thread++) {
      int own = thread;
      publishers[thread] =
          new Thread(
              () -> {
                try {
                  Channel channel = connection.createChannel();
                  channel.confirmSelect();
                  for (int number = 0; number < each; number++) {
                    Client.publish(channel, queue, own + " " + number);
                  }
                  channel.waitForConfirmsOrDie(Client.DEADLINE_MS);
                  channel.close();
                } catch (Exception failure) {
                  failures.add(failure);
                }
              });
      publishers[thread].start();
    }
    for (Thread publisher : publishers) {
      publisher.join();
    }
    Client.equal(List.of(), failures, "failures");
    inbox.await(threads * each);
    for (int thread = 0; thread < threads; thread++) {
      String prefix = thread + " ";
      List<String> ofThread = inbox.bodies().stream().filter(body -> body.startsWith(prefix)).collect(toList());
      List<String> expected = IntStream.range(0, each).mapToObj(number -> prefix + number).collect(toList());
      Client.equal(expected, ofThread, "what thread " + thread + " has published");
    }
  }

  // --- Routing and dead letters -------------------------------------------------------------------------------------

  static {
    scenario("fanout, topic and headers exchanges route", Scenarios::routing);
    scenario("what a queue rejects or loses is dead-lettered with x-death", Scenarios::deadLetters);
    scenario("calls are answered through direct reply-to", Scenarios::calls);
  }

  private static void routing(Client client) throws Exception {
    Channel channel = client.confirmChannel();
    String fanout = client.unique("fanout");
    String topic = client.unique("topic");
    String headers = client.unique("headers");
    channel.exchangeDeclare(fanout, "fanout");
    channel.exchangeDeclare(topic, "topic");
    channel.exchangeDeclare(headers, "headers");
    channel.exchangeBind(topic, fanout, "");
    Map<String, Client.Inbox> inboxes = new LinkedHashMap<>();
    for (String pattern : List.of("a.*", "#.c")) {
      String queue = client.queue(channel);
      channel.queueBind(queue, topic, pattern);
      inboxes.put(pattern, new Client.Inbox(channel, queue, true));
    }
    for (String match : List.of("all", "any")) {
      String queue = client.queue(channel);
      channel.queueBind(queue, headers, "", Map.of("x-match", match, "colour", "red", "size", 3));
      inboxes.put(match, new Client.Inbox(channel, queue, true));
    }
    for (String key : List.of("a.b", "a.b.c", "c")) {
      channel.basicPublish(fanout, key, null, Client.bytes(key));
    }
    for (int size : new int[] {3, 4}) {
      AMQP.BasicProperties red =
          new AMQP.BasicProperties.Builder().headers(Map.of("colour", "red", "size", size)).build();
      channel.basicPublish(headers, "", red, Client.bytes(String.valueOf(size)));
    }
    channel.waitForConfirmsOrDie(Client.DEADLINE_MS);
    Map<String, List<String>> expected =
        Map.of("a.*", List.of("a.b"), "#.c", List.of("a.b.c", "c"), "all", List.of("3"), "any", List.of("3", "4"));
    for (Map.Entry<String, Client.Inbox> each : inboxes.entrySet()) {
      each.getValue().await(expected.get(each.getKey()).size());
      Client.equal(expected.get(each.getKey()), each.getValue().bodies(), each.getKey());
    }
  }

  @SuppressWarnings("unchecked")
  private static void deadLetters(Client client) throws Exception {
    Channel channel = client.confirmChannel();
    String dead = client.queue(channel);
    String queue =
        client.queue(
            channel,
            Map.of("x-dead-letter-exchange", "", "x-dead-letter-routing-key", dead, "x-max-length", 1));
    Client.publish(channel, queue, "rejected");
    channel.waitForConfirmsOrDie(Client.DEADLINE_MS);
    channel.basicReject(channel.basicGet(queue, false).getEnvelope().getDeliveryTag(), false);
    Client.Inbox inbox = new Client.Inbox(channel, dead, true);
    inbox.await(1);
    channel.basicPublish(
        "", queue, new AMQP.BasicProperties.Builder().expiration("1").build(), Client.bytes("expired"));
    inbox.await(2);
    Client.publish(channel, queue, "dropped", "kept");
    inbox.await(3);
    Client.equal(List.of("rejected", "expired", "dropped"), inbox.bodies(), "bodies");
    List<String> reasons = List.of("rejected", "expired", "maxlen");
    for (int index = 0; index < reasons.size(); index++) {
      Map<String, Object> headers = inbox.deliveries.get(index).getProperties().getHeaders();
      Map<String, Object> death = ((List<Map<String, Object>>) headers.get("x-death")).get(0);
      Client.equal(reasons.get(index), death.get("reason").toString(), "the reason");
      Client.equal(queue, death.get("queue").toString(), "the queue");
      Client.equal(1L, death.get("count"), "the count");
      Client.check(death.get("time") instanceof Date, "the time");
      Client.equal(reasons.get(index), headers.get("x-first-death-reason").toString(), "the first reason");
    }
  }

  private static void calls(Client client) throws Exception {
    Channel server = client.channel();
    String queue = client.queue(server);
    server.basicConsume(
        queue,
        true,
        (tag, call) -> {
          AMQP.BasicProperties properties =
              new AMQP.BasicProperties.Builder().correlationId(call.getProperties().getCorrelationId()).build();
          String answer = String.valueOf(2 * Integer.parseInt(Client.text(call.getBody())));
          server.basicPublish("", call.getProperties().getReplyTo(), properties, Client.bytes(answer));
        },
        tag -> {});
    // Its replies go through amq.rabbitmq.reply-to.
    RpcClient caller = new RpcClient(new RpcClientParams().channel(client.channel()).exchange("").routingKey(queue));
    for (int number = 0; number < 20; number++) {
      String answer = Client.text(caller.primitiveCall(Client.bytes(String.valueOf(number))));
      Client.equal(String.valueOf(2 * number), answer, "the answer");
    }
    caller.close();
  }

  // --- Refusals -----------------------------------------------------------------------------------------------------

  static {
    scenario("refusals close the channel with RabbitMQ's codes and texts", Scenarios::refusals);
    scenario("a wrong password is refused", Scenarios::wrongPassword);
    scenario("an idle connection is kept alive by heartbeats", Scenarios::heartbeats);
  }

  private static void refusals(Client client) throws Exception {
    Connection connection = client.connect(client.factory());
    String queue = client.queue(connection.createChannel());
    String missing = client.unique("missing");
    Client.channelRefused(
        connection.createChannel(),
        406,
        "PRECONDITION_FAILED - inequivalent arg 'durable' for queue '" + queue + "' in vhost '/': received 'false' but "
            + "current is 'true'",
        channel -> channel.queueDeclare(queue, false, false, false, null));
    Client.channelRefused(
        connection.createChannel(),
        406,
        "PRECONDITION_FAILED - unknown delivery tag 99",
        channel -> channel.basicAck(99, false));
    Client.channelRefused(
        connection.createChannel(),
        404,
        "NOT_FOUND - no queue '" + missing + "' in vhost '/'",
        channel -> channel.basicGet(missing, true));
    Client.channelRefused(
        connection.createChannel(),
        404,
        "NOT_FOUND - no exchange '" + missing + "' in vhost '/'",
        channel -> channel.basicPublish(missing, "", null, new byte[0]));
    Client.check(connection.isOpen(), "the connection is open");
  }

  private static void wrongPassword(Client client) throws Exception {
    ConnectionFactory factory = client.factory();
    factory.setPassword("wrong");
    try {
      client.connect(factory);
      throw new AssertionError("the wrong password was taken");
    } catch (AuthenticationFailureException refused) {
      Client.check(refused.getMessage().startsWith("ACCESS_REFUSED - Login was refused"), refused.getMessage());
    }
  }

  private static void heartbeats(Client client) throws Exception {
    ConnectionFactory factory = client.factory();
    factory.setRequestedHeartbeat(1);
    Connection connection = client.connect(factory);
    Client.equal(1, connection.getHeartbeat(), "the heartbeat");
    List<ShutdownSignalException> lost = new CopyOnWriteArrayList<>();
    connection.addShutdownListener(lost::add);
    // Both sides give a peer up after two silent intervals.
    long until = System.nanoTime() + 3_500_000_000L;
    Client.eventually(() -> System.nanoTime() > until, "three and a half intervals");
    Client.equal(List.of(), lost, "why it was lost");
    client.queue(connection.createChannel());
  }

  // --- With a broker of its own -------------------------------------------------------------------------------------

  static void ownBrokerScenario(String name, Play play) {
    scenario(name, play);
  }

  static {
    ownBrokerScenario("connections, topology and consumers recover across a restart", Scenarios::recovery);
    ownBrokerScenario("what was confirmed is there after a kill", Scenarios::kill);
    ownBrokerScenario("a broker that has stopped is noticed by its missing heartbeats", Scenarios::silentBroker);
    ownBrokerScenario("publishers are blocked while memory is short, and unblocked", Scenarios::blocked);
  }

  private static void recovery(Client client) throws Exception {
    ConnectionFactory factory = client.factory();
    factory.setAutomaticRecoveryEnabled(true);
    factory.setTopologyRecoveryEnabled(true);
    factory.setNetworkRecoveryInterval(50);
    Connection connection = client.connect(factory);
    AtomicInteger recoveries = new AtomicInteger();
    ((Recoverable) connection)
        .addRecoveryListener(
            new RecoveryListener() {
              @Override
              public void handleRecovery(Recoverable recovered) {
                recoveries.incrementAndGet();
              }

              @Override
              public void handleRecoveryStarted(Recoverable started) {}
            });
    Channel channel = connection.createChannel();
    channel.confirmSelect();
    channel.basicQos(10);
    // None of these outlives the broker: the client has to make them again.
    String exchange = client.unique("exchange");
    channel.exchangeDeclare(exchange, "topic", false, true, null);
    String temporary = channel.queueDeclare("", false, true, true, null).getQueue();
    channel.queueBind(temporary, exchange, "temporary.#");
    String durable = client.queue(channel);
    channel.queueBind(durable, exchange, "durable.#");
    Client.Inbox ofTemporary = new Client.Inbox(channel, temporary, true);
    Client.Inbox ofDurable = new Client.Inbox(channel, durable, true, true, Map.of());
    int expected = 0;
    for (String what : List.of("restart", "kill and start")) {
      int before = recoveries.get();
      client.ask(what);
      Client.eventually(() -> recoveries.get() > before, "recovery after " + what);
      channel.basicPublish(exchange, "temporary.a", null, Client.bytes(what));
      channel.basicPublish(exchange, "durable.a", null, Client.bytes(what));
      channel.waitForConfirmsOrDie(Client.DEADLINE_MS);
      expected++;
      ofTemporary.await(expected);
      ofDurable.await(expected);
    }
    Client.equal(List.of("restart", "kill and start"), ofTemporary.bodies(), "bodies");
  }

  private static void kill(Client client) throws Exception {
    int count = 500;
    Channel channel = client.confirmChannel();
    String queue = client.queue(channel);
    Client.publish(channel, queue, IntStream.range(0, count).mapToObj(String::valueOf).toArray(String[]::new));
    channel.waitForConfirmsOrDie(Client.DEADLINE_MS);
    client.ask("kill and start");
    Client.Inbox inbox = new Client.Inbox(client.channel(), queue, false);
    inbox.await(count);
    Client.equal(IntStream.range(0, count).mapToObj(String::valueOf).collect(toList()), inbox.bodies(), "bodies");
  }

  private static void silentBroker(Client client) throws Exception {
    ConnectionFactory factory = client.factory();
    factory.setRequestedHeartbeat(1);
    List<ShutdownSignalException> lost = new CopyOnWriteArrayList<>();
    client.connect(factory).addShutdownListener(lost::add);
    client.ask("pause");
    Client.eventually(() -> !lost.isEmpty(), "the connection is given up");
    Client.check(lost.get(0).getCause() instanceof MissedHeartbeatException, "the cause: " + lost.get(0).getCause());
    client.ask("resume");
  }

  private static void blocked(Client client) throws Exception {
    Channel consumer = client.channel();
    String queue = client.queue(consumer);
    Client.Inbox inbox = new Client.Inbox(consumer, queue, false);
    Connection connection = client.connect(client.factory());
    List<String> told = new CopyOnWriteArrayList<>();
    connection.addBlockedListener(told::add, () -> told.add("unblocked"));
    Channel publisher = connection.createChannel();
    publisher.confirmSelect();
    // Held by the consumer, so none of it can go to the disk.
    for (int number = 0; number < 4; number++) {
      publisher.basicPublish("", queue, null, new byte[1 << 19]);
    }
    Client.eventually(() -> !told.isEmpty(), "the publisher is blocked");
    Client.equal("low on memory", told.get(0), "the reason");
    Client.eventually(
        () -> {
          consumer.basicAck(0, true);
          return told.contains("unblocked") && inbox.deliveries.size() == 4;
        },
        "the publisher is unblocked, and what it had sent is delivered");
    publisher.waitForConfirmsOrDie(Client.DEADLINE_MS);
  }
}
