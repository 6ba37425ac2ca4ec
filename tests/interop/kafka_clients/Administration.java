import java.util.Collection;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.DescribeClusterOptions;
import org.apache.kafka.clients.admin.FeatureMetadata;
import org.apache.kafka.clients.admin.ListConfigResourcesOptions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.ScramCredentialInfo;
import org.apache.kafka.clients.admin.ScramMechanism;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.admin.UserScramCredentialDeletion;
import org.apache.kafka.clients.admin.UserScramCredentialUpsertion;
import org.apache.kafka.common.Node;
import org.apache.kafka.common.TopicCollection;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AccessControlEntryFilter;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclBindingFilter;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.InvalidConfigurationException;
import org.apache.kafka.common.errors.ResourceNotFoundException;
import org.apache.kafka.common.quota.ClientQuotaAlteration;
import org.apache.kafka.common.quota.ClientQuotaEntity;
import org.apache.kafka.common.quota.ClientQuotaFilter;
import org.apache.kafka.common.quota.ClientQuotaFilterComponent;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourcePatternFilter;
import org.apache.kafka.common.resource.ResourceType;

/** What an operator does with the admin client, beyond topics, settings of topics and classic groups. */
final class Administration extends Clients {
    static void scenarios() {
        scenario("the cluster and its features are described", Administration::cluster);
        scenario("topics are described by their ids, and listed", Administration::topicIds);
        scenario("where records lie, and how much they take", Administration::logDirs);
        scenario("settings of brokers and groups", Administration::settings);
        scenario("ACLs are created, found and deleted", Administration::acls);
        scenario("SCRAM credentials are set, described and deleted", Administration::scram);
        scenario("quotas are set, described and removed", Administration::quotas);
    }

    private static void scenario(String name, Scenarios.Play<Administration> play) {
        Scenarios.scenario(name, Administration::new, play);
    }

    private Administration(Broker broker) {
        super(broker);
    }

    private void cluster() throws Exception {
        var described = admin.describeCluster(new DescribeClusterOptions().includeAuthorizedOperations(true));
        Collection<Node> nodes = described.nodes().get();
        check(nodes.size() == 1, "one node");
        check((nodes.iterator().next().host() + ":" + nodes.iterator().next().port()).equals(broker.server()), "its address");
        check(described.authorizedOperations().get().contains(AclOperation.CREATE), "what one may do");
        FeatureMetadata features = admin.describeFeatures().featureMetadata().get();
        for (String feature : List.of("group.version", "transaction.version", "share.version")) {
            var finalized = features.finalizedFeatures().get(feature);
            check(finalized != null && finalized.maxVersionLevel() >= 1, feature + " is there: " + features);
            check(features.supportedFeatures().get(feature).maxVersion() >= finalized.maxVersionLevel(), feature);
        }
        check(features.finalizedFeatures().get("transaction.version").maxVersionLevel() == 2, "KIP-890 is there");
    }

    private void topicIds() throws Exception {
        String topic = unique("java");
        var created = admin.createTopics(List.of(new NewTopic(topic, 2, (short) 1)));
        Uuid id = created.topicId(topic).get();
        check(created.numPartitions(topic).get() == 2, "its partitions");
        check(created.config(topic).get().get("cleanup.policy").value().equals("delete"), "its settings");
        eventually(() -> partitions(topic) == 2, "the topic");
        TopicDescription described =
                admin.describeTopics(TopicCollection.ofTopicIds(List.of(id))).allTopicIds().get().get(id);
        check(described.name().equals(topic) && described.topicId().equals(id), "its name");
        check(described.partitions().get(1).leader() != null, "its leader");
        check(admin.listTopics().names().get().contains(topic), "in the list");
        admin.deleteTopics(TopicCollection.ofTopicIds(List.of(id))).all().get();
        eventually(() -> !admin.listTopics().names().get().contains(topic), "it is gone");
    }

