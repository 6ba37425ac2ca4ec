import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.IntStream;
import org.apache.kafka.clients.admin.GroupListing;
import org.apache.kafka.clients.admin.ListGroupsOptions;
import org.apache.kafka.clients.admin.ListShareGroupOffsetsSpec;
import org.apache.kafka.clients.admin.ShareGroupDescription;
import org.apache.kafka.clients.admin.SharePartitionOffsetInfo;
import org.apache.kafka.clients.consumer.AcknowledgeType;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaShareConsumer;
import org.apache.kafka.clients.consumer.ShareConsumer;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.GroupType;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicIdPartition;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.GroupNotEmptyException;
import org.apache.kafka.common.errors.InvalidConfigurationException;
import org.apache.kafka.common.errors.InvalidRecordStateException;
import org.apache.kafka.common.serialization.StringDeserializer;

/** Share groups, "queues for Kafka" (KIP-932): several consumers work off what is in the same partitions. */
final class ShareGroups extends Clients {
    private static final Map<String, Object> EXPLICIT = Map.of("share.acknowledgement.mode", "explicit");
    private static final int DELIVERIES_MAX = 5;

    static void scenarios() {
        scenario("share group: records are acknowledged by polling on", ShareGroups::implicit);
        scenario("share group: records are accepted, released and rejected", ShareGroups::explicit);
        scenario("share group: consumers compete for the records of a partition", ShareGroups::competing);
        scenario("share group: a consumer that closes gives back what it had", ShareGroups::closing);
        scenario("share group: what is locked for too long goes to another consumer", ShareGroups::lockTimeout);
        scenario("share group: a lock is renewed", ShareGroups::renewed);
        scenario("share group: a record is delivered so many times and no more", ShareGroups::deliveryLimit);
        scenario("share group: where a new group starts", ShareGroups::autoOffsetReset);
        scenario("share group: only what is committed is delivered", ShareGroups::readCommitted);
        scenario("share group: groups are described, listed and deleted", ShareGroups::administered);
        scenario("share group: offsets are listed, altered and deleted", ShareGroups::offsets);
        scenario("share group: settings of a group", ShareGroups::configured);
    }

    private static void scenario(String name, Scenarios.Play<ShareGroups> play) {
        Scenarios.scenario(name, ShareGroups::new, play);
    }

    ShareGroups(Broker broker) {
        super(broker);
    }

    private void implicit() throws Exception {
        String topic = topic(1, Map.of());
        String group = group(Map.of());
        produce(topic, 20);
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        Set<Long> acknowledged = new TreeSet<>();
        try (ShareConsumer<String, String> consumer = shareConsumer(group, Map.of("max.poll.records", 7))) {
            consumer.setAcknowledgementCommitCallback((offsets, error) -> {
                if (error == null) {
                    offsets.values().forEach(acknowledged::addAll);
                }
            });
            consumer.subscribe(List.of(topic));
            eventually(() -> poll(consumer, got) && acknowledged.size() == 20, "all records");
            check(values(got).equals(IntStream.range(0, 20).mapToObj(each -> "" + each).toList()), "in order, once");
            check(got.stream().allMatch(record -> record.deliveryCount().equals(Optional.of((short) 1))), "the count");
        }
        produce(topic, 5);
        got.clear();
        try (ShareConsumer<String, String> consumer = shareConsumer(group, Map.of())) {
            consumer.subscribe(List.of(topic));
            eventually(() -> poll(consumer, got) && got.size() >= 5, "the new records");
            check(got.get(0).offset() == 20, "only these");
        }
    }

