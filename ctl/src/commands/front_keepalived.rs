//! `front render keepalived`: the configuration that holds the address devices know, for one front, from the live
//! cluster. What may take the address away is written down there; everything else only lowers a priority.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use posthouse_proto::v1::Front;

use crate::error::{Exit, Failure, nearest};

/// Flags of `front render keepalived`.
#[derive(Debug, Args)]
#[command(before_help = "Examples:
  posthousectl front render keepalived --front front1 --vip 10.20.0.25/24 --interface eth0 > keepalived.conf
  posthousectl front render keepalived --front front1 --vip 10.20.0.25/24 --interface eth0 --unit > posthouse.conf
    (a drop-in: /etc/systemd/system/keepalived.service.d/posthouse.conf)
  keepalived -t -f keepalived.conf")]
pub(crate) struct KeepalivedArgs {
    /// For which front: each machine has its own file
    #[arg(long, value_name = "NAME")]
    front: String,
    /// The address that devices know, with its prefix length; repeatable
    #[arg(long, value_name = "IP/LEN", required = true)]
    vip: Vec<String>,
    /// The interface that carries it
    #[arg(long, value_name = "IF")]
    interface: String,
    /// NAME=IP: the address of a front's machine on that interface [default: the one it dials nodes from]
    #[arg(long, value_name = "NAME=IP")]
    address: Vec<String>,
    /// 1 to 255, the same on every front and on no other VRRP group of the network
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u8).range(1..))]
    virtual_router_id: u8,
    /// How the front is started, as the process list shows it: it is tracked by this
    #[arg(long, value_name = "PATH", default_value = "/usr/bin/posthouse")]
    posthouse: PathBuf,
    /// Its configuration file, as the process list shows it
    #[arg(long, value_name = "PATH", default_value = "/etc/posthouse/front.toml")]
    front_file: PathBuf,
    /// The user that the check scripts run as
    #[arg(long, value_name = "USER", default_value = "nobody")]
    script_user: String,
    /// Write the systemd drop-in instead, which takes the address away when keepalived is killed
    #[arg(long)]
    unit: bool,
}

/// All fronts alike: a front that comes back does not take the address from the one that has it (see below).
const PRIORITY: u8 = 100;
/// What a front that is not ready loses: more than any tie-break, and still far above nothing.
const NOT_READY_WEIGHT: i16 = -50;

/// The configuration, or the drop-in.
///
/// # Errors
/// When the front, or an address, is not known.
pub(crate) fn render(args: &KeepalivedArgs, fronts: &[Front]) -> Result<String, Failure> {
    let vips = args.vip.iter().map(|text| vip(text)).collect::<Result<Vec<_>, _>>()?;
    if args.unit {
        return Ok(drop_in(&args.interface, &vips));
    }
    let Some(own) = fronts.iter().find(|front| front.name == args.front) else {
        let near = nearest(&args.front, fronts.iter().map(|front| front.name.as_str()));
        let message = format!("front \"{}\" not found", args.front);
        let failure = Failure::new(
            Exit::NotFound,
            "PH-FRONT-001",
            message,
            "the cluster has no front of that name",
            "posthousectl front list",
        );
        return Err(failure.with_suggestion(near));
    };
    let own_address = address_of(own, args)?;
    let mut peers = Vec::new();
    for front in fronts.iter().filter(|front| front.name != own.name) {
        peers.push((front.name.as_str(), address_of(front, args)?));
    }
    let http = if own.http_address.is_empty() { "127.0.0.1:9190" } else { &own.http_address };
    Ok(configuration(args, own, own_address, &peers, http, &vips))
}