    private void logDirs() throws Exception {
        String topic = topic(1, Map.of());
        TopicPartition place = new TopicPartition(topic, 0);
        int node = admin.describeCluster().controller().get().id();
        produce(topic, 100);
        var dirs = admin.describeLogDirs(List.of(node)).allDescriptions().get().get(node).values();
        check(dirs.stream().anyMatch(dir -> dir.totalBytes().orElseThrow() > dir.usableBytes().orElseThrow()), "the disk");
        check(dirs.stream().anyMatch(dir -> dir.replicaInfos().containsKey(place)), "the partition");
        long size = dirs.stream().mapToLong(dir -> dir.replicaInfos().get(place).size()).sum();
        check(size > 100, "its size");
    }

    private void settings() throws Exception {
        int node = admin.describeCluster().controller().get().id();
        ConfigResource resource = new ConfigResource(ConfigResource.Type.BROKER, "" + node);
        check(value(resource, "log.retention.ms") != null || value(resource, "log.retention.hours") != null, "a broker's");
        String group = unique("group");
        ConfigResource groups = new ConfigResource(ConfigResource.Type.GROUP, group);
        configure(ConfigResource.Type.GROUP, group, Map.of("consumer.session.timeout.ms", "50000"));
        var resources = admin.listConfigResources(Set.of(ConfigResource.Type.GROUP), new ListConfigResourcesOptions()).all().get();
        check(resources.contains(groups), "a group with settings is listed");
        AlterConfigOp delete =
                new AlterConfigOp(new ConfigEntry("consumer.session.timeout.ms", ""), AlterConfigOp.OpType.DELETE);
        admin.incrementalAlterConfigs(Map.of(groups, List.of(delete))).all().get();
        eventually(() -> value(groups, "consumer.session.timeout.ms").equals("45000"), "the default again");
        refused(
                InvalidConfigurationException.class,
                () -> configure(ConfigResource.Type.GROUP, group, Map.of("consumer.session.timeout.ms", "1")));
    }

    private void acls() throws Exception {
        String user = "User:" + unique("somebody");
        String topic = unique("topic");
        AclBinding read = acl(ResourceType.TOPIC, topic, PatternType.LITERAL, user, AclOperation.READ);
        AclBinding write = acl(ResourceType.TOPIC, topic, PatternType.PREFIXED, user, AclOperation.WRITE);
        AclBinding group = acl(ResourceType.GROUP, "*", PatternType.LITERAL, user, AclOperation.READ);
        AclBinding transaction = acl(ResourceType.TRANSACTIONAL_ID, topic, PatternType.LITERAL, user, AclOperation.WRITE);
        AclBinding cluster = acl(ResourceType.CLUSTER, "kafka-cluster", PatternType.LITERAL, user, AclOperation.CREATE);
        Set<AclBinding> all = Set.of(read, write, group, transaction, cluster);
        AclBindingFilter ofUser = filter(ResourceType.ANY, null, PatternType.ANY, user);
        admin.createAcls(all).all().get();
        eventually(() -> found(ofUser).equals(all), "all of the user's: " + found(ofUser));
        check(found(filter(ResourceType.GROUP, null, PatternType.ANY, user)).equals(Set.of(group)), "of one type");
        check(
                found(filter(ResourceType.TOPIC, topic, PatternType.LITERAL, user)).equals(Set.of(read)),
                "of one name, to the letter");
        check(
                found(filter(ResourceType.TOPIC, topic + "-more", PatternType.MATCH, user)).equals(Set.of(write)),
                "those that say something of a name");
        // What is there already is no error.
        admin.createAcls(List.of(read)).all().get();
        Collection<AclBinding> deleted =
                admin.deleteAcls(List.of(filter(ResourceType.TOPIC, null, PatternType.ANY, user))).all().get();
        check(new HashSet<>(deleted).equals(Set.of(read, write)), "those that were deleted");
        eventually(() -> found(ofUser).equals(Set.of(group, transaction, cluster)), "what is left");
        admin.deleteAcls(List.of(ofUser)).all().get();
        eventually(() -> found(ofUser).isEmpty(), "nothing is left");
    }

