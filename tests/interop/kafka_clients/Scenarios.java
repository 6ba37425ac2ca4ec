// What Java services do with Apache Kafka's own clients.
//
// `java Scenarios` plays the scenario that a line on its standard input names, and says `passed` or `failed`; then it
// reads the next one. A line has the broker's HOST:PORT, the scenario's name, and settings of the clients, KEY=VALUE,
// with tabs between them.

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.Future;
import java.util.function.Function;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.MemberToRemove;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.RemoveMembersFromConsumerGroupOptions;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.GroupNotEmptyException;
import org.apache.kafka.common.errors.RecordTooLargeException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;

public final class Scenarios extends Clients {
    private static final Map<String, OnBroker> PLAYS = new LinkedHashMap<>();

    interface Play<C> {
        void play(C scenarios) throws Exception;
    }

    private interface OnBroker {
        void on(Broker broker) throws Exception;
    }

    static <C extends Clients> void scenario(String name, Function<Broker, C> of, Play<C> play) {
        PLAYS.put(
                name,
                broker -> {
                    try (C scenarios = of.apply(broker)) {
                        play.play(scenarios);
                    }
                });
    }

    private static void scenario(String name, Play<Scenarios> play) {
        scenario(name, Scenarios::new, play);
    }

    static {
        scenario("records come out as they went in, with every codec", Scenarios::everyCodec);
        scenario("an idempotent producer in flight", Scenarios::idempotentProducer);
        scenario("members share partitions and hand them on", s -> s.sharing("range"));
        scenario("members rebalance cooperatively", s -> s.sharing("cooperative-sticky"));
        scenario("a group goes on where it stopped", Scenarios::committedOffsets);
        scenario("offsets by time, and seeking there", Scenarios::offsetsByTime);
        scenario("topics are administered", Scenarios::topics);
        scenario("configurations are administered", Scenarios::configurations);
        scenario("groups are administered", Scenarios::groups);
        scenario("a record that is too large is refused", Scenarios::tooLarge);
        Groups.scenarios();
        ShareGroups.scenarios();
        Transactions.scenarios();
        Administration.scenarios();
        Security.scenarios();
        Restarts.scenarios();
    }

    private Scenarios(Broker broker) {
        super(broker);
    }

    public static void main(String[] arguments) throws Exception {
        for (String line = ANSWERS.readLine(); line != null; line = ANSWERS.readLine()) {
            String[] words = line.split("\t");
            Map<String, String> settings = new HashMap<>();
            for (String setting : Arrays.asList(words).subList(2, words.length)) {
                String[] pair = setting.split("=", 2);
                settings.put(pair[0], pair[1]);
            }
            try {
                PLAYS.get(words[1]).on(new Broker(words[0], settings));
                System.out.println("passed");
            } catch (Exception | AssertionError error) {
                error.printStackTrace(System.out);
                System.out.println("failed");
            }
        }
    }

    // --- The scenarios ---------------------------------------------------------------------------------------------