    private void explicit() throws Exception {
        String topic = topic(1, Map.of());
        String group = group(Map.of());
        produce(topic, 4);
        try (ShareConsumer<String, String> consumer = shareConsumer(group, EXPLICIT)) {
            consumer.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> got = pollSome(consumer, 4);
            for (ConsumerRecord<String, String> record : got) {
                switch ((int) record.offset()) {
                    case 1 -> consumer.acknowledge(record, AcknowledgeType.RELEASE);
                    case 2 -> consumer.acknowledge(record, AcknowledgeType.REJECT);
                    default -> consumer.acknowledge(record);
                }
            }
            accepted(consumer.commitSync());
            List<ConsumerRecord<String, String>> again = pollSome(consumer, 1);
            check(again.size() == 1 && again.get(0).offset() == 1, "what was released, and nothing else");
            check(again.get(0).deliveryCount().equals(Optional.of((short) 2)), "its second delivery");
            try {
                consumer.poll(POLL);
                check(false, "polled while a record was not acknowledged");
            } catch (IllegalStateException expected) {
                consumer.acknowledge(again.get(0), AcknowledgeType.ACCEPT);
            }
            accepted(consumer.commitSync());
            produce(topic, 1);
            check(pollSome(consumer, 1).get(0).offset() == 4, "the next one");
        }
    }

    private void competing() throws Exception {
        String topic = topic(1, Map.of());
        String group = group(Map.of());
        Map<String, Object> settings =
                Map.of("max.poll.records", 10, "share.acquire.mode", "record_limit", "fetch.max.wait.ms", 50);
        try (ShareConsumer<String, String> first = shareConsumer(group, settings);
                ShareConsumer<String, String> second = shareConsumer(group, settings)) {
            List<ConsumerRecord<String, String>> firsts = new ArrayList<>();
            List<ConsumerRecord<String, String>> seconds = new ArrayList<>();
            first.subscribe(List.of(topic));
            second.subscribe(List.of(topic));
            eventually(() -> poll(first, firsts) && poll(second, seconds) && members(group) == 2, "two members");
            produce(topic, 300);
            eventually(
                    () -> poll(first, firsts) && poll(second, seconds) && firsts.size() + seconds.size() >= 300, "all records");
            check(!firsts.isEmpty() && !seconds.isEmpty(), "some for each: " + firsts.size() + ", " + seconds.size());
            Set<Long> all = new HashSet<>();
            firsts.forEach(record -> all.add(record.offset()));
            seconds.forEach(record -> all.add(record.offset()));
            check(all.size() == 300 && firsts.size() + seconds.size() == 300, "each record once");
        }
        // More consumers than partitions: that is what tells it from a consumer group.
        check(partitions(topic) == 1, "one partition");
    }

    private void closing() throws Exception {
        String topic = topic(1, Map.of());
        String group = group(Map.of());
        produce(topic, 10);
        try (ShareConsumer<String, String> second = shareConsumer(group, EXPLICIT)) {
            try (ShareConsumer<String, String> first = shareConsumer(group, EXPLICIT)) {
                first.subscribe(List.of(topic));
                List<ConsumerRecord<String, String>> got = pollSome(first, 10);
                got.subList(0, 4).forEach(first::acknowledge);
            }
            second.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> got = pollSome(second, 6);
            check(got.size() == 6 && got.get(0).offset() == 4, "what the other one had not acknowledged: " + got.size());
            check(got.stream().allMatch(record -> record.deliveryCount().equals(Optional.of((short) 2))), "again");
            got.forEach(second::acknowledge);
        }
    }

    private void lockTimeout() throws Exception {
        String topic = topic(1, Map.of());
        String group = group(Map.of("share.record.lock.duration.ms", "1000"));
        produce(topic, 3);
        try (ShareConsumer<String, String> first = shareConsumer(group, EXPLICIT);
                ShareConsumer<String, String> second = shareConsumer(group, EXPLICIT)) {
            first.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> held = pollSome(first, 3);
            check(first.acquisitionLockTimeoutMs().equals(Optional.of(1000)), "the client is told how long");
            second.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> got = pollSome(second, 3);
            check(got.size() == 3 && got.get(0).deliveryCount().equals(Optional.of((short) 2)), "their second delivery");
            held.forEach(first::acknowledge);
            Map<TopicIdPartition, Optional<KafkaException>> late = first.commitSync();
            check(late.size() == 1, "an answer for the partition");
            late.values().forEach(
                    error -> check(error.orElse(null) instanceof InvalidRecordStateException, "too late, but " + error));
            got.forEach(second::acknowledge);
            accepted(second.commitSync());
        }
    }

