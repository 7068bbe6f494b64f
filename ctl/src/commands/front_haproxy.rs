//! `front render haproxy`: for those who keep HAProxy in front of the nodes. PROXY v2, a check that walks to the
//! greeting and leaves politely, and the nodes' own word by agent checks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use clap::Args;
use posthouse_proto::v1::Member;

use crate::error::{Exit, Failure};

/// Flags of `front render haproxy`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl front render haproxy > haproxy.cfg
  posthousectl front render haproxy --bind 25=10.20.0.25:25 --agent n1=10.20.0.11:7181 --agent n2=10.20.0.12:7181

On each node: list HAProxy's address in [proxy_protocol] trusted, and set node.agent.")]
pub(crate) struct HaproxyArgs {
    /// SERVICE=ADDRESS:PORT where HAProxy listens; repeatable [default: each service on its own port, everywhere]
    #[arg(long, value_name = "SERVICE=H:P")]
    bind: Vec<String>,
    /// NODE=ADDRESS:PORT of a node's agent; repeatable. Without one the node is only checked
    #[arg(long, value_name = "NODE=H:P")]
    agent: Vec<String>,
    /// The port of the agent on every node that has no --agent
    #[arg(long, value_name = "PORT")]
    agent_port: Option<u16>,
    /// The most connections at once; HAProxy needs some four files for each
    #[arg(long, value_name = "N", default_value_t = 4000)]
    maxconn: u32,
}

/// The whole file.
///
/// # Errors
/// When there is nothing to render, or a flag makes no sense.
pub(crate) fn render(args: &HaproxyArgs, nodes: &[Member]) -> Result<String, Failure> {
    let binds = pairs(&args.bind, "--bind")?;
    let agents = pairs(&args.agent, "--agent")?;
    let mut services: BTreeMap<u32, Vec<(&Member, &str, bool)>> = BTreeMap::new();
    for node in nodes {
        for service in &node.services {
            services.entry(service.port).or_default().push((node, service.address.as_str(), service.implicit_tls));
        }
    }
    if services.is_empty() {
        return Err(Failure::new(
            Exit::NotFound,
            "PH-NODE-001",
            "no node has an SMTP socket",
            "HAProxy would have nobody to send devices to",
            "posthousectl node list",
        ));
    }
    let heaviest = nodes.iter().map(|node| node.weight).max().unwrap_or(1).max(1);
    let mut text = head(args.maxconn);
    for (port, servers) in &services {
        let default = format!(":{port}");
        let bind = binds.get(port.to_string().as_str()).copied().unwrap_or(&default);
        let implicit_tls = servers.iter().any(|(_, _, implicit_tls)| *implicit_tls);
        let _ = write!(
            text,
            "
listen smtp_{port}
    bind {bind}
    balance leastconn
"
        );
        text.push_str(if implicit_tls {
            // The node waits for a ClientHello: what can be checked without a certificate is the connection.
            "    # TLS from the first byte: the check is the connection and the node's own word.
    option tcp-check
    tcp-check connect default
"
        } else {
            "    # Not smtpchk, which leaves without QUIT.
    option tcp-check
    # Without the word \"default\" the check would not send the header that the node waits for.
    tcp-check connect default
    tcp-check expect rstring ^220
    tcp-check send QUIT\\r\\n
    tcp-check expect rstring ^221
"
        });
        for (node, address, _) in servers {
            // The agent says a share of this weight, so that `node set --weight` arrives without a reload.
            let weight = if agent_of(node, address, &agents, args.agent_port).is_some() {
                100
            } else {
                (node.weight * 100 / heaviest).max(1)
            };
            let _ =
                write!(text, "    server {} {address} send-proxy-v2 check check-send-proxy weight {weight}", node.name);
            if let Some(agent) = agent_of(node, address, &agents, args.agent_port) {
                let _ = write!(
                    text,
                    " agent-check agent-addr {} agent-port {} agent-inter 500ms",
                    agent.ip(),
                    agent.port()
                );
            }
            text.push('\n');
        }
    }
    Ok(text)
}

