import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.ScramCredentialInfo;
import org.apache.kafka.clients.admin.ScramMechanism;
import org.apache.kafka.clients.admin.UserScramCredentialDeletion;
import org.apache.kafka.clients.admin.UserScramCredentialUpsertion;
import org.apache.kafka.clients.consumer.Consumer;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.Producer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.Metric;
import org.apache.kafka.common.MetricName;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclBindingFilter;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.errors.AuthorizationException;
import org.apache.kafka.common.errors.ClusterAuthorizationException;
import org.apache.kafka.common.errors.GroupAuthorizationException;
import org.apache.kafka.common.errors.SaslAuthenticationException;
import org.apache.kafka.common.errors.TopicAuthorizationException;
import org.apache.kafka.common.errors.TransactionalIdAuthorizationException;
import org.apache.kafka.common.quota.ClientQuotaAlteration;
import org.apache.kafka.common.quota.ClientQuotaEntity;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;

/** Logging in, and what one may do then. The settings of the clients are those of an administrator who may do anything. */
final class Security extends Clients {
    private static final String PASSWORD = "the \\\"secret\\\" of a user, with =, and ,";

    static void scenarios() {
        scenario("logged in: records go in and come out", Security::loggedIn);
        scenario("logged in: a wrong password is refused", Security::wrongPassword);
        scenario("logged in: SCRAM credentials that were set are those that count", Security::scram);
        scenario("logged in: who is allowed nothing is refused everything", Security::nothingAllowed);
        scenario("logged in: ACLs say who may read, write and create", Security::allowed);
        scenario("logged in: a denial is stronger than a permission", Security::denied);
        scenario("logged in: transactions take a permission of their own", Security::transactional);
        scenario("logged in: who writes more than its quota is slowed down", Security::produceQuota);
        scenario("logged in: who reads more than its quota is slowed down", Security::fetchQuota);
    }

    private static void scenario(String name, Scenarios.Play<Security> play) {
        Scenarios.scenario(name, Security::new, play);
    }

    private Security(Broker broker) {
        super(broker);
    }

    private void loggedIn() throws Exception {
        String topic = topic(1, Map.of());
        produce(topic, 10);
        read(topic, 10);
    }

    private void wrongPassword() throws Exception {
        String administrator = broker.settings().get("sasl.jaas.config").replaceAll(".* username=\"([^\"]*)\".*", "$1");
        for (String mechanism : List.of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")) {
            try (Admin wrong = Admin.create(as(administrator, "wrong", mechanism).and(Map.of()))) {
                refused(SaslAuthenticationException.class, () -> wrong.listTopics().names().get());
            }
            try (Admin nobody = Admin.create(as("nobody", "wrong", mechanism).and(Map.of()))) {
                refused(SaslAuthenticationException.class, () -> nobody.listTopics().names().get());
            }
        }
    }

    private void scram() throws Exception {
        String user = unique("user");
        for (ScramMechanism mechanism : List.of(ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)) {
            Broker login = user(user, mechanism);
            eventually(() -> mayLogIn(login), "a login by " + mechanism.mechanismName());
            admin.alterUserScramCredentials(List.of(new UserScramCredentialDeletion(user, mechanism))).all().get();
            eventually(() -> !mayLogIn(login), "no login any more");
        }
    }

    private void nothingAllowed() throws Exception {
        String topic = topic(1, Map.of());
        produce(topic, 1);
        try (Somebody somebody = new Somebody(user(unique("user"), ScramMechanism.SCRAM_SHA_256))) {
            refused(TopicAuthorizationException.class, () -> somebody.send(topic));
            refused(TopicAuthorizationException.class, () -> somebody.read(topic, 1));
            refused(TopicAuthorizationException.class, () -> somebody.create(unique("other")));
            refused(ClusterAuthorizationException.class, () -> somebody.admin.describeAcls(AclBindingFilter.ANY).values().get());
            check(!somebody.admin.listTopics().names().get().contains(topic), "it does not see it either");
            refused(TopicAuthorizationException.class, () -> somebody.admin.deleteTopics(List.of(topic)).all().get());
        }
    }

