//! The TCP and UDP proxies over real sockets, and their decoders.

mod configs;
mod corpus;
mod decoders;
mod hello;
mod lives;
mod prelude;
mod proxy_header;
mod support;
mod tcp;
mod tcp_limits;
mod udp;
