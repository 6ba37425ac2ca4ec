import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.regex.Pattern;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.GroupListing;
import org.apache.kafka.clients.admin.ListGroupsOptions;
import org.apache.kafka.clients.admin.MemberToRemove;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.RemoveMembersFromConsumerGroupOptions;
import org.apache.kafka.clients.consumer.CloseOptions;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.SubscriptionPattern;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.GroupType;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.FencedInstanceIdException;
import org.apache.kafka.common.errors.GroupNotEmptyException;
import org.apache.kafka.common.errors.InvalidRegularExpression;
import org.apache.kafka.common.errors.UnreleasedInstanceIdException;
import org.apache.kafka.common.errors.UnsupportedAssignorException;

/** Consumer groups with both protocols: the classic one, and the one in which the broker assigns (KIP-848). */
final class Groups extends Clients {
    private static final Map<String, Object> CLASSIC = Map.of("group.protocol", "classic");
    private static final Map<String, Object> CONSUMER = Map.of("group.protocol", "consumer");

    static void scenarios() {
        scenario("consumer protocol: members share partitions and hand them on", s -> s.sharing(CONSUMER, 2));
        scenario(
                "consumer protocol: partitions are assigned by range",
                s -> s.sharing(Map.of("group.protocol", "consumer", "group.remote.assignor", "range"), 2));
        scenario("consumer protocol: an assignor that there is not is refused", Groups::unknownAssignor);
        scenario("consumer protocol: a member that stays keeps what it has", Groups::keeping);
        scenario("consumer protocol: static members keep their partitions", Groups::staticMembers);
        scenario("classic protocol: a static member that comes twice fences the first", Groups::fencedStaticMember);
        scenario("consumer protocol: topics are chosen by the broker's regular expressions", Groups::brokersPatterns);
        scenario("consumer protocol: topics are chosen by the client's regular expressions", s -> s.pattern(CONSUMER));
        scenario("classic protocol: topics are chosen by the client's regular expressions", s -> s.pattern(CLASSIC));
        scenario("consumer protocol: seeking, pausing and committing", s -> s.seeking(CONSUMER));
        scenario("classic protocol: seeking, pausing and committing", s -> s.seeking(CLASSIC));
        scenario("consumer protocol: a group is described, listed and deleted", Groups::described);
        scenario("consumer protocol: a new topic and new partitions are assigned", Groups::growing);
        scenario("a group goes live from the classic to the consumer protocol and back", Groups::migration);
        scenario("an empty group goes on with the other protocol where it was", Groups::emptyMigration);
    }

    private static void scenario(String name, Scenarios.Play<Groups> play) {
        Scenarios.scenario(name, Groups::new, play);
    }

    private Groups(Broker broker) {
        super(broker);
    }