    private void allowed() throws Exception {
        String stem = unique("java");
        String user = unique("user");
        String group = unique("group");
        String topic = stem + "-one";
        try (Somebody somebody = new Somebody(user(user, ScramMechanism.SCRAM_SHA_512))) {
            allow(ResourceType.TOPIC, stem, PatternType.PREFIXED, user, AclOperation.CREATE);
            eventually(() -> may(() -> somebody.create(topic)), "to create");
            refused(TopicAuthorizationException.class, () -> somebody.create(unique("other")));
            refused(TopicAuthorizationException.class, () -> somebody.send(topic));
            allow(ResourceType.TOPIC, stem, PatternType.PREFIXED, user, AclOperation.WRITE);
            eventually(() -> may(() -> somebody.send(topic)), "to write");
            refused(TopicAuthorizationException.class, () -> somebody.read(topic, 1));
            allow(ResourceType.TOPIC, topic, PatternType.LITERAL, user, AclOperation.READ);
            eventually(() -> may(() -> somebody.read(topic, 1)), "to read");
            refused(GroupAuthorizationException.class, () -> somebody.subscribe(topic, group));
            allow(ResourceType.GROUP, group, PatternType.LITERAL, user, AclOperation.READ);
            eventually(() -> may(() -> somebody.subscribe(topic, group)), "to be a member");
            check(somebody.admin.listTopics().names().get().contains(topic), "it sees what it may use");
            refused(TopicAuthorizationException.class, () -> somebody.admin.deleteTopics(List.of(topic)).all().get());
        }
    }

    private void denied() throws Exception {
        String topic = topic(1, Map.of());
        String user = unique("user");
        try (Somebody somebody = new Somebody(user(user, ScramMechanism.SCRAM_SHA_256))) {
            allow(ResourceType.TOPIC, "*", PatternType.LITERAL, user, AclOperation.ALL);
            eventually(() -> may(() -> somebody.send(topic)), "to write");
            AclBinding denial =
                    new AclBinding(
                            new ResourcePattern(ResourceType.TOPIC, topic, PatternType.LITERAL),
                            new AccessControlEntry("User:" + user, "*", AclOperation.WRITE, AclPermissionType.DENY));
            admin.createAcls(List.of(denial)).all().get();
            eventually(() -> !may(() -> somebody.send(topic)), "not to write");
            somebody.read(topic, 1);
            admin.deleteAcls(List.of(denial.toFilter())).all().get();
            eventually(() -> may(() -> somebody.send(topic)), "to write again");
        }
    }

    private void transactional() throws Exception {
        String topic = topic(1, Map.of());
        String user = unique("user");
        String id = unique("transaction");
        try (Somebody somebody = new Somebody(user(user, ScramMechanism.SCRAM_SHA_256))) {
            allow(ResourceType.TOPIC, topic, PatternType.LITERAL, user, AclOperation.ALL);
            eventually(() -> may(() -> somebody.send(topic)), "to write");
            refused(TransactionalIdAuthorizationException.class, () -> somebody.transaction(topic, id));
            allow(ResourceType.TRANSACTIONAL_ID, id, PatternType.LITERAL, user, AclOperation.WRITE);
            eventually(() -> may(() -> somebody.transaction(topic, id)), "to write in a transaction");
        }
    }

    private void produceQuota() throws Exception {
        String topic = topic(1, Map.of());
        String user = unique("user");
        Broker login = user(user, ScramMechanism.SCRAM_SHA_256);
        allow(ResourceType.TOPIC, topic, PatternType.LITERAL, user, AclOperation.ALL);
        limit(user, "producer_byte_rate", 20_000.0);
        try (Somebody somebody = new Somebody(login);
                Producer<String, String> producer = somebody.producer(Map.of("linger.ms", 0, "batch.size", 1))) {
            eventually(() -> may(() -> somebody.send(topic)), "to write");
            eventually(
                    () -> {
                        producer.send(new ProducerRecord<>(topic, "x".repeat(50_000))).get();
                        return metric(producer.metrics(), "produce-throttle-time-max") > 0;
                    },
                    "it is slowed down");
        }
    }

    private void fetchQuota() throws Exception {
        String topic = topic(1, Map.of());
        String user = unique("user");
        Broker login = user(user, ScramMechanism.SCRAM_SHA_256);
        allow(ResourceType.TOPIC, topic, PatternType.LITERAL, user, AclOperation.ALL);
        limit(user, "consumer_byte_rate", 20_000.0);
        try (Producer<String, String> producer = producer(Map.of())) {
            for (int number = 0; number < 10; number++) {
                producer.send(new ProducerRecord<>(topic, "x".repeat(50_000))).get();
            }
        }
        try (Somebody somebody = new Somebody(login);
                Consumer<String, String> consumer = somebody.consumer(null, Map.of("max.partition.fetch.bytes", 60_000))) {
            eventually(() -> may(() -> somebody.send(topic)), "to use it");
            consumer.assign(List.of(new TopicPartition(topic, 0)));
            List<ConsumerRecord<String, String>> got = new ArrayList<>();
            eventually(
                    () -> {
                        poll(consumer, got);
                        if (got.size() % 10 == 0) {
                            consumer.seekToBeginning(consumer.assignment());
                        }
                        return metric(consumer.metrics(), "fetch-throttle-time-max") > 0;
                    },
                    "it is slowed down");
        }
    }

