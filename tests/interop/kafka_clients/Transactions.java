import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.AbortTransactionSpec;
import org.apache.kafka.clients.admin.ListTransactionsOptions;
import org.apache.kafka.clients.admin.ProducerState;
import org.apache.kafka.clients.admin.TransactionDescription;
import org.apache.kafka.clients.admin.TransactionListing;
import org.apache.kafka.clients.admin.TransactionState;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.ConsumerGroupMetadata;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.InvalidProducerEpochException;
import org.apache.kafka.common.errors.InvalidTxnStateException;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.errors.TransactionalIdNotFoundException;

/** Transactional producers: what they write is there altogether or not at all, offsets of their groups included. */
final class Transactions extends Clients {
    private static final Map<String, Object> COMMITTED = Map.of("isolation.level", "read_committed");

    static void scenarios() {
        scenario("transactions: what is committed is read, what is aborted is not", Transactions::commitAndAbort);
        scenario("transactions: a reader of what is committed waits for the oldest open one", Transactions::stableOffset);
        scenario("transactions: several topics and partitions at once", Transactions::severalPartitions);
        scenario("transactions: a second producer of the same id fences the first", Transactions::fencing);
        scenario("transactions: one that takes too long is aborted", Transactions::timeout);
        scenario("transactions: a timeout that is too long is refused", Transactions::timeoutTooLong);
        scenario("transactions: records and offsets, classic protocol", s -> s.offsets("classic"));
        scenario("transactions: records and offsets, consumer protocol", s -> s.offsets("consumer"));
        scenario("transactions: copying, with members that come and go, each record once", Transactions::copying);
        scenario("transactions: a member that was left behind cannot commit, classic protocol", s -> s.zombie("classic"));
        scenario("transactions: a member that was left behind cannot commit, consumer protocol", s -> s.zombie("consumer"));
        scenario("transactions: they are listed and described", Transactions::administered);
        scenario("transactions: an operator aborts one that hangs", Transactions::abortedByOperator);
        scenario("transactions: an operator fences producers", Transactions::fencedByOperator);
    }

    private static void scenario(String name, Scenarios.Play<Transactions> play) {
        Scenarios.scenario(name, Transactions::new, play);
    }

    Transactions(Broker broker) {
        super(broker);
    }

    private void commitAndAbort() throws Exception {
        String topic = topic(1, Map.of());
        List<String> committed = new ArrayList<>();
        List<String> all = new ArrayList<>();
        try (Producer<String, String> producer = transactional(unique("transaction"))) {
            producer.initTransactions();
            for (int round = 0; round < 6; round++) {
                boolean abort = round % 3 == 1;
                producer.beginTransaction();
                for (int number = 0; number < 5; number++) {
                    String value = (abort ? "aborted " : "committed ") + round + " " + number;
                    producer.send(new ProducerRecord<>(topic, value));
                    all.add(value);
                    if (!abort) {
                        committed.add(value);
                    }
                }
                if (abort) {
                    producer.flush();
                    producer.abortTransaction();
                } else {
                    producer.commitTransaction();
                }
            }
        }
        List<ConsumerRecord<String, String>> got = read(topic, committed.size(), COMMITTED);
        check(values(got).equals(committed), "what was committed");
        check(got.get(5).offset() == 12, "markers and what was aborted take offsets");
        check(values(read(topic, all.size())).equals(all), "everything, for who does not ask for less");
    }

    private void stableOffset() throws Exception {
        String topic = topic(1, Map.of());
        TopicPartition place = new TopicPartition(topic, 0);
        try (Producer<String, String> first = transactional(unique("transaction"));
                Producer<String, String> second = transactional(unique("transaction"));
                Consumer<String, String> consumer = consumer(null, COMMITTED)) {
            consumer.assign(List.of(place));
            first.initTransactions();
            second.initTransactions();
            first.beginTransaction();
            first.send(new ProducerRecord<>(topic, "first")).get();
            second.beginTransaction();
            second.send(new ProducerRecord<>(topic, "second")).get();
            second.commitTransaction();
            produce(topic, 1);
            check(consumer.endOffsets(List.of(place)).get(place) == 0, "nothing is stable yet");
            List<ConsumerRecord<String, String>> got = new ArrayList<>();
            for (int round = 0; round < 5; round++) {
                poll(consumer, got);
            }
            check(got.isEmpty(), "nothing is read past an open transaction");
            first.commitTransaction();
            eventually(() -> poll(consumer, got) && got.size() == 3, "all of it");
            check(values(got).equals(List.of("first", "second", "0")), "in the order of the log");
            check(consumer.endOffsets(List.of(place)).get(place) == 5, "the end, with two markers");
        }
    }

