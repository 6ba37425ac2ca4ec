import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.stream.Collectors;

/** What the scenarios share: connections that are closed behind them, names that no other scenario has, and waiting. */
final class Client {
  static final long DEADLINE_MS = 20_000;
  private static final long POLL_INTERVAL_MS = 10;

  private final String url;
  private final List<Connection> opened = new ArrayList<>();
  private final List<String> names = new ArrayList<>();
  private final BufferedReader answers =
      new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));

  Client(String url) {
    this.url = url;
  }

  /** A factory for the broker, without the recovery that would hide what a scenario looks at. */
  ConnectionFactory factory() throws Exception {
    ConnectionFactory factory = new ConnectionFactory();
    factory.setUri(url);
    factory.setAutomaticRecoveryEnabled(false);
    return factory;
  }

  Connection connect(ConnectionFactory factory) throws Exception {
    Connection connection = factory.newConnection("interop");
    opened.add(connection);
    return connection;
  }

  Channel channel() throws Exception {
    return connect(factory()).createChannel();
  }

  Channel confirmChannel() throws Exception {
    Channel channel = channel();
    channel.confirmSelect();
    return channel;
  }

  String unique(String stem) {
    names.add(stem + "-" + UUID.randomUUID());
    return names.get(names.size() - 1);
  }

  /** A classic queue that is deleted behind the scenario. */
  String queue(Channel channel, Map<String, Object> arguments) throws IOException {
    return channel.queueDeclare(unique("queue"), true, false, false, arguments).getQueue();
  }

  String queue(Channel channel) throws IOException {
    return queue(channel, Map.of());
  }

  /** Let the driver do what a client cannot. */
  void ask(String what) throws IOException {
    System.out.println("ask " + what);
    equal(what, answers.readLine(), "the driver's answer");
  }

  void clean() throws Exception {
    for (Connection connection : opened) {
      connection.abort();
    }
    try (Connection connection = factory().newConnection()) {
      for (String name : names) {
        connection.createChannel().queueDelete(name);
        connection.createChannel().exchangeDelete(name);
      }
    }
  }

  static void check(boolean condition, String what) {
    if (!condition) {
      throw new AssertionError(what);
    }
  }

  static void equal(Object expected, Object seen, String what) {
    check(Objects.equals(expected, seen), what + ": " + seen + " instead of " + expected);
  }

  static void eventually(Callable<Boolean> condition, String what) throws Exception {
    long giveUpAt = System.nanoTime() + DEADLINE_MS * 1_000_000;
    while (!condition.call()) {
      check(System.nanoTime() < giveUpAt, "not within " + DEADLINE_MS + " ms: " + what);
      Thread.sleep(POLL_INTERVAL_MS);
    }
  }

  static byte[] bytes(String text) {
    return text.getBytes(StandardCharsets.UTF_8);
  }

  static String text(byte[] bytes) {
    return new String(bytes, StandardCharsets.UTF_8);
  }

  static void publish(Channel channel, String queue, String... bodies) throws IOException {
    AMQP.BasicProperties persistent = new AMQP.BasicProperties.Builder().deliveryMode(2).build();
    for (String body : bodies) {
      channel.basicPublish("", queue, persistent, bytes(body));
    }
  }

  interface Act {
    void on(Channel channel) throws Exception;
  }

  /** What `act` does must make the broker close the channel, with this code and text. */
  static void channelRefused(Channel channel, int code, String text, Act act) throws Exception {
    List<ShutdownSignalException> reasons = new CopyOnWriteArrayList<>();
    channel.addShutdownListener(reasons::add);
    try {
      act.on(channel);
    } catch (IOException refused) {
      check(refused.getCause() instanceof ShutdownSignalException, "the cause: " + refused.getCause());
    }
    eventually(() -> !reasons.isEmpty(), "the channel is closed");
    AMQP.Channel.Close close = (AMQP.Channel.Close) reasons.get(0).getReason();
    equal(code, close.getReplyCode(), "the code");
    equal(text, close.getReplyText(), "the text");
  }

  /** One consumer and what it has received, in order. */
  static final class Inbox {
    final List<Delivery> deliveries = new CopyOnWriteArrayList<>();
    final List<String> cancelled = new CopyOnWriteArrayList<>();
    final String tag;

    Inbox(Channel channel, String queue, boolean autoAck, boolean exclusive, Map<String, Object> arguments)
        throws IOException {
      tag =
          channel.basicConsume(
              queue,
              autoAck,
              "",
              false,
              exclusive,
              arguments,
              (consumerTag, delivery) -> deliveries.add(delivery),
              consumerTag -> cancelled.add(consumerTag));
    }

    Inbox(Channel channel, String queue, boolean autoAck) throws IOException {
      this(channel, queue, autoAck, false, Map.of());
    }

    List<String> bodies() {
      return deliveries.stream().map(delivery -> text(delivery.getBody())).collect(Collectors.toList());
    }

    long tag(int index) {
      return deliveries.get(index).getEnvelope().getDeliveryTag();
    }

    List<Delivery> await(int count) throws Exception {
      eventually(() -> deliveries.size() >= count, count + " deliveries, after " + deliveries.size());
      equal(count, deliveries.size(), "deliveries");
      return deliveries;
    }
  }
}
