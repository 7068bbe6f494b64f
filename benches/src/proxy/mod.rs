//! Connections through a TCP proxy: devices before it, a server behind it that says a banner and does what it is told,
//! both in this process; the proxy is a process of its own. Peers: HAProxy with send-proxy-v2 and splice, nginx
//! `stream`, and a bare splice loop, which is the ceiling for streams.

pub mod backend;
pub mod bare;
pub mod devices;
pub mod proxies;