    private void renewed() throws Exception {
        String topic = topic(1, Map.of());
        String group = group(Map.of("share.record.lock.duration.ms", "1000"));
        produce(topic, 1);
        try (ShareConsumer<String, String> first = shareConsumer(group, EXPLICIT);
                ShareConsumer<String, String> second = shareConsumer(group, EXPLICIT)) {
            first.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> held = pollSome(first, 1);
            second.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> stolen = new ArrayList<>();
            long until = System.currentTimeMillis() + 2_500;
            while (System.currentTimeMillis() < until) {
                first.acknowledge(held.get(0), AcknowledgeType.RENEW);
                accepted(first.commitSync());
                // The client hands out once more what it has renewed, so that it can be acknowledged once more.
                held = pollSome(first, 1);
                poll(second, stolen);
            }
            check(stolen.isEmpty(), "it stayed with who renewed it");
            first.acknowledge(held.get(0), AcknowledgeType.ACCEPT);
            accepted(first.commitSync());
            produce(topic, 1);
            eventually(() -> poll(second, stolen) && !stolen.isEmpty(), "the next one");
            check(stolen.get(0).offset() == 1, "only the next one");
            stolen.forEach(second::acknowledge);
        }
    }

    private void deliveryLimit() throws Exception {
        String topic = topic(1, Map.of());
        String group = group(Map.of());
        produce(topic, 2);
        try (ShareConsumer<String, String> consumer = shareConsumer(group, EXPLICIT)) {
            consumer.subscribe(List.of(topic));
            List<Integer> counts = new ArrayList<>();
            List<ConsumerRecord<String, String>> got = new ArrayList<>();
            for (int delivery = 1; delivery <= DELIVERIES_MAX; delivery++) {
                got.clear();
                eventually(() -> poll(consumer, got) && !got.isEmpty(), "a delivery");
                for (ConsumerRecord<String, String> record : got) {
                    boolean poison = record.offset() == 0;
                    consumer.acknowledge(record, poison ? AcknowledgeType.RELEASE : AcknowledgeType.ACCEPT);
                    if (poison) {
                        counts.add((int) record.deliveryCount().orElseThrow());
                    }
                }
                accepted(consumer.commitSync());
            }
            check(counts.equals(List.of(1, 2, 3, 4, 5)), "its deliveries: " + counts);
            produce(topic, 1);
            List<ConsumerRecord<String, String>> next = pollSome(consumer, 1);
            check(next.size() == 1 && next.get(0).offset() == 2, "the poison is not delivered any more");
        }
    }

    private void autoOffsetReset() throws Exception {
        String topic = topic(1, Map.of());
        long then = System.currentTimeMillis() - 7_200_000;
        try (Producer<String, String> producer = producer(Map.of())) {
            producer.send(new ProducerRecord<>(topic, 0, then, null, "old"));
            producer.send(new ProducerRecord<>(topic, 0, then + 7_000_000, null, "young"));
        }
        check(firstOf(topic, group(Map.of("share.auto.offset.reset", "earliest"))).equals("old"), "from the first");
        check(firstOf(topic, group(Map.of("share.auto.offset.reset", "by_duration:PT1H"))).equals("young"), "an hour");
        String latest = unique("share");
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (ShareConsumer<String, String> consumer = shareConsumer(latest, Map.of())) {
            consumer.subscribe(List.of(topic));
            // The offset is chosen some time after the group has got its first member: what comes then is what it sees.
            eventually(
                    () -> {
                        produce(topic, 1);
                        return poll(consumer, got) && !got.isEmpty();
                    },
                    "a new record");
            check(values(got).stream().allMatch("0"::equals), "only new ones");
        }
        refused(
                InvalidConfigurationException.class,
                () -> configure(ConfigResource.Type.GROUP, latest, Map.of("share.auto.offset.reset", "never")));
    }