fn configuration(
    args: &KeepalivedArgs,
    own: &Front,
    own_address: IpAddr,
    peers: &[(&str, IpAddr)],
    http: &str,
    vips: &[String],
) -> String {
    let KeepalivedArgs { interface, virtual_router_id, posthouse, front_file, script_user, .. } = args;
    let (posthouse, front_file) = (posthouse.display(), front_file.display());
    let curl = format!("/usr/bin/curl --fail --silent --output /dev/null --max-time 1 http://{http}");
    let mut text = format!(
        "# keepalived for front {name}, written by: posthousectl front render keepalived. One file for each front.
# Check it: keepalived -t -f THIS. Its exit code says little; read what it prints.

global_defs {{
    router_id {name}
    # Version 2 counts in whole seconds.
    vrrp_version 3
    enable_script_security
    script_user {script_user}
    # Said again now and then, for a switch that forgot.
    vrrp_garp_master_refresh 10
}}

# The process is gone: a fault, at once. Started exactly so, also by an upgrade (--takeover comes last).
vrrp_track_process posthouse_front {{
    process \"{posthouse}\" front --config {front_file}
    param_match partial
    quorum 1
}}

# The process hangs: a fault. keepalived runs scripts once a second at most.
vrrp_script posthouse_livez {{
    script \"{curl}/livez\"
    interval 1
    timeout 2
    fall 1
    rise 2
}}

# It answers, and knows no node that is well, or is drained: another front is better, and if there is none this one
# keeps the address. Never a fault, so that the address cannot vanish from all of them.
vrrp_script posthouse_readyz {{
    script \"{curl}/readyz\"
    interval 1
    timeout 2
    fall 1
    rise 2
    weight {NOT_READY_WEIGHT}
}}

vrrp_instance posthouse {{
    state BACKUP
    interface {interface}
    virtual_router_id {virtual_router_id}
    # The same on every front: whoever has the address keeps it, and one that comes back does not take it. That is
    # what nopreempt is for; the word itself would also forbid to take the address from a front that is not ready.
    priority {PRIORITY}
    advert_int 0.1
    garp_master_delay 1
",
        name = own.name,
    );
    let _ = writeln!(text, "    unicast_src_ip {own_address}");
    text.push_str("    unicast_peer {\n");
    for (name, address) in peers {
        let _ = writeln!(text, "        {address}    # {name}");
    }
    text.push_str("    }\n    virtual_ipaddress {\n");
    for vip in vips {
        let _ = writeln!(text, "        {vip} dev {interface}");
    }
    text.push_str(
        "    }
    track_process {
        posthouse_front
    }
    track_script {
        posthouse_livez
        posthouse_readyz
    }
}
",
    );
    text
}

/// keepalived that is killed leaves the address where it was, beside the front that has taken it over
/// (acassen/keepalived issue 2361): systemd takes it away, and starts keepalived anew.
fn drop_in(interface: &str, vips: &[String]) -> String {
    let mut text = "# A drop-in for keepalived.service, written by: posthousectl front render keepalived --unit.
# keepalived that is killed leaves the address on this machine while another front takes it: it is taken away here.
[Unit]
StartLimitIntervalSec=0

[Service]
Restart=always
RestartSec=1
KillMode=control-group
"
    .to_owned();
    for vip in vips {
        let _ = writeln!(text, "ExecStopPost=-/sbin/ip address del {vip} dev {interface}");
    }
    text
}

fn vip(text: &str) -> Result<String, Failure> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then(|| format!("{address}/{prefix}"))
    });
    parsed.ok_or_else(|| {
        Failure::usage(
            format!("\"{text}\" is not an address with a prefix length"),
            "the address is added to the interface as it is written",
            "--vip 10.20.0.25/24",
        )
    })
}

/// The address of a front's machine: what the flags say, else the first that it dials nodes from.
fn address_of(front: &Front, args: &KeepalivedArgs) -> Result<IpAddr, Failure> {
    let said = args.address.iter().filter_map(|text| text.split_once('=')).find(|(name, _)| *name == front.name);
    let text = said.map(|(_, address)| address).or_else(|| front.source_addresses.first().map(String::as_str));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        Failure::usage(
            format!("the address of front \"{}\" is not known", front.name),
            "the fronts speak to each other without multicast, from address to address",
            format!("--address {}=10.20.0.21", front.name),
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn front(name: &str, address: &str) -> Front {
        Front {
            name: name.to_owned(),
            source_addresses: vec![address.to_owned()],
            http_address: "127.0.0.1:9190".to_owned(),
            ..Front::default()
        }
    }

    fn args(front: &str) -> KeepalivedArgs {
        KeepalivedArgs {
            front: front.to_owned(),
            vip: vec!["10.20.0.25/24".to_owned()],
            interface: "eth0".to_owned(),
            address: vec![],
            virtual_router_id: 25,
            posthouse: "/usr/bin/posthouse".into(),
            front_file: "/etc/posthouse/front.toml".into(),
            script_user: "nobody".to_owned(),
            unit: false,
        }
    }

    #[test]
    fn each_front_names_itself_and_its_peers() {
        let fronts = [front("f1", "10.20.0.21"), front("f2", "10.20.0.22")];
        let text = render(&args("f2"), &fronts).unwrap();
        assert!(text.contains("unicast_src_ip 10.20.0.22\n"), "{text}");
        assert!(text.contains("        10.20.0.21    # f1\n") && !text.contains("10.20.0.22    # f2"), "{text}");
        assert!(text.contains("http://127.0.0.1:9190/livez"), "{text}");
    }

    #[test]
    fn only_a_dead_or_hung_process_is_a_fault() {
        let text = render(&args("f1"), &[front("f1", "10.20.0.21")]).unwrap();
        let section = |name: &str| {
            text.split(&format!("vrrp_script {name}")).nth(1).unwrap().split('}').next().unwrap().to_owned()
        };
        assert!(!section("posthouse_livez").contains("weight"));
        assert!(section("posthouse_readyz").contains("weight -50"));
    }

    #[test]
    fn an_unknown_front_and_a_bad_address_say_what_to_write() {
        let failure = render(&args("f3"), &[front("f1", "10.20.0.21")]).unwrap_err();
        assert_eq!(failure.code(), "PH-FRONT-001");
        assert!(vip("10.20.0.25").is_err() && vip("10.20.0.25/33").is_err() && vip("fd00::25/64").is_ok());
        let silent = Front { source_addresses: vec![], ..front("f1", "") };
        assert!(render(&args("f1"), std::slice::from_ref(&silent)).is_err());
        let told = KeepalivedArgs { address: vec!["f1=10.20.0.21".to_owned()], ..args("f1") };
        assert!(render(&told, &[silent]).is_ok());
    }

    #[test]
    fn the_drop_in_takes_every_address_away() {
        let text = render(&KeepalivedArgs { unit: true, ..args("f1") }, &[]).unwrap();
        assert!(text.contains("ExecStopPost=-/sbin/ip address del 10.20.0.25/24 dev eth0\n"), "{text}");
    }
}
