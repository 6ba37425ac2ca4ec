import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.IntStream;
import org.apache.kafka.clients.consumer.AcknowledgeType;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.ShareConsumer;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;

/** The broker is killed and started again, and clients go on. Each scenario has a broker to itself. */
final class Restarts extends Clients {
    private static final String KILL = "kill and start";

    static void scenarios() {
        scenario("killed: an open transaction goes on and is committed", s -> s.openTransaction(true));
        scenario("killed: an open transaction goes on and is aborted", s -> s.openTransaction(false));
        scenario("killed: offsets of a transaction are kept", Restarts::transactionalOffsets);
        scenario("killed: members of the consumer protocol keep their partitions", Restarts::consumerGroup);
        scenario("killed: a share group knows what is settled, and how often the rest was delivered", Restarts::shareGroup);
    }

    private static void scenario(String name, Scenarios.Play<Restarts> play) {
        Scenarios.scenario(name, Restarts::new, play);
    }

    private Restarts(Broker broker) {
        super(broker);
    }

    private void openTransaction(boolean commit) throws Exception {
        String topic = topic(1, Map.of());
        try (Producer<String, String> producer = producer(Map.of("transactional.id", unique("transaction")))) {
            producer.initTransactions();
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, "before")).get();
            ask(KILL);
            producer.send(new ProducerRecord<>(topic, "after")).get();
            if (commit) {
                producer.commitTransaction();
            } else {
                producer.abortTransaction();
            }
            ask(KILL);
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, "next"));
            producer.commitTransaction();
        }
        List<String> expected = commit ? List.of("before", "after", "next") : List.of("next");
        check(values(read(topic, expected.size(), Map.of("isolation.level", "read_committed"))).equals(expected), "all");
        check(read(topic, 3).get(2).offset() == 3, "a marker stands between them");
    }

    private void transactionalOffsets() throws Exception {
        String topic = topic(1, Map.of());
        String group = unique("group");
        TopicPartition place = new TopicPartition(topic, 0);
        produce(topic, 10);
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> consumer = consumer(group, Map.of());
                Producer<String, String> producer = producer(Map.of("transactional.id", unique("transaction")))) {
            producer.initTransactions();
            consumer.subscribe(List.of(topic));
            eventually(() -> poll(consumer, got) && got.size() == 10, "the records");
            producer.beginTransaction();
            producer.sendOffsetsToTransaction(Map.of(place, new OffsetAndMetadata(7)), consumer.groupMetadata());
            ask(KILL);
            producer.commitTransaction();
            ask(KILL);
            check(consumer.committed(Set.of(place)).get(place).offset() == 7, "the offset");
        }
    }

    private void consumerGroup() throws Exception {
        String topic = topic(2, Map.of());
        String group = unique("group");
        Map<String, Object> settings = Map.of("group.protocol", "consumer", "enable.auto.commit", true);
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> first = consumer(group, settings);
                Consumer<String, String> second = consumer(group, settings)) {
            first.subscribe(List.of(topic));
            second.subscribe(List.of(topic));
            eventually(
                    () -> poll(first, got)
                            && poll(second, got)
                            && first.assignment().size() == 1
                            && second.assignment().size() == 1,
                    "one each");
            Set<TopicPartition> had = Set.copyOf(first.assignment());
            ask(KILL);
            try (Producer<String, String> producer = producer(Map.of())) {
                for (int number = 0; number < 20; number++) {
                    producer.send(new ProducerRecord<>(topic, number % 2, null, "" + number));
                }
            }
            eventually(() -> poll(first, got) && poll(second, got) && got.size() == 20, "all records");
            check(first.assignment().equals(had), "the partitions that it had");
        }
    }

    private void shareGroup() throws Exception {
        String topic = topic(1, Map.of());
        produce(topic, 10);
        try (ShareGroups groups = new ShareGroups(broker)) {
            String group = groups.group(Map.of());
            try (ShareConsumer<String, String> consumer =
                    groups.shareConsumer(group, Map.of("share.acknowledgement.mode", "explicit"))) {
                consumer.subscribe(List.of(topic));
                for (ConsumerRecord<String, String> record : ShareGroups.pollSome(consumer, 10)) {
                    boolean even = record.offset() % 2 == 0;
                    consumer.acknowledge(record, even ? AcknowledgeType.ACCEPT : AcknowledgeType.RELEASE);
                }
                consumer.commitSync();
            }
            ask(KILL);
            Set<Long> left = new TreeSet<>();
            try (ShareConsumer<String, String> consumer = groups.shareConsumer(group, Map.of())) {
                consumer.subscribe(List.of(topic));
                List<ConsumerRecord<String, String>> got = new ArrayList<>();
                eventually(() -> ShareGroups.poll(consumer, got) && got.size() >= 5, "what is left");
                got.forEach(record -> left.add(record.offset()));
                check(got.stream().allMatch(record -> record.deliveryCount().orElseThrow() == 2), "their second delivery");
            }
            check(left.equals(new TreeSet<>(IntStream.range(0, 5).mapToObj(each -> 2L * each + 1).toList())), "the odd ones");
        }
    }
}