    private void sharing(Map<String, Object> protocol, int each) throws Exception {
        String topic = topic(2 * each, Map.of());
        String group = unique("group");
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> first = consumer(group, with(protocol, "enable.auto.commit", true))) {
            first.subscribe(List.of(topic));
            eventually(() -> poll(first, got) && first.assignment().size() == 2 * each, "all partitions");
            produceToAll(topic, 2 * each, 20);
            try (Consumer<String, String> second = consumer(group, with(protocol, "enable.auto.commit", true))) {
                second.subscribe(List.of(topic));
                eventually(
                        () -> poll(first, got)
                                && poll(second, got)
                                && first.assignment().size() == each
                                && second.assignment().size() == each,
                        "half of the partitions each");
                produceToAll(topic, 2 * each, 20);
                eventually(() -> poll(first, got) && poll(second, got) && got.size() == 80 * each, "all records");
            }
            eventually(() -> poll(first, got) && first.assignment().size() == 2 * each, "all partitions again");
            check(got.size() == 80 * each, "each record once");
        }
    }

    private void unknownAssignor() throws Exception {
        String topic = topic(1, Map.of());
        Map<String, Object> settings = with(CONSUMER, "group.remote.assignor", "nobody");
        try (Consumer<String, String> consumer = consumer(unique("group"), settings)) {
            consumer.subscribe(List.of(topic));
            List<ConsumerRecord<String, String>> got = new ArrayList<>();
            refused(UnsupportedAssignorException.class, () -> eventually(() -> poll(consumer, got) && false, "a refusal"));
        }
    }

    private void keeping() throws Exception {
        String topic = topic(3, Map.of());
        String group = unique("group");
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        List<TopicPartition> revoked = new ArrayList<>();
        ConsumerRebalanceListener listener = new ConsumerRebalanceListener() {
            @Override
            public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
                revoked.addAll(partitions);
            }

            @Override
            public void onPartitionsAssigned(Collection<TopicPartition> partitions) {}
        };
        try (Consumer<String, String> first = consumer(group, CONSUMER);
                Consumer<String, String> second = consumer(group, CONSUMER);
                Consumer<String, String> third = consumer(group, CONSUMER)) {
            first.subscribe(List.of(topic), listener);
            eventually(() -> poll(first, got) && first.assignment().size() == 3, "all partitions");
            second.subscribe(List.of(topic));
            eventually(
                    () -> poll(first, got) && poll(second, got) && first.assignment().size() + second.assignment().size() == 3
                            && !second.assignment().isEmpty(),
                    "a share of them");
            third.subscribe(List.of(topic));
            eventually(
                    () -> poll(first, got)
                            && poll(second, got)
                            && poll(third, got)
                            && first.assignment().size() == 1
                            && second.assignment().size() == 1
                            && third.assignment().size() == 1,
                    "one each");
            check(new HashSet<>(revoked).size() == revoked.size(), "no partition was taken away to be given back");
            check(revoked.stream().noneMatch(first.assignment()::contains), "what it has was never taken");
        }
    }

    private void staticMembers() throws Exception {
        String topic = topic(2, Map.of());
        String group = unique("group");
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        Consumer<String, String> first = consumer(group, with(CONSUMER, "group.instance.id", "one"));
        try (Consumer<String, String> second = consumer(group, with(CONSUMER, "group.instance.id", "two"))) {
            first.subscribe(List.of(topic));
            second.subscribe(List.of(topic));
            eventually(
                    () -> poll(first, got)
                            && poll(second, got)
                            && first.assignment().size() == 1
                            && second.assignment().size() == 1,
                    "one each");
            try (Consumer<String, String> another = consumer(group, with(CONSUMER, "group.instance.id", "one"))) {
                another.subscribe(List.of(topic));
                refused(
                        UnreleasedInstanceIdException.class,
                        () -> eventually(() -> poll(another, got) && poll(first, got) && false, "a refusal"));
            }
            Set<TopicPartition> had = Set.copyOf(first.assignment());
            Set<TopicPartition> others = Set.copyOf(second.assignment());
            int epoch = describe(group).groupEpoch().orElseThrow();
            first.close();
            poll(second, got);
            check(second.assignment().equals(others), "nothing is handed on while it is away");
            try (Consumer<String, String> again = consumer(group, with(CONSUMER, "group.instance.id", "one"))) {
                again.subscribe(List.of(topic));
                eventually(() -> poll(again, got) && poll(second, got) && again.assignment().equals(had), "its own again");
                check(second.assignment().equals(others), "the other one's is untouched");
                check(describe(group).groupEpoch().orElseThrow() == epoch, "nothing was assigned anew");
                again.close(CloseOptions.groupMembershipOperation(CloseOptions.GroupMembershipOperation.LEAVE_GROUP));
            }
            eventually(() -> poll(second, got) && second.assignment().size() == 2, "what a static member left for good");
        }
        RemoveMembersFromConsumerGroupOptions two =
                new RemoveMembersFromConsumerGroupOptions(List.of(new MemberToRemove("two")));
        check(describe(group).members().size() == 1, "a static member is a member when it is away");
        admin.removeMembersFromConsumerGroup(group, two).all().get();
        eventually(() -> state(group) == GroupState.EMPTY, "an empty group");
    }

    private void fencedStaticMember() throws Exception {
        String topic = topic(1, Map.of());
        String group = unique("group");
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> first = consumer(group, with(CLASSIC, "group.instance.id", "one"));
                Consumer<String, String> second = consumer(group, with(CLASSIC, "group.instance.id", "one"))) {
            first.subscribe(List.of(topic));
            eventually(() -> poll(first, got) && first.assignment().size() == 1, "its partition");
            second.subscribe(List.of(topic));
            eventually(() -> poll(second, got) && second.assignment().size() == 1, "the partition");
            refused(FencedInstanceIdException.class, () -> eventually(() -> poll(first, got) && false, "a refusal"));
        }
    }

    private void brokersPatterns() throws Exception {
        String stem = unique("pattern");
        String group = unique("group");
        topic(stem + "-one", 1, Map.of());
        topic(stem + "-other", 1, Map.of());
        topic("x-" + stem + "-one", 1, Map.of());
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> consumer = consumer(group, CONSUMER)) {
            // The whole name must match, and it is the broker that says so.
            consumer.subscribe(new SubscriptionPattern(stem + "-(one|two)"));
            eventually(() -> poll(consumer, got) && topics(consumer).equals(Set.of(stem + "-one")), "the topic of before");
            consumer.subscribe(new SubscriptionPattern(stem + "-o.*"));
            eventually(
                    () -> poll(consumer, got) && topics(consumer).equals(Set.of(stem + "-one", stem + "-other")),
                    "two topics");
            topic(stem + "-odd", 1, Map.of());
            produce(stem + "-odd", 5);
            eventually(() -> poll(consumer, got) && got.size() == 5, "records of a topic that was created meanwhile");
        }
        try (Consumer<String, String> consumer = consumer(unique("group"), CONSUMER)) {
            consumer.subscribe(new SubscriptionPattern("(a"));
            refused(
                    InvalidRegularExpression.class,
                    () -> eventually(() -> poll(consumer, got) && false, "a refusal"));
        }
    }

    private void pattern(Map<String, Object> protocol) throws Exception {
        String stem = unique("pattern");
        topic(stem + "-one", 1, Map.of());
        topic(stem + "-other", 1, Map.of());
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> consumer = consumer(unique("group"), with(protocol, "metadata.max.age.ms", 200))) {
            consumer.subscribe(Pattern.compile(stem + "-(one|two)"));
            eventually(() -> poll(consumer, got) && topics(consumer).equals(Set.of(stem + "-one")), "the topic of before");
            topic(stem + "-two", 1, Map.of());
            produce(stem + "-two", 5);
            eventually(() -> poll(consumer, got) && got.size() == 5, "records of a topic that was created meanwhile");
        }
    }

    private void seeking(Map<String, Object> protocol) throws Exception {
        String topic = topic(2, Map.of());
        String group = unique("group");
        TopicPartition one = new TopicPartition(topic, 0);
        TopicPartition other = new TopicPartition(topic, 1);
        produceToAll(topic, 2, 10);
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> consumer = consumer(group, with(protocol, "max.poll.records", 3))) {
            consumer.subscribe(List.of(topic));
            eventually(() -> poll(consumer, got) && got.size() == 20, "all records");
            check(consumer.committed(Set.of(one, other)).values().stream().allMatch(each -> each == null), "none yet");
            got.clear();
            consumer.pause(List.of(other));
            consumer.seek(one, 5);
            consumer.seek(other, 7);
            eventually(() -> poll(consumer, got) && got.size() == 5, "what came after it");
            check(got.stream().allMatch(record -> record.partition() == 0), "nothing of one that is paused");
            check(consumer.paused().equals(Set.of(other)), "paused");
            consumer.commitSync();
            consumer.resume(List.of(other));
            eventually(() -> poll(consumer, got) && got.size() == 8, "what it was to go on with");
            consumer.commitAsync(Map.of(other, new OffsetAndMetadata(8, "eight")), (offsets, error) -> {});
            eventually(
                    () -> poll(consumer, got)
                            && new OffsetAndMetadata(8, "eight").metadata().equals(consumer.committed(Set.of(other)).get(other).metadata()),
                    "the commit");
            check(consumer.committed(Set.of(one)).get(one).offset() == 10, "its offset");
            check(consumer.committed(Set.of(other)).get(other).offset() == 8, "the other one's offset");
            consumer.seekToBeginning(List.of(one));
            consumer.seekToEnd(List.of(other));
            check(consumer.position(one) == 0 && consumer.position(other) == 10, "both ends");
        }
        got.clear();
        try (Consumer<String, String> consumer = consumer(group, protocol)) {
            consumer.subscribe(List.of(topic));
            eventually(() -> poll(consumer, got) && got.size() == 2, "it goes on behind the last commit");
            check(values(got).equals(List.of("8", "9")), "the last two");
        }
    }

    private void described() throws Exception {
        String topic = topic(1, Map.of());
        String group = unique("group");
        produce(topic, 10);
        TopicPartition place = new TopicPartition(topic, 0);
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> consumer = consumer(group, with(CONSUMER, "client.id", "the-client"))) {
            consumer.subscribe(List.of(topic));
            eventually(() -> poll(consumer, got) && got.size() == 10, "all records");
            consumer.commitSync();
            eventually(() -> poll(consumer, got) && state(group) == GroupState.STABLE, "a stable group");
            ConsumerGroupDescription described = describe(group);
            check(described.type() == GroupType.CONSUMER, "its type");
            check(described.partitionAssignor().equals("uniform"), "its assignor");
            var member = described.members().iterator().next();
            check(member.clientId().equals("the-client"), "the client's id");
            check(member.assignment().topicPartitions().equals(Set.of(place)), "what it has");
            check(member.targetAssignment().orElseThrow().topicPartitions().equals(Set.of(place)), "what it is to have");
            check(member.memberEpoch().equals(described.groupEpoch()), "its epoch");
            check(member.upgraded().equals(Optional.of(true)), "it is not one of the classic protocol");
            check(listed(group).type().equals(Optional.of(GroupType.CONSUMER)), "the type in the list");
            check(listed(group).groupState().equals(Optional.of(GroupState.STABLE)), "the state in the list");
            refused(GroupNotEmptyException.class, () -> admin.deleteConsumerGroups(List.of(group)).all().get());
        }
        eventually(() -> state(group) == GroupState.EMPTY, "an empty group");
        admin.alterConsumerGroupOffsets(group, Map.of(place, new OffsetAndMetadata(3))).all().get();
        check(admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(place).offset() == 3, "reset");
        admin.deleteConsumerGroups(List.of(group)).all().get();
        var groups = admin.listGroups(new ListGroupsOptions().withTypes(Set.of(GroupType.CONSUMER))).all().get();
        check(groups.stream().noneMatch(each -> each.groupId().equals(group)), "it is not listed any more");
    }

    private void growing() throws Exception {
        String topic = topic(1, Map.of());
        String later = unique("later");
        String group = unique("group");
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        try (Consumer<String, String> consumer = consumer(group, with(CONSUMER, "allow.auto.create.topics", false))) {
            consumer.subscribe(List.of(topic, later));
            eventually(() -> poll(consumer, got) && consumer.assignment().size() == 1, "one partition");
            topic(later, 2, Map.of());
            eventually(() -> poll(consumer, got) && consumer.assignment().size() == 3, "those of the new topic");
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(3))).all().get();
            eventually(() -> poll(consumer, got) && consumer.assignment().size() == 5, "the new partitions");
            produceToAll(topic, 3, 10);
            eventually(() -> poll(consumer, got) && got.size() == 30, "all records");
            admin.deleteTopics(List.of(later)).all().get();
            eventually(() -> poll(consumer, got) && consumer.assignment().size() == 3, "a topic that is gone");
        }
    }

    private void migration() throws Exception {
        String topic = topic(4, Map.of());
        String group = unique("group");
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        Consumer<String, String> first = consumer(group, with(CLASSIC, "enable.auto.commit", true));
        Consumer<String, String> second = consumer(group, with(CLASSIC, "enable.auto.commit", true));
        first.subscribe(List.of(topic));
        second.subscribe(List.of(topic));
        sharedBy(got, first, second);
        check(describe(group).type() == GroupType.CLASSIC, "a classic group");
        produceToAll(topic, 4, 10);
        eventually(() -> poll(first, got) && poll(second, got) && got.size() == 40, "all records");

        // One member after the other is replaced, as services are when they are rolled out.
        second.close();
        Consumer<String, String> third = consumer(group, with(CONSUMER, "enable.auto.commit", true));
        third.subscribe(List.of(topic));
        sharedBy(got, first, third);
        check(describe(group).type() == GroupType.CONSUMER, "a group of the consumer protocol");
        check(
                describe(group).members().stream().filter(each -> each.upgraded().equals(Optional.of(false))).count() == 1,
                "one member still speaks the classic protocol");
        produceToAll(topic, 4, 10);
        eventually(() -> poll(first, got) && poll(third, got) && got.size() == 80, "all records, of both protocols");
        first.close();
        Consumer<String, String> fourth = consumer(group, with(CONSUMER, "enable.auto.commit", true));
        fourth.subscribe(List.of(topic));
        sharedBy(got, third, fourth);
        produceToAll(topic, 4, 10);
        eventually(() -> poll(third, got) && poll(fourth, got) && got.size() == 120, "all records, of the new protocol");

        // And back, because something was wrong with the new release.
        third.close();
        Consumer<String, String> fifth = consumer(group, with(CLASSIC, "enable.auto.commit", true));
        fifth.subscribe(List.of(topic));
        sharedBy(got, fourth, fifth);
        check(describe(group).type() == GroupType.CONSUMER, "still one of the consumer protocol");
        produceToAll(topic, 4, 10);
        eventually(() -> poll(fourth, got) && poll(fifth, got) && got.size() == 160, "all records, of both protocols again");
        fourth.close();
        eventually(() -> poll(fifth, got) && describe(group).type() == GroupType.CLASSIC, "a classic group again");
        eventually(() -> poll(fifth, got) && fifth.assignment().size() == 4, "all partitions");
        produceToAll(topic, 4, 10);
        eventually(() -> poll(fifth, got) && got.size() == 200, "all records, of the old protocol");
        fifth.close();
        check(got.size() == 200, "each record once");
    }

    private void emptyMigration() throws Exception {
        String topic = topic(1, Map.of());
        String group = unique("group");
        List<ConsumerRecord<String, String>> got = new ArrayList<>();
        int round = 0;
        for (Map<String, Object> protocol : List.of(CLASSIC, CONSUMER, CLASSIC)) {
            produce(topic, 10);
            int expected = 10 * ++round;
            try (Consumer<String, String> consumer = consumer(group, protocol)) {
                consumer.subscribe(List.of(topic));
                eventually(() -> poll(consumer, got) && got.size() == expected, "the records since");
                consumer.commitSync();
            }
            check(got.get(expected - 10).offset() == expected - 10, "where it was");
        }
    }

    // --- What they share -------------------------------------------------------------------------------------------

    private static Map<String, Object> with(Map<String, Object> settings, String key, Object value) {
        Map<String, Object> all = new HashMap<>(settings);
        all.put(key, value);
        return all;
    }

    private void sharedBy(
            List<ConsumerRecord<String, String>> got, Consumer<String, String> one, Consumer<String, String> other)
            throws Exception {
        eventually(
                () -> poll(one, got) && poll(other, got) && one.assignment().size() == 2 && other.assignment().size() == 2,
                "half of the partitions each");
    }

    private void produceToAll(String topic, int partitions, int each) {
        try (Producer<String, String> producer = producer(Map.of())) {
            for (int number = 0; number < each; number++) {
                for (int partition = 0; partition < partitions; partition++) {
                    producer.send(new ProducerRecord<>(topic, partition, null, "" + number));
                }
            }
        }
    }

    private static Set<String> topics(Consumer<String, String> consumer) {
        Set<String> topics = new HashSet<>();
        consumer.assignment().forEach(place -> topics.add(place.topic()));
        return topics;
    }

    private ConsumerGroupDescription describe(String group) throws Exception {
        return admin.describeConsumerGroups(List.of(group)).all().get().get(group);
    }

    private GroupListing listed(String group) throws Exception {
        return admin.listGroups().all().get().stream().filter(each -> each.groupId().equals(group)).findFirst().get();
    }
}