    private void readCommitted() throws Exception {
        String topic = topic(1, Map.of());
        String committed = group(Map.of("share.isolation.level", "read_committed"));
        String all = group(Map.of());
        try (Producer<String, String> producer = producer(Map.of("transactional.id", unique("transaction")))) {
            producer.initTransactions();
            for (boolean commit : List.of(false, true)) {
                producer.beginTransaction();
                producer.send(new ProducerRecord<>(topic, commit ? "good" : "bad"));
                if (commit) {
                    producer.commitTransaction();
                } else {
                    producer.flush();
                    producer.abortTransaction();
                }
            }
            check(firstOf(topic, committed).equals("good"), "what is committed");
            check(firstOf(topic, all).equals("bad"), "what was aborted too, unless a group asks not to get it");
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, "open"));
            producer.flush();
            List<ConsumerRecord<String, String>> got = new ArrayList<>();
            try (ShareConsumer<String, String> consumer = shareConsumer(committed, Map.of())) {
                consumer.subscribe(List.of(topic));
                for (int round = 0; round < 10; round++) {
                    poll(consumer, got);
                }
                check(!values(got).contains("open"), "what is open is not delivered");
                producer.commitTransaction();
                eventually(() -> poll(consumer, got) && values(got).contains("open"), "what is committed now");
                check(!values(got).contains("bad"), "what was aborted is never delivered");
            }
        }
    }

    private void administered() throws Exception {
        String topic = topic(2, Map.of());
        String group = group(Map.of());
        produce(topic, 1);
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (ShareConsumer<String, String> consumer = shareConsumer(group, Map.of("client.id", "the-client"))) {
            consumer.subscribe(List.of(topic));
            eventually(() -> poll(consumer, got) && !got.isEmpty(), "a record");
            ShareGroupDescription described = describe(group);
            check(described.groupState() == GroupState.STABLE, "a stable group");
            var member = described.members().iterator().next();
            check(member.clientId().equals("the-client"), "the client's id");
            Set<TopicPartition> both = Set.of(new TopicPartition(topic, 0), new TopicPartition(topic, 1));
            check(member.assignment().topicPartitions().equals(both), "its partitions");
            check(member.memberEpoch() == described.groupEpoch(), "its epoch");
            GroupListing listed =
                    admin.listGroups(ListGroupsOptions.forShareGroups()).all().get().stream()
                            .filter(each -> each.groupId().equals(group))
                            .findFirst()
                            .get();
            check(listed.type().equals(Optional.of(GroupType.SHARE)), "the type in the list");
            check(listed.protocol().equals("share"), "the protocol in the list");
            refused(GroupNotEmptyException.class, () -> admin.deleteShareGroups(List.of(group)).all().get());
        }
        eventually(() -> describe(group).groupState() == GroupState.EMPTY, "an empty group");
        admin.deleteShareGroups(List.of(group)).all().get();
        Collection<GroupListing> groups = admin.listGroups().all().get();
        check(groups.stream().noneMatch(each -> each.groupId().equals(group)), "it is not listed any more");
    }

    private void offsets() throws Exception {
        String topic = topic(1, Map.of());
        String group = group(Map.of());
        TopicPartition place = new TopicPartition(topic, 0);
        produce(topic, 10);
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (ShareConsumer<String, String> consumer = shareConsumer(group, EXPLICIT)) {
            consumer.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> some = pollSome(consumer, 10);
            some.forEach(record ->
                    consumer.acknowledge(record, record.offset() == 7 ? AcknowledgeType.RELEASE : AcknowledgeType.ACCEPT));
            accepted(consumer.commitSync());
            refused(
                    GroupNotEmptyException.class,
                    () -> admin.alterShareGroupOffsets(group, Map.of(place, 0L)).all().get());
        }
        SharePartitionOffsetInfo info =
                admin.listShareGroupOffsets(Map.of(group, new ListShareGroupOffsetsSpec().topicPartitions(List.of(place))))
                        .partitionsToOffsetInfo(group)
                        .get()
                        .get(place);
        // The offset may lag behind what is settled; how much is left does not.
        check(info.startOffset() <= 7, "the first one that is not settled: " + info);
        check(info.lag().equals(Optional.of(1L)), "one is left: " + info);
        admin.alterShareGroupOffsets(group, Map.of(place, 4L)).all().get();
        eventually(() -> startOffset(group, topic).equals(Optional.of(4L)), "the new offset");
        try (ShareConsumer<String, String> consumer = shareConsumer(group, Map.of())) {
            consumer.subscribe(List.of(topic));
            eventually(() -> poll(consumer, got) && got.size() == 6, "what comes after it, once more");
            check(got.get(0).offset() == 4, "what comes after it");
            check(got.get(0).deliveryCount().equals(Optional.of((short) 1)), "counted anew");
        }
        admin.deleteShareGroupOffsets(group, Set.of(topic)).all().get();
        eventually(() -> startOffset(group, topic).isEmpty(), "no offset");
        admin.deleteShareGroups(List.of(group)).all().get();
    }

    private void configured() throws Exception {
        String topic = topic(1, Map.of());
        String group = group(Map.of("share.delivery.count.limit", "2"));
        ConfigResource resource = new ConfigResource(ConfigResource.Type.GROUP, group);
        check(value(resource, "share.auto.offset.reset").equals("earliest"), "what was set");
        check(value(resource, "share.isolation.level").equals("read_uncommitted"), "a default");
        produce(topic, 1);
        try (ShareConsumer<String, String> consumer = shareConsumer(group, EXPLICIT)) {
            consumer.subscribe(List.of(topic));
            for (int delivery = 1; delivery <= 2; delivery++) {
                List<ConsumerRecord<String, String>> got = pollSome(consumer, 1);
                check(got.get(0).deliveryCount().equals(Optional.of((short) delivery)), "the count");
                consumer.acknowledge(got.get(0), AcknowledgeType.RELEASE);
                accepted(consumer.commitSync());
            }
            produce(topic, 1);
            check(pollSome(consumer, 1).get(0).offset() == 1, "the limit of the group");
        }
    }

    // --- What they share -------------------------------------------------------------------------------------------

    /** A group that starts with the first record, and that hears from its members often. */
    String group(Map<String, String> settings) throws Exception {
        String group = unique("share");
        Map<String, String> all = new HashMap<>(settings);
        all.putIfAbsent("share.auto.offset.reset", "earliest");
        configure(ConfigResource.Type.GROUP, group, all);
        return group;
    }

    ShareConsumer<String, String> shareConsumer(String group, Map<String, Object> more) {
        Map<String, Object> settings = broker.and(more);
        settings.put("group.id", group);
        return new KafkaShareConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
    }

    static boolean poll(ShareConsumer<String, String> consumer, Collection<ConsumerRecord<String, String>> into) {
        consumer.poll(POLL).forEach(into::add);
        return true;
    }

    /** The records of the first poll that gets some: it must be as many as are there. */
    static List<ConsumerRecord<String, String>> pollSome(ShareConsumer<String, String> consumer, int count)
            throws Exception {
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        eventually(() -> poll(consumer, got) && !got.isEmpty(), count + " records");
        check(got.size() == count, count + " records, not " + got.size());
        return got;
    }

    private String firstOf(String topic, String group) throws Exception {
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (ShareConsumer<String, String> consumer = shareConsumer(group, Map.of())) {
            consumer.subscribe(List.of(topic));
            eventually(() -> poll(consumer, got) && !got.isEmpty(), "records");
        }
        return got.get(0).value();
    }

    private Optional<Long> startOffset(String group, String topic) throws Exception {
        var offsets = admin.listShareGroupOffsets(Map.of(group, new ListShareGroupOffsetsSpec()));
        SharePartitionOffsetInfo info = offsets.partitionsToOffsetInfo(group).get().get(new TopicPartition(topic, 0));
        return info == null ? Optional.empty() : Optional.of(info.startOffset());
    }

    private int members(String group) throws Exception {
        return describe(group).members().size();
    }

    private ShareGroupDescription describe(String group) throws Exception {
        return admin.describeShareGroups(List.of(group)).all().get().get(group);
    }

    private static void accepted(Map<TopicIdPartition, Optional<KafkaException>> answers) {
        check(!answers.isEmpty(), "an answer");
        answers.values().forEach(error -> check(error.isEmpty(), "refused: " + error));
    }
}