    // --- What they share -------------------------------------------------------------------------------------------

    /** Clients that log in as somebody who is not the administrator. */
    private static final class Somebody extends Clients {
        Somebody(Broker broker) {
            super(broker);
        }

        void create(String topic) throws Exception {
            admin.createTopics(List.of(new NewTopic(topic, 1, (short) 1))).all().get();
        }

        void send(String topic) throws Exception {
            try (Producer<String, String> producer = producer(Map.of("enable.idempotence", false))) {
                producer.send(new ProducerRecord<>(topic, "value")).get();
            }
        }

        void transaction(String topic, String id) throws Exception {
            try (Producer<String, String> producer = producer(Map.of("transactional.id", id))) {
                producer.initTransactions();
                producer.beginTransaction();
                producer.send(new ProducerRecord<>(topic, "value")).get();
                producer.commitTransaction();
            }
        }

        void subscribe(String topic, String group) throws Exception {
            List<ConsumerRecord<String, String>> got = new ArrayList<>();
            try (Consumer<String, String> consumer = consumer(group, Map.of())) {
                consumer.subscribe(List.of(topic));
                eventually(() -> poll(consumer, got) && !consumer.assignment().isEmpty(), "partitions");
            }
        }
    }

    private Broker as(String user, String password, String mechanism) {
        String login = mechanism.equals("PLAIN") ? "plain.Plain" : "scram.Scram";
        Map<String, String> settings = new HashMap<>(broker.settings());
        settings.put("sasl.mechanism", mechanism);
        settings.put(
                "sasl.jaas.config",
                "org.apache.kafka.common.security." + login + "LoginModule required username=\"" + user + "\" password=\""
                        + password + "\";");
        return new Broker(broker.server(), settings);
    }

    /** Somebody new, who may log in and nothing else. */
    private Broker user(String user, ScramMechanism mechanism) throws Exception {
        ScramCredentialInfo info = new ScramCredentialInfo(mechanism, 4096);
        String password = PASSWORD.replace("\\", "");
        admin.alterUserScramCredentials(List.of(new UserScramCredentialUpsertion(user, info, password))).all().get();
        Broker login = as(user, PASSWORD, mechanism.mechanismName());
        eventually(() -> mayLogIn(login), "a login");
        return login;
    }

    private static boolean mayLogIn(Broker login) throws Exception {
        try (Admin admin = Admin.create(login.and(Map.of()))) {
            admin.listTopics().names().get();
            return true;
        } catch (ExecutionException error) {
            check(error.getCause() instanceof SaslAuthenticationException, "refused for another reason: " + error);
            return false;
        }
    }

    private void allow(ResourceType type, String name, PatternType pattern, String user, AclOperation operation)
            throws Exception {
        admin.createAcls(List.of(Administration.acl(type, name, pattern, "User:" + user, operation))).all().get();
    }

    /** Permissions are there some time after they were given. */
    private static boolean may(Act act) throws Exception {
        try {
            act.act();
            return true;
        } catch (AuthorizationException error) {
            return false;
        } catch (Exception error) {
            check(error.getCause() instanceof AuthorizationException, "another reason: " + error);
            return false;
        }
    }

    private void limit(String user, String key, double value) throws Exception {
        ClientQuotaEntity entity = new ClientQuotaEntity(Map.of(ClientQuotaEntity.USER, user));
        var change = new ClientQuotaAlteration(entity, List.of(new ClientQuotaAlteration.Op(key, value)));
        admin.alterClientQuotas(List.of(change)).all().get();
    }

    private static double metric(Map<MetricName, ? extends Metric> metrics, String name) {
        return metrics.entrySet().stream()
                .filter(each -> each.getKey().name().equals(name))
                .mapToDouble(each -> (Double) each.getValue().metricValue())
                .filter(value -> !Double.isNaN(value))
                .max()
                .orElse(0);
    }
}