    private void everyCodec() throws Exception {
        String topic = topic(1, Map.of());
        List<String> sent = new ArrayList<>();
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            try (Producer<String, String> producer = producer(Map.of("compression.type", codec, "linger.ms", 20))) {
                for (int number = 0; number < 50; number++) {
                    String value = codec + " " + number + " mill".repeat(20);
                    ProducerRecord<String, String> record = new ProducerRecord<>(topic, 0, "key", value);
                    record.headers().add("codec", codec.getBytes(StandardCharsets.UTF_8));
                    producer.send(record);
                    sent.add(value);
                }
            }
        }
        List<ConsumerRecord<String, String>> records = read(topic, sent.size());
        check(records.stream().map(ConsumerRecord::value).toList().equals(sent), "the values");
        for (ConsumerRecord<String, String> record : records) {
            String codec = new String(record.headers().lastHeader("codec").value(), StandardCharsets.UTF_8);
            check(record.value().startsWith(codec + " "), "the headers");
        }
    }

    private void idempotentProducer() throws Exception {
        String topic = topic(3, Map.of());
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        try (Producer<String, String> producer = producer(Map.of("batch.size", 500, "linger.ms", 0))) {
            for (int number = 0; number < 5_000; number++) {
                sent.add(producer.send(new ProducerRecord<>(topic, number % 3, null, "" + number)));
            }
        }
        for (int number = 0; number < sent.size(); number++) {
            check(sent.get(number).get().offset() == number / 3, "record " + number + " is where it must be");
        }
    }

    private void sharing(String strategy) throws Exception {
        String topic = topic(4, Map.of());
        String group = unique("group");
        // Offsets are committed when partitions are given up: whoever gets them goes on there.
        Map<String, Object> settings =
                Map.of("partition.assignment.strategy", assignor(strategy), "enable.auto.commit", true);
        try (Consumer<String, String> first = consumer(group, settings)) {
            first.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> got = new ArrayList<>();
            eventually(() -> poll(first, got) && first.assignment().size() == 4, "all partitions");
            try (Consumer<String, String> second = consumer(group, settings)) {
                second.subscribe(List.of(topic));
                eventually(
                        () -> poll(first, got)
                                && poll(second, got)
                                && first.assignment().size() == 2
                                && second.assignment().size() == 2,
                        "half of the partitions each");
                try (Producer<String, String> producer = producer(Map.of())) {
                    for (int number = 0; number < 40; number++) {
                        producer.send(new ProducerRecord<>(topic, number % 4, null, "" + number));
                    }
                }
                eventually(() -> poll(first, got) && poll(second, got) && got.size() == 40, "all records");
            }
            eventually(() -> poll(first, got) && first.assignment().size() == 4, "all partitions again");
            check(got.size() == 40, "each record once");
        }
    }

    private void committedOffsets() throws Exception {
        String topic = topic(1, Map.of());
        String group = unique("group");
        produce(topic, 10);
        for (int round = 0; round < 2; round++) {
            try (Consumer<String, String> consumer = consumer(group, Map.of("max.poll.records", 5))) {
                consumer.subscribe(List.of(topic));
                List<ConsumerRecord<String, String>> got = new ArrayList<>();
                eventually(() -> poll(consumer, got) && !got.isEmpty(), "records");
                check(got.get(0).offset() == 5 * round, "it goes on at " + 5 * round);
                consumer.commitSync(Map.of(new TopicPartition(topic, 0), new OffsetAndMetadata(5, "note")));
            }
        }
        OffsetAndMetadata committed =
                admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(new TopicPartition(topic, 0));
        check(committed.offset() == 5 && committed.metadata().equals("note"), "the offset and its note");
    }

    private void offsetsByTime() throws Exception {
        String topic = topic(1, Map.of());
        long then = System.currentTimeMillis() - 3_600_000;
        try (Producer<String, String> producer = producer(Map.of("compression.type", "zstd", "linger.ms", 20))) {
            for (int number = 0; number < 100; number++) {
                producer.send(new ProducerRecord<>(topic, 0, then + 10L * number, null, "" + number));
            }
        }
        TopicPartition place = new TopicPartition(topic, 0);
        try (Consumer<String, String> consumer = consumer(null, Map.of())) {
            check(consumer.offsetsForTimes(Map.of(place, then + 501)).get(place).offset() == 51, "the offset of a time");
            check(consumer.offsetsForTimes(Map.of(place, then + 5_000)).get(place) == null, "none is newer");
            consumer.assign(List.of(place));
            consumer.seek(place, 51);
            List<ConsumerRecord<String, String>> got = new ArrayList<>();
            eventually(() -> poll(consumer, got) && got.size() == 49, "what came after it");
            check(consumer.beginningOffsets(List.of(place)).get(place) == 0, "the first offset");
            check(consumer.endOffsets(List.of(place)).get(place) == 100, "the end");
        }
        long offset = admin.listOffsets(Map.of(place, OffsetSpec.maxTimestamp())).partitionResult(place).get().offset();
        check(offset == 99, "the greatest timestamp");
    }

    private void topics() throws Exception {
        String topic = topic(2, Map.of());
        refused(TopicExistsException.class, () -> admin.createTopics(List.of(new NewTopic(topic, 2, (short) 1))).all().get());
        admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(4))).all().get();
        eventually(() -> partitions(topic) == 4, "four partitions");
        produce(topic, 10);
        TopicPartition place = new TopicPartition(topic, 0);
        admin.deleteRecords(Map.of(place, RecordsToDelete.beforeOffset(6))).all().get();
        long first = admin.listOffsets(Map.of(place, OffsetSpec.earliest())).partitionResult(place).get().offset();
        check(first == 6, "the records before it are gone");
        check(!admin.describeCluster().clusterId().get().isEmpty(), "the cluster's id");
        int broker = admin.describeCluster().controller().get().id();
        check(admin.describeLogDirs(List.of(broker)).allDescriptions().get().containsKey(broker), "the log dirs");
        admin.deleteTopics(List.of(topic)).all().get();
        eventually(() -> partitions(topic) == 0, "it is gone");
        refused(UnknownTopicOrPartitionException.class, () -> admin.deleteTopics(List.of(topic)).all().get());
    }

    private void configurations() throws Exception {
        String topic = topic(1, Map.of("retention.ms", "1000000"));
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        AlterConfigOp set = new AlterConfigOp(new ConfigEntry("cleanup.policy", "compact"), AlterConfigOp.OpType.SET);
        AlterConfigOp delete = new AlterConfigOp(new ConfigEntry("retention.ms", ""), AlterConfigOp.OpType.DELETE);
        check(value(resource, "retention.ms").equals("1000000"), "what it was created with");
        admin.incrementalAlterConfigs(Map.of(resource, List.of(set, delete))).all().get();
        eventually(() -> value(resource, "cleanup.policy").equals("compact"), "the new policy");
        check(value(resource, "retention.ms").equals("604800000"), "the default again");
    }

    private void groups() throws Exception {
        String topic = topic(1, Map.of());
        String group = unique("group");
        produce(topic, 10);
        try (Consumer<String, String> consumer = consumer(group, Map.of("group.instance.id", "static"))) {
            consumer.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> got = new ArrayList<>();
            eventually(() -> poll(consumer, got) && got.size() == 10, "all records");
            consumer.commitSync();
            var described = admin.describeConsumerGroups(List.of(group)).all().get().get(group);
            check(described.groupState() == GroupState.STABLE, "a stable group");
            var member = described.members().iterator().next();
            check(member.groupInstanceId().equals(Optional.of("static")), "a static member");
            check(member.assignment().topicPartitions().equals(Set.of(new TopicPartition(topic, 0))), "its partition");
            refused(GroupNotEmptyException.class, () -> admin.deleteConsumerGroups(List.of(group)).all().get());
            var members = new RemoveMembersFromConsumerGroupOptions(List.of(new MemberToRemove("static")));
            admin.removeMembersFromConsumerGroup(group, members).all().get();
        }
        eventually(() -> state(group) == GroupState.EMPTY, "an empty group");
        TopicPartition place = new TopicPartition(topic, 0);
        admin.alterConsumerGroupOffsets(group, Map.of(place, new OffsetAndMetadata(3))).all().get();
        check(admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(place).offset() == 3, "reset");
        admin.deleteConsumerGroupOffsets(group, Set.of(place)).all().get();
        admin.deleteConsumerGroups(List.of(group)).all().get();
        check(
                admin.listGroups().all().get().stream().noneMatch(listed -> listed.groupId().equals(group)),
                "it is not listed any more");
    }

    private void tooLarge() throws Exception {
        String topic = topic(1, Map.of("max.message.bytes", "10000"));
        try (Producer<String, String> producer = producer(Map.of())) {
            String large = "x".repeat(20_000);
            refused(RecordTooLargeException.class, () -> producer.send(new ProducerRecord<>(topic, large)).get());
            check(producer.send(new ProducerRecord<>(topic, "small")).get().offset() == 0, "the next one is kept");
        }
    }

    private static String assignor(String strategy) {
        String stem = strategy.equals("range") ? "Range" : "CooperativeSticky";
        return "org.apache.kafka.clients.consumer." + stem + "Assignor";
    }
}
