import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** What the scenarios share: clients of one broker, names that no other scenario has, and waiting. */
class Clients implements AutoCloseable {
    static final long DEADLINE_MS = 20_000;
    static final Duration POLL = Duration.ofMillis(50);
    static final BufferedReader ANSWERS =
            new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));

    final Broker broker;
    final Admin admin;

    /** Where the broker is, and what every client has to be told about it: how it logs in, for example. */
    record Broker(String server, Map<String, String> settings) {
        Map<String, Object> and(Map<String, ?> more) {
            Map<String, Object> all = new HashMap<>(settings);
            all.put("bootstrap.servers", server);
            all.putAll(more);
            return all;
        }
    }

    interface Act {
        void act() throws Exception;
    }

    Clients(Broker broker) {
        this.broker = broker;
        this.admin = Admin.create(broker.and(Map.of()));
    }

    @Override
    public void close() {
        admin.close();
    }

    /** Has the tests do what a client cannot do: kill the broker, for example. */
    static void ask(String what) throws IOException {
        System.out.println("ask " + what);
        check(what.equals(ANSWERS.readLine()), "asked for " + what);
    }

    static String unique(String stem) {
        return stem + "-" + UUID.randomUUID();
    }

    String topic(int partitions, Map<String, String> configuration) throws Exception {
        return topic(unique("java"), partitions, configuration);
    }

    String topic(String topic, int partitions, Map<String, String> configuration) throws Exception {
        admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1).configs(configuration))).all().get();
        eventually(() -> partitions(topic) == partitions, "the topic");
        return topic;
    }

    int partitions(String topic) throws Exception {
        try {
            return admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size();
        } catch (ExecutionException error) {
            return 0;
        }
    }

    String value(ConfigResource resource, String name) throws Exception {
        return admin.describeConfigs(List.of(resource)).all().get().get(resource).get(name).value();
    }

    void configure(ConfigResource.Type type, String name, Map<String, String> values) throws Exception {
        List<AlterConfigOp> changes = new ArrayList<>();
        for (Map.Entry<String, String> value : values.entrySet()) {
            ConfigEntry entry = new ConfigEntry(value.getKey(), value.getValue());
            changes.add(new AlterConfigOp(entry, AlterConfigOp.OpType.SET));
        }
        ConfigResource resource = new ConfigResource(type, name);
        admin.incrementalAlterConfigs(Map.of(resource, changes)).all().get();
        for (Map.Entry<String, String> value : values.entrySet()) {
            eventually(() -> value(resource, value.getKey()).equals(value.getValue()), value.getKey());
        }
    }

    GroupState state(String group) throws Exception {
        return admin.describeConsumerGroups(List.of(group)).all().get().get(group).groupState();
    }

    Producer<String, String> producer(Map<String, Object> more) {
        return new KafkaProducer<>(broker.and(more), new StringSerializer(), new StringSerializer());
    }

    Consumer<String, String> consumer(String group, Map<String, Object> more) {
        Map<String, Object> settings = broker.and(more);
        settings.putIfAbsent("auto.offset.reset", "earliest");
        settings.putIfAbsent("enable.auto.commit", false);
        if (!"consumer".equals(more.get("group.protocol"))) {
            settings.putIfAbsent("session.timeout.ms", 10_000);
            settings.put("heartbeat.interval.ms", 200);
        }
        if (group != null) {
            settings.put("group.id", group);
        }
        return new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
    }

    /** Records with the values 0, 1, and so on, in the first partition. */
    void produce(String topic, int count) {
        try (Producer<String, String> producer = producer(Map.of())) {
            for (int number = 0; number < count; number++) {
                producer.send(new ProducerRecord<>(topic, 0, null, "" + number));
            }
        }
    }

    List<ConsumerRecord<String, String>> read(String topic, int count) throws Exception {
        return read(topic, count, Map.of());
    }

    /** The records of the first partition, which are `count`: no more of them before the end that the client is told. */
    List<ConsumerRecord<String, String>> read(String topic, int count, Map<String, Object> settings) throws Exception {
        TopicPartition place = new TopicPartition(topic, 0);
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> consumer = consumer(null, settings)) {
            consumer.assign(List.of(place));
            eventually(
                    () -> poll(consumer, got)
                            && got.size() >= count
                            && consumer.position(place) >= consumer.endOffsets(List.of(place)).get(place),
                    count + " records");
        }
        check(got.size() == count, "no more than " + count + " records: " + values(got));
        return got;
    }

    static List<String> values(List<ConsumerRecord<String, String>> records) {
        return records.stream().map(ConsumerRecord::value).toList();
    }

    /** Always true, so that it can stand before what it is to bring about. */
    static boolean poll(Consumer<String, String> consumer, Collection<ConsumerRecord<String, String>> into) {
        consumer.poll(POLL).forEach(into::add);
        return true;
    }

    static void eventually(Callable<Boolean> condition, String what) throws Exception {
        long giveUpAt = System.currentTimeMillis() + DEADLINE_MS;
        while (!condition.call()) {
            check(System.currentTimeMillis() < giveUpAt, "not in time: " + what);
            Thread.sleep(10);
        }
    }

    static void refused(Class<? extends Exception> kind, Act act) throws Exception {
        try {
            act.act();
        } catch (ExecutionException error) {
            check(kind.isInstance(error.getCause()), kind.getSimpleName() + " instead of " + error.getCause());
            return;
        } catch (KafkaException error) {
            boolean itself = kind.isInstance(error) || kind.isInstance(error.getCause());
            check(itself, kind.getSimpleName() + " instead of " + error + ", because of " + error.getCause());
            return;
        }
        check(false, "not refused: " + kind.getSimpleName());
    }

    static void check(boolean condition, String what) {
        if (!condition) {
            throw new AssertionError(what);
        }
    }
}
