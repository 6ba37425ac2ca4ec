// What the clients of Kafka 3 do in another way than those of Kafka 4: they tell the broker of each partition before they
// write to it in a transaction, and a producer keeps its epoch from one transaction to the next.
//
// `java Scenarios` plays the scenario that a line on its standard input names: HOST:PORT, a tab, the name.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.InvalidProducerEpochException;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

public final class Scenarios {
    private static final long DEADLINE_MS = 20_000;
    private static final Map<String, Play> PLAYS = new LinkedHashMap<>();

    private final String server;
    private final Admin admin;
    private final String topic = "old-" + UUID.randomUUID();
    private final TopicPartition place = new TopicPartition(topic, 0);

    interface Play {
        void play(Scenarios scenarios) throws Exception;
    }

    static void scenario(String name, Play play) {
        PLAYS.put(name, play);
    }

    static {
        scenario("old client: what is committed is read, what is aborted is not", Scenarios::commitAndAbort);
        scenario("old client: offsets in a transaction", Scenarios::offsets);
        scenario("old client: a second producer fences the first", Scenarios::fencing);
        scenario("old client: members share partitions", Scenarios::sharing);
    }

    private Scenarios(String server) throws Exception {
        this.server = server;
        this.admin = Admin.create(Map.of("bootstrap.servers", server));
        admin.createTopics(List.of(new NewTopic(topic, 2, (short) 1))).all().get();
    }

    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] words = line.split("\t");
            try {
                Scenarios scenarios = new Scenarios(words[0]);
                PLAYS.get(words[1]).play(scenarios);
                scenarios.admin.close();
                System.out.println("passed");
            } catch (Exception | AssertionError error) {
                error.printStackTrace(System.out);
                System.out.println("failed");
            }
        }
    }

    private void commitAndAbort() throws Exception {
        try (Producer<String, String> producer = producer("transaction-" + UUID.randomUUID())) {
            producer.initTransactions();
            for (String value : List.of("one", "aborted", "two", "three")) {
                producer.beginTransaction();
                producer.send(new ProducerRecord<>(topic, 0, null, value));
                producer.send(new ProducerRecord<>(topic, 1, null, value));
                if (value.equals("aborted")) {
                    producer.flush();
                    producer.abortTransaction();
                } else {
                    producer.commitTransaction();
                }
            }
        }
        check(read(3).equals(List.of("one", "two", "three")), "what was committed");
    }

    private void offsets() throws Exception {
        String group = "group-" + UUID.randomUUID();
        try (Producer<String, String> producer = producer("transaction-" + UUID.randomUUID());
                Consumer<String, String> consumer = consumer(group)) {
            producer.initTransactions();
            consumer.subscribe(List.of(topic));
            eventually(() -> poll(consumer) >= 0 && consumer.assignment().size() == 2, "partitions");
            for (long offset : List.of(3L, 5L)) {
                producer.beginTransaction();
                producer.send(new ProducerRecord<>(topic, 0, null, "at " + offset));
                producer.sendOffsetsToTransaction(Map.of(place, new OffsetAndMetadata(offset)), consumer.groupMetadata());
                if (offset == 3) {
                    producer.commitTransaction();
                } else {
                    producer.abortTransaction();
                }
            }
            var committed = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            check(committed.get(place).offset() == 3, "the offset that was committed");
        }
        check(read(1).equals(List.of("at 3")), "the record that was committed");
    }

    private void fencing() throws Exception {
        String id = "transaction-" + UUID.randomUUID();
        try (Producer<String, String> first = producer(id);
                Producer<String, String> second = producer(id)) {
            first.initTransactions();
            first.beginTransaction();
            first.send(new ProducerRecord<>(topic, 0, null, "fenced")).get();
            second.initTransactions();
            try {
                first.send(new ProducerRecord<>(topic, 0, null, "late")).get();
                first.commitTransaction();
                check(false, "not fenced");
            } catch (ProducerFencedException fenced) {
                // As it should be.
            } catch (ExecutionException error) {
                boolean fenced =
                        error.getCause() instanceof ProducerFencedException
                                || error.getCause() instanceof InvalidProducerEpochException;
                check(fenced, "fenced, but not because of " + error.getCause());
            }
            second.beginTransaction();
            second.send(new ProducerRecord<>(topic, 0, null, "second"));
            second.commitTransaction();
        }
        check(read(1).equals(List.of("second")), "only what the second one wrote");
    }

    private void sharing() throws Exception {
        String group = "group-" + UUID.randomUUID();
        try (Consumer<String, String> first = consumer(group);
                Consumer<String, String> second = consumer(group)) {
            first.subscribe(List.of(topic));
            second.subscribe(List.of(topic));
            eventually(
                    () -> poll(first) + poll(second) >= 0
                            && first.assignment().size() == 1
                            && second.assignment().size() == 1,
                    "one each");
        }
    }

    // --- What they share -------------------------------------------------------------------------------------------

    private Producer<String, String> producer(String id) {
        Map<String, Object> settings = Map.of("bootstrap.servers", server, "transactional.id", id);
        return new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer());
    }

    private Consumer<String, String> consumer(String group) {
        Map<String, Object> settings = new HashMap<>();
        settings.put("bootstrap.servers", server);
        settings.put("auto.offset.reset", "earliest");
        settings.put("enable.auto.commit", false);
        settings.put("isolation.level", "read_committed");
        settings.put("heartbeat.interval.ms", 200);
        settings.put("group.id", group);
        return new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
    }

    private static int poll(Consumer<String, String> consumer) {
        return consumer.poll(Duration.ofMillis(50)).count();
    }

    /** What is committed in the first partition, up to its end. */
    private List<String> read(int count) throws Exception {
        List<String> got = new ArrayList<>();
        try (Consumer<String, String> consumer = consumer("reader-" + UUID.randomUUID())) {
            consumer.assign(List.of(place));
            long end = consumer.endOffsets(List.of(place)).get(place);
            eventually(
                    () -> {
                        consumer.poll(Duration.ofMillis(50)).forEach(record -> got.add(record.value()));
                        return got.size() >= count && consumer.position(place) >= end;
                    },
                    count + " records");
        }
        return got;
    }

    private static void eventually(Callable<Boolean> condition, String what) throws Exception {
        long giveUpAt = System.currentTimeMillis() + DEADLINE_MS;
        while (!condition.call()) {
            check(System.currentTimeMillis() < giveUpAt, "not in time: " + what);
        }
    }

    private static void check(boolean condition, String what) {
        if (!condition) {
            throw new AssertionError(what);
        }
    }
}