    private void severalPartitions() throws Exception {
        String one = topic(3, Map.of());
        String other = topic(1, Map.of());
        try (Producer<String, String> producer = transactional(unique("transaction"))) {
            producer.initTransactions();
            for (boolean commit : List.of(true, false, true)) {
                producer.beginTransaction();
                for (int partition = 0; partition < 3; partition++) {
                    producer.send(new ProducerRecord<>(one, partition, null, "" + commit));
                }
                producer.send(new ProducerRecord<>(other, "" + commit));
                if (commit) {
                    producer.commitTransaction();
                } else {
                    producer.flush();
                    producer.abortTransaction();
                }
            }
        }
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> consumer = consumer(null, COMMITTED)) {
            List<TopicPartition> places = new ArrayList<>(IntStream.range(0, 3).mapToObj(each -> new TopicPartition(one, each)).toList());
            places.add(new TopicPartition(other, 0));
            consumer.assign(places);
            eventually(() -> poll(consumer, got) && places.stream().allMatch(each -> consumer.position(each) == 6), "all");
        }
        check(got.size() == 8 && got.stream().allMatch(record -> record.value().equals("true")), "two of each partition");
    }

    private void fencing() throws Exception {
        String topic = topic(1, Map.of());
        String id = unique("transaction");
        try (Producer<String, String> first = transactional(id);
                Producer<String, String> second = transactional(id)) {
            first.initTransactions();
            first.beginTransaction();
            first.send(new ProducerRecord<>(topic, "of the first")).get();
            second.initTransactions();
            refused(ProducerFencedException.class, first::commitTransaction);
            second.beginTransaction();
            second.send(new ProducerRecord<>(topic, "of the second"));
            second.commitTransaction();
        }
        check(values(read(topic, 1, COMMITTED)).equals(List.of("of the second")), "the first one's was aborted");

        String another = unique("transaction");
        try (Producer<String, String> first = transactional(another);
                Producer<String, String> second = transactional(another)) {
            first.initTransactions();
            second.initTransactions();
            first.beginTransaction();
            refused(InvalidProducerEpochException.class, () -> sent(first, topic));
        }
    }

    private void timeout() throws Exception {
        String topic = topic(1, Map.of());
        String id = unique("transaction");
        try (Producer<String, String> producer = producer(Map.of("transactional.id", id, "transaction.timeout.ms", 1_000))) {
            producer.initTransactions();
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, "forgotten")).get();
            produce(topic, 1);
            // Nobody ends it: the broker does.
            check(values(read(topic, 1, COMMITTED)).equals(List.of("0")), "what was not of the transaction");
            eventually(() -> describe(id).state() == TransactionState.COMPLETE_ABORT, "aborted");
            refused(InvalidTxnStateException.class, producer::commitTransaction);
        }
    }

    private void timeoutTooLong() throws Exception {
        Map<String, Object> settings = Map.of("transactional.id", unique("transaction"), "transaction.timeout.ms", 900_001);
        try (Producer<String, String> producer = producer(settings)) {
            producer.initTransactions();
            check(false, "not refused");
        } catch (KafkaException error) {
            // The client has no exception of its own for this one, only the broker's words.
            check(error.getMessage().contains("larger than the maximum value"), "refused for another reason: " + error);
        }
    }

    private void offsets(String protocol) throws Exception {
        String input = topic(1, Map.of());
        String output = topic(1, Map.of());
        String group = unique("group");
        TopicPartition place = new TopicPartition(input, 0);
        produce(input, 10);
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> consumer = consumer(group, Map.of("group.protocol", protocol));
                Producer<String, String> producer = transactional(unique("transaction"))) {
            producer.initTransactions();
            consumer.subscribe(List.of(input));
            eventually(() -> poll(consumer, got) && got.size() == 10, "the input");
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(output, "aborted"));
            producer.sendOffsetsToTransaction(Map.of(place, new OffsetAndMetadata(5)), consumer.groupMetadata());
            producer.flush();
            producer.abortTransaction();
            check(consumer.committed(Set.of(place)).get(place) == null, "no offset of what was aborted");
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(output, "committed"));
            producer.sendOffsetsToTransaction(Map.of(place, new OffsetAndMetadata(8, "note")), consumer.groupMetadata());
            check(offset(group, place) == -1, "no offset of what is not committed yet");
            producer.commitTransaction();
            OffsetAndMetadata committed = consumer.committed(Set.of(place)).get(place);
            check(committed.offset() == 8 && committed.metadata().equals("note"), "the offset: " + committed);
        }
        check(values(read(output, 1, COMMITTED)).equals(List.of("committed")), "the output");
        got.clear();
        try (Consumer<String, String> consumer = consumer(group, Map.of("group.protocol", protocol))) {
            consumer.subscribe(List.of(input));
            eventually(() -> poll(consumer, got) && got.size() == 2, "it goes on there");
        }
    }

    private void copying() throws Exception {
        String input = topic(2, Map.of());
        String output = topic(1, Map.of());
        String group = unique("group");
        try (Producer<String, String> producer = producer(Map.of())) {
            for (int number = 0; number < 200; number++) {
                producer.send(new ProducerRecord<>(input, number % 2, null, "" + number));
            }
        }
        int round = 0;
        while (offset(group, new TopicPartition(input, 0)) + offset(group, new TopicPartition(input, 1)) < 200) {
            // Every other one is left with a transaction open, as if it had been killed: the next one finds its id.
            copySome(input, output, group, round++ % 2 == 1);
        }
        List<String> copied = new ArrayList<>(values(read(output, 200, COMMITTED)));
        copied.sort((one, other) -> Integer.compare(Integer.parseInt(one), Integer.parseInt(other)));
        check(copied.equals(IntStream.range(0, 200).mapToObj(each -> "" + each).toList()), "each once");
    }

    private void copySome(String input, String output, String group, boolean complete) throws Exception {
        Map<String, Object> settings = new HashMap<>(COMMITTED);
        settings.putAll(Map.of("max.poll.records", 40, "group.protocol", "classic"));
        Producer<String, String> producer = transactional(group);
        try (Consumer<String, String> consumer = consumer(group, settings)) {
            producer.initTransactions();
            consumer.subscribe(List.of(input));
            List<ConsumerRecord<String, String>> got = new ArrayList<>();
            eventually(() -> poll(consumer, got) && !got.isEmpty(), "input");
            producer.beginTransaction();
            Map<TopicPartition, OffsetAndMetadata> offsets = new HashMap<>();
            for (ConsumerRecord<String, String> record : got) {
                producer.send(new ProducerRecord<>(output, record.value()));
                TopicPartition place = new TopicPartition(record.topic(), record.partition());
                offsets.put(place, new OffsetAndMetadata(record.offset() + 1));
            }
            producer.sendOffsetsToTransaction(offsets, consumer.groupMetadata());
            producer.flush();
            if (complete) {
                producer.commitTransaction();
            }
        }
        producer.close(Duration.ZERO);
    }

    private void zombie(String protocol) throws Exception {
        String input = topic(1, Map.of());
        String output = topic(1, Map.of());
        String group = unique("group");
        TopicPartition place = new TopicPartition(input, 0);
        produce(input, 1);
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Producer<String, String> producer = transactional(unique("transaction"))) {
            producer.initTransactions();
            ConsumerGroupMetadata stale;
            try (Consumer<String, String> consumer = consumer(group, Map.of("group.protocol", protocol))) {
                consumer.subscribe(List.of(input));
                eventually(() -> poll(consumer, got) && got.size() == 1, "the input");
                stale = consumer.groupMetadata();
            }
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(output, "stale"));
            refused(
                    CommitFailedException.class,
                    () -> {
                        producer.sendOffsetsToTransaction(Map.of(place, new OffsetAndMetadata(1)), stale);
                        producer.commitTransaction();
                    });
            producer.abortTransaction();
            try (Consumer<String, String> consumer = consumer(group, Map.of("group.protocol", protocol))) {
                consumer.subscribe(List.of(input));
                eventually(() -> poll(consumer, got) && got.size() == 2, "the input again");
                producer.beginTransaction();
                producer.send(new ProducerRecord<>(output, "fresh"));
                producer.sendOffsetsToTransaction(Map.of(place, new OffsetAndMetadata(1)), consumer.groupMetadata());
                producer.commitTransaction();
            }
        }
        check(values(read(output, 1, COMMITTED)).equals(List.of("fresh")), "the output");
        check(offset(group, place) == 1, "the offset");
    }

    private void administered() throws Exception {
        String topic = topic(2, Map.of());
        String id = unique("transaction");
        TopicPartition place = new TopicPartition(topic, 1);
        try (Producer<String, String> producer = transactional(id)) {
            producer.initTransactions();
            check(describe(id).state() == TransactionState.EMPTY, "none yet");
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, 1, null, "value")).get();
            TransactionDescription described = describe(id);
            check(described.state() == TransactionState.ONGOING, "an open one");
            check(described.topicPartitions().equals(Set.of(place)), "its partition");
            check(described.transactionTimeoutMs() == 60_000, "its timeout");
            check(described.transactionStartTimeMs().orElseThrow() <= System.currentTimeMillis(), "its start");
            TransactionListing listed = listed(new ListTransactionsOptions(), id);
            check(listed.producerId() == described.producerId(), "the producer's id");
            check(listed.state() == TransactionState.ONGOING, "the state in the list");
            check(listed(new ListTransactionsOptions().filterStates(List.of(TransactionState.EMPTY)), id) == null, "filtered");
            check(listed(new ListTransactionsOptions().filterProducerIds(List.of(described.producerId())), id) != null, "found");
            check(listed(new ListTransactionsOptions().filterOnDuration(3_600_000), id) == null, "not for an hour");
            check(listed(new ListTransactionsOptions().filterOnTransactionalIdPattern(id + ".*"), id) != null, "matched");
            ProducerState active = producerOf(place);
            check(active.producerId() == described.producerId(), "the producer of the partition");
            check(active.producerEpoch() == described.producerEpoch(), "its epoch");
            check(active.currentTransactionStartOffset().orElseThrow() == 0, "where its transaction starts");
            producer.commitTransaction();
            eventually(() -> describe(id).state() == TransactionState.COMPLETE_COMMIT, "committed");
            check(producerOf(place).currentTransactionStartOffset().isEmpty(), "no transaction any more");
        }
        refused(
                TransactionalIdNotFoundException.class,
                () -> admin.describeTransactions(List.of(unique("nobody"))).all().get());
    }

    private void abortedByOperator() throws Exception {
        String topic = topic(1, Map.of());
        TopicPartition place = new TopicPartition(topic, 0);
        try (Producer<String, String> producer = transactional(unique("transaction"))) {
            producer.initTransactions();
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, "hanging")).get();
            produce(topic, 1);
            ProducerState state = producerOf(place);
            admin.abortTransaction(
                            new AbortTransactionSpec(
                                    place,
                                    state.producerId(),
                                    (short) state.producerEpoch(),
                                    state.coordinatorEpoch().orElse(0)))
                    .all()
                    .get();
            check(values(read(topic, 1, COMMITTED)).equals(List.of("0")), "what was held up by it");
            check(producerOf(place).currentTransactionStartOffset().isEmpty(), "no transaction any more");
            producer.close(Duration.ZERO);
        }
    }

    private void fencedByOperator() throws Exception {
        String topic = topic(1, Map.of());
        String id = unique("transaction");
        try (Producer<String, String> producer = transactional(id)) {
            producer.initTransactions();
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, "fenced")).get();
            admin.fenceProducers(List.of(id)).all().get();
            refused(InvalidProducerEpochException.class, () -> sent(producer, topic));
        }
        produce(topic, 1);
        check(values(read(topic, 1, COMMITTED)).equals(List.of("0")), "its transaction was aborted");

        String ended = unique("transaction");
        try (Producer<String, String> producer = transactional(ended)) {
            producer.initTransactions();
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, "ended")).get();
            admin.forceTerminateTransaction(ended).result().get();
            eventually(() -> describe(ended).state() == TransactionState.EMPTY, "aborted, and a new one may begin");
        }
    }

    // --- What they share -------------------------------------------------------------------------------------------

    private Producer<String, String> transactional(String id) {
        return producer(Map.of("transactional.id", id));
    }

    private static void sent(Producer<String, String> producer, String topic) throws Exception {
        producer.send(new ProducerRecord<>(topic, "refused")).get();
    }

    private TransactionDescription describe(String id) throws Exception {
        return admin.describeTransactions(List.of(id)).description(id).get();
    }

    private TransactionListing listed(ListTransactionsOptions options, String id) throws Exception {
        return admin.listTransactions(options).all().get().stream()
                .filter(each -> each.transactionalId().equals(id))
                .findFirst()
                .orElse(null);
    }

    /** The producer that has a transaction open in the partition; or the last one of those that have written to it. */
    private ProducerState producerOf(TopicPartition place) throws Exception {
        List<ProducerState> producers =
                admin.describeProducers(List.of(place)).partitionResult(place).get().activeProducers();
        return producers.stream()
                .filter(each -> each.currentTransactionStartOffset().isPresent())
                .findFirst()
                .orElse(producers.get(0));
    }

    private long offset(String group, TopicPartition place) throws Exception {
        OffsetAndMetadata committed =
                admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(place);
        return committed == null ? -1 : committed.offset();
    }
}