fn head(maxconn: u32) -> String {
    format!(
        "# HAProxy in front of the nodes, written by: posthousectl front render haproxy.
# Check it: haproxy -c -f THIS. Each node must list this machine in [proxy_protocol] trusted.

global
    maxconn {maxconn}

defaults
    mode tcp
    # A device that is offered a node which has just died is given another one, before it has heard anything.
    retries 3
    option redispatch 1
    timeout connect 1s
    timeout check 3s
    # RFC 5321, 4.5.3.2: an SMTP client may take up to ten minutes; the nodes hold it to less.
    timeout client 11m
    timeout server 11m
    # Devices that only connect and leave are not worth a line.
    option dontlognull
    default-server inter 1s fastinter 250ms fall 2 rise 2 slowstart 5s
"
    )
}

fn pairs<'a>(texts: &'a [String], flag: &str) -> Result<BTreeMap<&'a str, &'a str>, Failure> {
    texts
        .iter()
        .map(|text| {
            text.split_once('=').filter(|(name, address)| !name.is_empty() && !address.is_empty()).ok_or_else(|| {
                Failure::usage(
                    format!("\"{text}\" is not NAME=ADDRESS"),
                    format!("{flag} says which one, and where"),
                    format!("{flag} n1=10.20.0.11:7181"),
                )
            })
        })
        .collect()
}

/// Where a node's agent is.
fn agent_of(node: &Member, address: &str, agents: &BTreeMap<&str, &str>, port: Option<u16>) -> Option<SocketAddr> {
    if let Some(agent) = agents.get(node.name.as_str()) {
        return agent.parse().ok();
    }
    let host: SocketAddr = address.parse().ok()?;
    port.map(|port| SocketAddr::new(host.ip(), port))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use posthouse_proto::v1::ServiceAddress;

    use super::*;

    fn node(name: &str, host: &str, weight: u32) -> Member {
        let service =
            |port: u32, implicit_tls| ServiceAddress { port, address: format!("{host}:{port}"), implicit_tls };
        Member {
            name: name.to_owned(),
            weight,
            services: vec![service(25, false), service(465, true)],
            ..Member::default()
        }
    }

    fn args() -> HaproxyArgs {
        HaproxyArgs { bind: vec![], agent: vec![], agent_port: None, maxconn: 4000 }
    }

    #[test]
    fn every_service_is_a_section_with_every_node() {
        let text = render(&args(), &[node("n1", "10.0.0.1", 1), node("n2", "10.0.0.2", 2)]).unwrap();
        assert!(text.contains("listen smtp_25\n    bind :25\n") && text.contains("listen smtp_465\n"), "{text}");
        assert!(text.contains("    server n1 10.0.0.1:25 send-proxy-v2 check check-send-proxy weight 50\n"), "{text}");
        assert!(text.contains("    server n2 10.0.0.2:25 send-proxy-v2 check check-send-proxy weight 100\n"), "{text}");
        assert!(text.contains("tcp-check send QUIT\\r\\n\n"), "{text}");
    }

    #[test]
    fn an_agent_is_asked_where_the_flags_say() {
        let asked = HaproxyArgs {
            agent: vec!["n1=10.0.9.1:7000".to_owned()],
            agent_port: Some(7181),
            bind: vec!["25=10.0.0.25:25".to_owned()],
            ..args()
        };
        let text = render(&asked, &[node("n1", "10.0.0.1", 1), node("n2", "10.0.0.2", 2)]).unwrap();
        assert!(text.contains("bind 10.0.0.25:25"), "{text}");
        assert!(
            text.contains("weight 100 agent-check agent-addr 10.0.9.1 agent-port 7000 agent-inter 500ms"),
            "{text}"
        );
        assert!(text.contains("agent-addr 10.0.0.2 agent-port 7181"), "{text}");
    }

    #[test]
    fn nothing_to_render_and_a_bad_flag_are_said() {
        assert!(render(&args(), &[]).is_err());
        assert!(render(&HaproxyArgs { bind: vec!["25".to_owned()], ..args() }, &[node("n1", "10.0.0.1", 1)]).is_err());
    }
}
