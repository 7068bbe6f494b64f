//! What each error code means, for `posthousectl explain PH-CONN-001`. The cluster's answer has the facts of the case;
//! this has the rule behind it. A code is never used for anything else later.

/// A code and its rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProblemCode {
    /// `PH-ROOM-NNN`.
    pub(crate) code: &'static str,
    /// What happened.
    pub(crate) what: &'static str,
    /// The rule behind it.
    pub(crate) why: &'static str,
    /// What to do about it.
    pub(crate) fix: &'static str,
}

const fn code(code: &'static str, what: &'static str, why: &'static str, fix: &'static str) -> ProblemCode {
    ProblemCode { code, what, why, fix }
}

/// Every code, in order.
pub(crate) const ALL: &[ProblemCode] = &[
    code(
        "PH-ALLOW-001",
        "The range is not in the connector's list.",
        "Ranges are removed as they were stored: host bits are cleared, so 10.1.2.3/24 is stored as 10.1.2.0/24.",
        "posthousectl allowlist list CONNECTOR shows them as they are stored.",
    ),
    code(
        "PH-ALLOW-002",
        "A remote IP range or an address cannot be read.",
        "A range is one address, first-last of one family, or CIDR; IPv4-mapped IPv6 counts as IPv4.",
        "Write 10.1.2.3, 10.1.2.3-10.1.2.9 or 10.1.2.0/24.",
    ),
    code("PH-ALLOW-003", "No range was named.", "There is nothing to add.", "Name at least one range."),
    code(
        "PH-ALLOW-007",
        "The change would make an open relay, and the guard refuses it.",
        "Anonymous relay for all addresses, for a front or node of the cluster, or for more addresses than the limit (ranges of a connector summed) lets strangers send to anyone.",
        "Narrow the ranges; or put the risk on record with --accept-risk --reason TEXT.",
    ),
    code(
        "PH-ALLOW-008",
        "The override of the open-relay guard has no reason.",
        "--accept-risk puts a risk on record, and a record without a reason is none.",
        "Add --reason TEXT.",
    ),
    code(
        "PH-ALLOW-009",
        "The cluster would have more ranges than it may have.",
        "Every node holds every range in memory, so that their number has a limit.",
        "Write neighbouring addresses as one range, or remove what is not used: posthousectl allowlist lint.",
    ),
    code(
        "PH-ALLOW-010",
        "Whether entries were used for so long is not known.",
        "Each node keeps what it has seen used in a file of its own. One whose file is younger than the time asked for cannot say that an entry was not used.",
        "Choose fewer --days, wait, or say --accept-gap.",
    ),
    code(
        "PH-AUTH-001",
        "The caller is not an administrator of this cluster.",
        "The cluster port admits certificates that its own authority gave to administrators; the local socket admits root and the user that runs the node.",
        "Use the context that cluster init made (posthousectl context list), or sudo on a node.",
    ),
    code(
        "PH-AUTH-002",
        "The caller is not a front.",
        "Only a front that joined by token may learn the backends.",
        "posthousectl cluster join-token create --role front, then front add on that machine.",
    ),
    code(
        "PH-AUTH-003",
        "The caller may not use the local socket.",
        "It admits root and the user that runs the process, by the kernel's word.",
        "sudo posthousectl …",
    ),
    code(
        "PH-CONN-001",
        "There is no receive connector of that name.",
        "Names are exact, including upper and lower case.",
        "posthousectl connector list",
    ),
    code(
        "PH-CONN-002",
        "A receive connector of that name exists.",
        "create makes new ones only, so that it never changes one by accident.",
        "posthousectl connector set NAME …",
    ),
    code(
        "PH-CONN-003",
        "A setting of the connector is not valid.",
        "Settings are checked as a whole: basic_auth_require_tls needs basic_auth and tls, require_tls needs tls, none stands alone, and numbers have Exchange's bounds.",
        "Change the setting that the answer names.",
    ),
    code(
        "PH-CONN-004",
        "The connector would have no remote IP range.",
        "Without one it could never take a connection.",
        "Name a range with --remote-ip-ranges, or disable or delete the connector.",
    ),
    code(
        "PH-CONN-005",
        "Two ranges on one binding overlap in part, or are equal.",
        "The most specific range wins, and that must be one range: they nest or stay apart.",
        "Narrow or remove one of the two that are named, or give the connectors different bindings.",
    ),
    code(
        "PH-CONN-006",
        "The cluster has as many connectors as it may have.",
        "Their number has a limit, because each connection is decided among them.",
        "Delete one that is not used, or put the addresses into one that has the same settings.",
    ),
    code(
        "PH-CRED-001",
        "There is no credential of that name.",
        "User names are kept in lower case.",
        "posthousectl credential list",
    ),
    code(
        "PH-CRED-002",
        "A credential of that name exists.",
        "create makes new ones only, so that it never replaces a password by accident.",
        "posthousectl credential set USER …, or rotate USER for a new password.",
    ),
    code(
        "PH-CRED-003",
        "A setting of the credential is not valid.",
        "Senders are addresses, @domain or *; source ranges are ranges; the expiry is an RFC 3339 time.",
        "Change the setting that the answer names.",
    ),
    code(
        "PH-CRED-004",
        "The credential does not say as whom it may send.",
        "Without a choice it could send as nobody, or as everybody.",
        "--own-domain, --sender ADDRESS|@DOMAIN, or --sender '*'.",
    ),
    code(
        "PH-CRED-005",
        "The credential has no password.",
        "None was given.",
        "--generate, --password-stdin or --password-file FILE.",
    ),
    code(
        "PH-CRED-006",
        "The password cannot be used.",
        "It is too short, too long, or has characters that SMTP clients cannot send.",
        "--generate makes one that can.",
    ),
    code(
        "PH-CRED-007",
        "A rotation is under way.",
        "Two passwords are alive at most: a third would end one that devices may still use.",
        "posthousectl credential rotate USER --finish ends the old one.",
    ),
    code(
        "PH-CRED-008",
        "SCRAM keys need the password.",
        "They cannot be made from the hash that the cluster keeps.",
        "Name the password together with --scram.",
    ),
    code(
        "PH-CTL-001",
        "The command line contradicts itself or lacks something.",
        "It parses, and still could not be done.",
        "See --help of the command.",
    ),
    code(
        "PH-CTL-002",
        "No endpoint could be reached.",
        "Every endpoint and member of the context was tried; each line says why it failed.",
        "Start a node, or name a living one: --endpoint HOST:PORT, --socket PATH.",
    ),
    code(
        "PH-CTL-003",
        "The context file cannot be used.",
        "It holds private keys: it must belong to its owner alone (mode 0600) and parse.",
        "chmod 600 the file, or correct it; --config-dir names another place.",
    ),
    code(
        "PH-CTL-004",
        "There is no context of that name.",
        "A context is a cluster's endpoints and our identity there.",
        "posthousectl context list; posthousectl context add",
    ),
    code(
        "PH-CTL-005",
        "The change was not confirmed.",
        "It can lose mail or widen relay, so it asks first.",
        "Answer yes, or repeat it with --yes.",
    ),
    code(
        "PH-CTL-006",
        "The change is committed, but not every node has confirmed that it uses it.",
        "A node that is down or cut off uses it as soon as it hears the leader again; until then it decides by the state it has.",
        "posthousectl cluster status",
    ),
    code(
        "PH-CTL-007",
        "No answer in time.",
        "The question was taken, and the answer did not come. A change may still be made.",
        "posthousectl history list, before repeating it.",
    ),
    code(
        "PH-CTL-008",
        "Part of the cluster did not answer.",
        "Each node knows its own letters; what the others know was printed.",
        "posthousectl cluster status; then ask again.",
    ),
    code(
        "PH-CTL-009",
        "The cluster refused without saying more.",
        "The answer carried no details: an older node, or something between us and it.",
        "See the node's log.",
    ),
    code(
        "PH-CTL-010",
        "There is no identity to show.",
        "The cluster port asks for an administrator's certificate.",
        "--context NAME, or the local socket of that node.",
    ),
    code(
        "PH-CTL-011",
        "A file cannot be read, or the answer cannot be written.",
        "The system said so.",
        "Check the path and its permissions.",
    ),
    code(
        "PH-CTL-012",
        "There is nothing to explain.",
        "It is neither an address nor a code of this version.",
        "posthousectl explain ip ADDRESS, or a code such as PH-ALLOW-007.",
    ),
    code(
        "PH-DOM-001",
        "There is no such accepted domain.",
        "Domains are kept in lower case; *.corp.example and corp.example are one entry.",
        "posthousectl domain list",
    ),
    code(
        "PH-DOM-002",
        "The accepted domain exists.",
        "add makes new ones only.",
        "posthousectl domain set DOMAIN --type …",
    ),
    code(
        "PH-DOM-003",
        "The accepted domain is not valid.",
        "It is a domain name, or *. before one for every subdomain; its type is authoritative, internal_relay or external_relay.",
        "Write corp.example or *.corp.example.",
    ),
    code(
        "PH-FRONT-001",
        "There is no front of that name.",
        "A front that was removed is believed no more.",
        "posthousectl front list; to join it anew: cluster join-token create --role front.",
    ),
    code(
        "PH-FRONT-002",
        "A front dials from an address that a connector lets relay.",
        "Any other process at that address would relay too.",
        "Take the address out of the connector first.",
    ),
    code(
        "PH-FRONT-003",
        "A front of that name has joined already.",
        "Its signing key stays valid until it is removed.",
        "Choose another name in the front file, or first: posthousectl front remove NAME.",
    ),
    code(
        "PH-FRONT-004",
        "The front's own address cannot be read.",
        "A front says from where it dials nodes.",
        "Correct front.dial_from in the front file.",
    ),
    code(
        "PH-FRONT-008",
        "The front has too many signing keys.",
        "Nodes accept at most three keys of one front; earlier rotations were begun and not finished.",
        "posthousectl front rotate-key NAME, while the front is connected: it finishes what was begun.",
    ),
    code(
        "PH-FRONT-009",
        "The key that the front signs with cannot be retired.",
        "Nodes would refuse its headers.",
        "posthousectl front rotate-key NAME does the steps in their order.",
    ),
    code(
        "PH-FRONT-010",
        "The front has no such signing key.",
        "A key is published before a front may sign with it.",
        "posthousectl front show NAME lists its keys.",
    ),
    code(
        "PH-FRONT-011",
        "The front state is not valid.",
        "A front is active or draining.",
        "posthousectl front drain NAME, or front resume NAME.",
    ),
    code(
        "PH-FRONT-012",
        "The front's new key is not known on every node yet.",
        "A node that does not know it would refuse what is signed with it, so the front goes on with the old one.",
        "When every node answers again, repeat it: posthousectl front rotate-key NAME.",
    ),
    code(
        "PH-FRONT-013",
        "The front does not sign with its new key yet.",
        "Nodes accept both keys until it does.",
        "When the front is connected, repeat it: posthousectl front rotate-key NAME.",
    ),
    code(
        "PH-HIST-001",
        "The revision cannot be restored or compared.",
        "The newest changes are kept, up to a number of objects; an import of thousands is kept by name only.",
        "posthousectl history list shows the changes and what they touched.",
    ),
    code(
        "PH-HIST-002",
        "There is no such object.",
        "Objects are named as connector/NAME, domain/NAME, route/NAME or settings.",
        "posthousectl history list",
    ),
    code(
        "PH-JOIN-001",
        "The join token is refused.",
        "It is unknown, revoked, spent, expired, of another cluster, or made for another role.",
        "posthousectl cluster join-token create, on a member.",
    ),
    code(
        "PH-JOIN-002",
        "There is no such join token.",
        "Spent and expired tokens are cleared away.",
        "posthousectl cluster join-token list",
    ),
    code(
        "PH-JOIN-003",
        "The token cannot be made like that.",
        "Its role is voter, learner or front; it lives at most seven days, because a token that lives longer is a password.",
        "--role voter|learner|front, --ttl 168h at most.",
    ),
    code(
        "PH-JOIN-004",
        "The certificate request is not valid.",
        "The joining machine sent one that the authority cannot sign.",
        "Use the same version on both sides.",
    ),
    code(
        "PH-JOIN-005",
        "The join token cannot be read.",
        "It begins with PHJ1- and carries a checksum, so a lost character is noticed.",
        "Copy the whole word.",
    ),
    code(
        "PH-JOIN-006",
        "The join token is of the wrong kind.",
        "Nodes join with a token for a voter or learner, fronts with one for a front.",
        "posthousectl cluster join-token create --role …",
    ),
    code(
        "PH-JOIN-007",
        "No member that the token names could be reached.",
        "The token carries the members' addresses of when it was made.",
        "Check that members run and that their cluster port can be reached from here.",
    ),
    code(
        "PH-JOIN-008",
        "The node joined, but does not have its role yet.",
        "It must receive the state and be confirmed by the other voters.",
        "It goes on trying: posthousectl cluster status -w",
    ),
    code("PH-NODE-001", "There is no node of that name.", "Names come from the node file.", "posthousectl node list"),
    code(
        "PH-NODE-002",
        "A node of that name is a member already.",
        "Names and ids are never used twice, because other nodes may still hold its promises.",
        "Choose another name in the node file.",
    ),
    code(
        "PH-NODE-003",
        "This is the last node that is active, reachable and ready.",
        "With it drained no node would take new connections, and the address would stop answering.",
        "Mend or resume another node first, or insist with --force.",
    ),
    code(
        "PH-NODE-004",
        "The machine's name is not valid.",
        "It becomes part of a certificate: 1 to 63 letters, digits or hyphens.",
        "Change node.name in the node file.",
    ),
    code(
        "PH-NODE-005",
        "This node belongs to no cluster yet.",
        "Neither cluster init nor a join has run here.",
        "First node: posthousectl cluster init; any other: posthousectl node add --token TOKEN.",
    ),
    code(
        "PH-NODE-006",
        "The node state is not valid.",
        "A node is active or draining.",
        "posthousectl node drain NAME, or resume NAME.",
    ),
    code(
        "PH-NODE-007",
        "This node belongs to a cluster already.",
        "A node is a member of one cluster for its life.",
        "To start anew, stop it and empty its data directory: letters in it are lost.",
    ),
    code(
        "PH-NODE-009",
        "Something failed that should not.",
        "It is a fault of ours, or of the machine.",
        "See the node's log.",
    ),
    code(
        "PH-NODE-010",
        "The node's weight is not valid.",
        "It is 1 to 256, a share beside the other nodes' weights; a node that shall take nothing is drained.",
        "posthousectl node set NODE --weight 1, or: posthousectl node drain NODE.",
    ),
    code(
        "PH-QUEUE-001",
        "No letter was named.",
        "Without a filter this would be every letter of the cluster.",
        "--id, --domain, --sender, --rcpt, --connector, --client-ip, --credential, --older-than, --younger-than, --error or --state; or type --all.",
    ),
    code(
        "PH-QUEUE-002",
        "This is not a letter's id.",
        "An id has 13 characters, as the 250 and queue list show it.",
        "posthousectl queue list",
    ),
    code(
        "PH-QUEUE-003",
        "The state is not valid.",
        "A letter is ready, retry, active or held.",
        "--state ready, retry, active or held.",
    ),
    code(
        "PH-QUEUE-004",
        "The recipient domain is not valid.",
        "Letters are chosen by whole domains, not by patterns.",
        "--domain partner.example",
    ),
    code(
        "PH-QUEUE-005",
        "Letters cannot be put together by that.",
        "queue shape counts by domain, connector, sender, node or error.",
        "posthousectl queue shape --by connector",
    ),
    code(
        "PH-QUEUE-006",
        "No letter of that id is queued.",
        "It was delivered, returned or deleted; or it waits on a node that did not answer.",
        "posthousectl message trace --id ID",
    ),
    code(
        "PH-QUEUE-007",
        "The client address is not valid.",
        "Letters are chosen by the device's address, a range of two addresses or CIDR.",
        "--client-ip 10.1.2.3, 10.1.2.3-10.1.2.9 or 10.1.2.0/24",
    ),
    code(
        "PH-QUEUE-008",
        "The next hop of the redirection is not valid.",
        "It is a host name or an address, with a port where it is not 25.",
        "--to smarthost.corp.example:25, 10.1.2.3:25 or [2001:db8::1]:25",
    ),
    code(
        "PH-RAFT-001",
        "The change was not made: there is no leader.",
        "A majority of the voters is not reachable from the node that was asked. Mail goes on; changes wait.",
        "posthousectl cluster status shows which node is missing.",
    ),
    code(
        "PH-RAFT-002",
        "The leader did not confirm in time; the change may still be made.",
        "It was proposed, and the confirmation did not come before the deadline.",
        "posthousectl history list, before repeating it.",
    ),
    code(
        "PH-RAFT-003",
        "The change was not made.",
        "The cluster could not agree on it for a reason of its own.",
        "See the node's log.",
    ),
    code("PH-RAFT-004", "This cluster has no state yet.", "cluster init has not run.", "posthousectl cluster init"),
    code(
        "PH-RAFT-005",
        "This node belongs to a cluster already.",
        "cluster init runs once, on one node.",
        "Join more nodes with: posthousectl cluster join-token create.",
    ),
    code(
        "PH-RAFT-006",
        "The cluster's name is not valid.",
        "It is made of letters, digits and hyphens.",
        "Choose another --name.",
    ),
    code(
        "PH-REV-001",
        "The object has moved on.",
        "It was changed after the revision that --if-revision names, so the change was refused rather than undo that.",
        "Read it again, then repeat the change with its new revision.",
    ),
    code(
        "PH-ROUTE-001",
        "There is no route of that name.",
        "A route is named after its first pattern unless --name says otherwise; * is \"default\".",
        "posthousectl route list",
    ),
    code("PH-ROUTE-002", "A route of that name exists.", "add makes new ones only.", "posthousectl route set NAME …"),
    code(
        "PH-ROUTE-003",
        "A setting of the route is not valid.",
        "Address spaces are *, corp.example or *.corp.example; smart hosts are HOST:PORT.",
        "Change the setting that the answer names.",
    ),
    code(
        "PH-ROUTE-004",
        "The credential for the smart hosts is not complete.",
        "A user needs a password and a password needs a user; a new user needs its own. It is sealed before it is stored.",
        "--auth-user NAME with --auth-password-file FILE or --auth-password-stdin; --auth-user '' for none.",
    ),
    code(
        "PH-ROUTE-005",
        "The address to test is not valid.",
        "route test looks up where a letter to one recipient would go.",
        "posthousectl route test NAME@DOMAIN",
    ),
    code(
        "PH-SESS-001",
        "It was not said which sessions.",
        "Without a filter every session of the cluster would end.",
        "Name sessions by their ids, --connector, --source or --on-node; or type --all.",
    ),
    code(
        "PH-SESS-002",
        "The address of the devices is not valid.",
        "Sessions are chosen by the device's address, a range of two addresses or CIDR.",
        "--source 10.1.2.3, 10.1.2.3-10.1.2.9 or 10.1.2.0/24",
    ),
    code(
        "PH-SESS-003",
        "It was not said whose dialogue.",
        "Without an address every line of every session would be sent.",
        "--source 10.1.2.3 or --source 10.1.2.0/24",
    ),
    code(
        "PH-SESS-004",
        "Too many listen to dialogues already.",
        "Each listener costs the sessions that it hears, so that a node has a limit of sixteen.",
        "End another posthousectl log session.",
    ),
    code(
        "PH-SET-001",
        "There is no setting of that name.",
        "Settings are what holds for the whole cluster; what belongs to a connector or a route is set there.",
        "posthousectl settings list",
    ),
    code(
        "PH-SET-002",
        "The value of a setting is not valid.",
        "Each setting has a form of its own: a number, mail addresses with a domain, or four thresholds such as 89/99/90/80.",
        "posthousectl settings list shows the form; nothing was changed.",
    ),
    code(
        "PH-TLS-001",
        "There is no certificate of that name.",
        "A connector names a certificate of the cluster, or <I>issuer<S>subject.",
        "posthousectl tls list",
    ),
    code(
        "PH-TLS-002",
        "The server certificate cannot be made.",
        "A name or address for devices is not one.",
        "Correct --smtp-name.",
    ),
    code(
        "PH-TLS-003",
        "The certificate cannot be used.",
        "The key must belong to the first certificate, the chain must be in order, and it must be valid now.",
        "Put the server's own certificate first, then whoever signed it; the key is unencrypted PEM.",
    ),
    code(
        "PH-TLS-004",
        "The certificate is in use.",
        "A connector names it, and no other certificate answers to that name.",
        "posthousectl connector set NAME --tls-certificate-name ANOTHER, then delete it.",
    ),
    code(
        "PH-TLS-005",
        "The authorities of client certificates cannot be used.",
        "A PEM bundle with at least one certificate is meant.",
        "posthousectl tls client-ca set --cert FILE",
    ),
    code(
        "PH-TRACE-001",
        "The client address is not valid.",
        "Letters are followed by the device's address, a range of two addresses or CIDR.",
        "--client-ip 10.1.2.3, 10.1.2.3-10.1.2.9 or 10.1.2.0/24",
    ),
    code(
        "PH-USE-001",
        "The use of too many things was asked for at once.",
        "One answer has a limit.",
        "Ask for at most 20,000 things.",
    ),
];