    private void scram() throws Exception {
        String user = unique("user");
        ScramCredentialInfo weak = new ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096);
        ScramCredentialInfo strong = new ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 8192);
        for (ScramCredentialInfo info : List.of(weak, strong)) {
            admin.alterUserScramCredentials(List.of(new UserScramCredentialUpsertion(user, info, "secret"))).all().get();
        }
        eventually(() -> credentials(user).equals(Set.of(weak, strong)), "both");
        check(admin.describeUserScramCredentials().all().get().containsKey(user), "in the list");
        var one = new UserScramCredentialDeletion(user, ScramMechanism.SCRAM_SHA_256);
        admin.alterUserScramCredentials(List.of(one)).all().get();
        eventually(() -> credentials(user).equals(Set.of(strong)), "one is left");
        refused(ResourceNotFoundException.class, () -> admin.alterUserScramCredentials(List.of(one)).all().get());
        var other = new UserScramCredentialDeletion(user, ScramMechanism.SCRAM_SHA_512);
        admin.alterUserScramCredentials(List.of(other)).all().get();
        eventually(() -> !admin.describeUserScramCredentials().all().get().containsKey(user), "none is left");
    }

    private void quotas() throws Exception {
        String user = unique("user");
        ClientQuotaEntity ofUser = new ClientQuotaEntity(Map.of(ClientQuotaEntity.USER, user));
        ClientQuotaEntity ofClient =
                new ClientQuotaEntity(Map.of(ClientQuotaEntity.USER, user, ClientQuotaEntity.CLIENT_ID, "batch"));
        alter(ofUser, "producer_byte_rate", 1_000_000.0);
        alter(ofUser, "consumer_byte_rate", 2_000_000.0);
        alter(ofClient, "producer_byte_rate", 5_000.0);
        ClientQuotaFilter contains =
                ClientQuotaFilter.contains(List.of(ClientQuotaFilterComponent.ofEntity(ClientQuotaEntity.USER, user)));
        eventually(
                () -> quotas(contains).equals(
                        Map.of(
                                ofUser, Map.of("producer_byte_rate", 1_000_000.0, "consumer_byte_rate", 2_000_000.0),
                                ofClient, Map.of("producer_byte_rate", 5_000.0))),
                "what was set: " + quotas(contains));
        ClientQuotaFilter only =
                ClientQuotaFilter.containsOnly(List.of(ClientQuotaFilterComponent.ofEntity(ClientQuotaEntity.USER, user)));
        check(quotas(only).keySet().equals(Set.of(ofUser)), "of the user alone");
        alter(ofUser, "consumer_byte_rate", null);
        eventually(() -> quotas(only).get(ofUser).equals(Map.of("producer_byte_rate", 1_000_000.0)), "what is left");
        alter(ofUser, "producer_byte_rate", null);
        alter(ofClient, "producer_byte_rate", null);
        eventually(() -> quotas(contains).isEmpty(), "nothing is left");
    }

    // --- What they share -------------------------------------------------------------------------------------------

    static AclBinding acl(ResourceType type, String name, PatternType pattern, String user, AclOperation operation) {
        return new AclBinding(
                new ResourcePattern(type, name, pattern),
                new AccessControlEntry(user, "*", operation, AclPermissionType.ALLOW));
    }

    private static AclBindingFilter filter(ResourceType type, String name, PatternType pattern, String user) {
        return new AclBindingFilter(
                new ResourcePatternFilter(type, name, pattern),
                new AccessControlEntryFilter(user, null, AclOperation.ANY, AclPermissionType.ANY));
    }

    private Set<ScramCredentialInfo> credentials(String user) throws Exception {
        var described = admin.describeUserScramCredentials().all().get().get(user);
        return described == null ? Set.of() : new HashSet<>(described.credentialInfos());
    }

    private Set<AclBinding> found(AclBindingFilter filter) throws Exception {
        return new HashSet<>(admin.describeAcls(filter).values().get());
    }

    private void alter(ClientQuotaEntity entity, String key, Double value) throws Exception {
        var change = new ClientQuotaAlteration(entity, List.of(new ClientQuotaAlteration.Op(key, value)));
        admin.alterClientQuotas(List.of(change)).all().get();
    }

    private Map<ClientQuotaEntity, Map<String, Double>> quotas(ClientQuotaFilter filter) throws Exception {
        return admin.describeClientQuotas(filter).entities().get();
    }
}