/// The code, however it was typed.
pub(crate) fn find(wanted: &str) -> Option<ProblemCode> {
    let wanted = wanted.trim();
    ALL.iter().find(|known| known.code.eq_ignore_ascii_case(wanted)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_unique_and_well_formed() {
        for pair in ALL.windows(2) {
            assert!(pair[0].code < pair[1].code, "{} stands before {}", pair[0].code, pair[1].code);
        }
        for known in ALL {
            let parts: Vec<&str> = known.code.split('-').collect();
            assert!(matches!(parts[..], ["PH", _, number] if number.len() == 3), "{}", known.code);
            assert!(![known.what, known.why, known.fix].contains(&""), "{} says too little", known.code);
        }
    }

    #[test]
    fn a_code_is_found_however_it_is_typed() {
        assert_eq!(find(" ph-conn-001 ").map(|known| known.code), Some("PH-CONN-001"));
        assert!(find("PH-CONN-999").is_none());
    }

    #[test]
    fn this_programs_own_codes_are_all_explained() {
        use crate::error::code::*;
        for own in [
            USAGE,
            UNREACHABLE,
            CONTEXT_FILE,
            CONTEXT_MISSING,
            CONFIRM,
            NOT_CONFIRMED,
            NO_ANSWER,
            PARTIAL,
            UNNAMED,
            NO_IDENTITY,
            FILE,
            UNKNOWN_CODE,
            NO_LEADER,
            NO_CLUSTER,
        ] {
            assert!(find(own).is_some(), "{own}");
        }
    }
}
