//! The servers and tools that tests, templates and benches use: one row each.

/// A server, or a tool of one program.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    /// The Debian packages that bring it; what they depend on is found out when they are fetched.
    pub(crate) packages: &'static [&'static str],
    /// The program to run.
    pub(crate) program: &'static str,
    /// Folders below `/`, besides `PATH`, that may hold it; `*` stands for one name.
    pub(crate) folders: &'static [&'static str],
    /// The variable that holds the program's path for tests that start it themselves.
    pub(crate) program_variable: &'static str,
    /// How it is run; `None` for a tool.
    pub(crate) server: Option<Server>,
    /// What `cargo xtask test` does with it.
    pub(crate) in_tests: InTests,
}

/// What `cargo xtask test` does with a service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum InTests {
    /// Starts it and passes its address.
    Started,
    /// Passes the path of its program.
    Program,
    /// No test uses it.
    Unused,
}

/// How a server is started, asked and stopped. In texts, `{port}` and `{peer_port}` stand for free
/// ports of the loopback interface, and `{data}` for an empty folder of the server's own.
pub(crate) struct Server {
    /// The variable that holds the server's address, and the address.
    pub(crate) address: (&'static str, &'static str),
    /// Files written to the data folder before the start: name and content.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// A program beside the server's, run once before the start, and its arguments.
    pub(crate) prepare: Option<(&'static str, &'static [&'static str])>,
    /// Arguments of the server, which must stay in the foreground.
    pub(crate) args: &'static [&'static str],
    /// Sent to the port once it is open; a server that is ready answers with `answer`.
    pub(crate) ask: &'static str,
    pub(crate) answer: &'static str,
    /// The signal that stops it in an orderly way without waiting for its clients.
    pub(crate) stop: &'static str,
    /// Whether it refuses to run as root. It is then run as `nobody`.
    pub(crate) refuses_root: bool,
}

/// A PostgreSQL start-up message: length, protocol 3.0, parameters, a final zero.
const POSTGRES_HELLO: &str = "\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0";

const HTTP_HELLO: &str = "GET / HTTP/1.0\r\n\r\n";

const NGINX_CONF: &str = "\
daemon off;
pid {data}/nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path {data}/body;
    proxy_temp_path {data}/proxy;
    fastcgi_temp_path {data}/fastcgi;
    uwsgi_temp_path {data}/uwsgi;
    scgi_temp_path {data}/scgi;
    server {
        listen 127.0.0.1:{port};
        location / { return 200 \"ok\\n\"; }
    }
}
";

const HAPROXY_CFG: &str = "\
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend all
    bind 127.0.0.1:{port}
    http-request return status 200 content-type text/plain string ok
";

/// Every service.
pub(crate) const SERVICES: &[Service] = &[
    Service {
        name: "redis",
        packages: &["redis-server", "redis-tools"],
        program: "redis-server",
        folders: &[],
        program_variable: "VOUSSOIR_REDIS_SERVER",
        server: Some(Server {
            address: ("REDIS_URL", "redis://127.0.0.1:{port}"),
            files: &[],
            prepare: None,
            args: &[
                "--bind",
                "127.0.0.1",
                "--port",
                "{port}",
                "--dir",
                "{data}",
                "--save",
                "",
                "--appendonly",
                "no",
            ],
            ask: "PING\r\n",
            answer: "+PONG",
            stop: "TERM",
            refuses_root: false,
        }),
        in_tests: InTests::Started,
    },
    Service {
        name: "postgresql",
        packages: &["postgresql"],
        program: "postgres",
        folders: &["usr/lib/postgresql/*/bin"],
        program_variable: "VOUSSOIR_POSTGRES",
        server: Some(Server {
            address: (
                "DATABASE_URL",
                "postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable",
            ),
            files: &[],
            prepare: Some((
                "initdb",
                &[
                    "--pgdata={data}/db",
                    "--username=postgres",
                    "--auth=trust",
                    "--no-locale",
                    "--encoding=UTF8",
                    "--no-sync",
                ],
            )),
            args: &[
                "-D",
                "{data}/db",
                "-p",
                "{port}",
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "unix_socket_directories=",
                "-c",
                "max_prepared_transactions=64",
                "-c",
                "max_connections=200",
                "-c",
                "wal_level=logical",
                "-c",
                "jit=off",
            ],
            ask: POSTGRES_HELLO,
            answer: "R",
            stop: "INT",
            refuses_root: true,
        }),
        in_tests: InTests::Started,
    },
    Service {
        name: "nginx",
        packages: &["nginx"],
        program: "nginx",
        folders: &["usr/sbin"],
        program_variable: "VOUSSOIR_NGINX",
        server: Some(Server {
            address: ("NGINX_URL", "http://127.0.0.1:{port}"),
            files: &[("nginx.conf", NGINX_CONF)],
            prepare: None,
            args: &["-e", "stderr", "-p", "{data}", "-c", "{data}/nginx.conf"],
            ask: HTTP_HELLO,
            answer: "HTTP/1.1 200",
            stop: "TERM",
            refuses_root: false,
        }),
        in_tests: InTests::Program,
    },
    Service {
        name: "haproxy",
        packages: &["haproxy"],
        program: "haproxy",
        folders: &["usr/sbin"],
        program_variable: "VOUSSOIR_HAPROXY",
        server: Some(Server {
            address: ("HAPROXY_URL", "http://127.0.0.1:{port}"),
            files: &[("haproxy.cfg", HAPROXY_CFG)],
            prepare: None,
            args: &["-db", "-f", "{data}/haproxy.cfg"],
            ask: HTTP_HELLO,
            answer: "HTTP/1.1 200",
            stop: "TERM",
            refuses_root: false,
        }),
        in_tests: InTests::Unused,
    },
    Service {
        name: "wrk",
        packages: &["wrk"],
        program: "wrk",
        folders: &[],
        program_variable: "VOUSSOIR_WRK",
        server: None,
        in_tests: InTests::Unused,
    },
    Service {
        name: "etcd",
        packages: &["etcd-server"],
        program: "etcd",
        folders: &[],
        program_variable: "VOUSSOIR_ETCD",
        server: Some(Server {
            address: ("ETCD_URL", "http://127.0.0.1:{port}"),
            files: &[],
            prepare: None,
            args: &[
                "--name",
                "one",
                "--data-dir",
                "{data}/etcd",
                "--listen-client-urls",
                "http://127.0.0.1:{port}",
                "--advertise-client-urls",
                "http://127.0.0.1:{port}",
                "--listen-peer-urls",
                "http://127.0.0.1:{peer_port}",
                "--initial-advertise-peer-urls",
                "http://127.0.0.1:{peer_port}",
                "--initial-cluster",
                "one=http://127.0.0.1:{peer_port}",
            ],
            ask: "GET /health HTTP/1.0\r\n\r\n",
            answer: "HTTP/1.0 200",
            stop: "TERM",
            refuses_root: false,
        }),
        in_tests: InTests::Started,
    },
    Service {
        name: "nats",
        packages: &["nats-server"],
        program: "nats-server",
        folders: &["usr/sbin"],
        program_variable: "VOUSSOIR_NATS_SERVER",
        server: Some(Server {
            address: ("NATS_URL", "nats://127.0.0.1:{port}"),
            files: &[],
            prepare: None,
            args: &["-a", "127.0.0.1", "-p", "{port}", "-js", "-sd", "{data}/store"],
            ask: "PING\r\n",
            answer: "INFO ",
            stop: "TERM",
            refuses_root: false,
        }),
        in_tests: InTests::Started,
    },
];

/// The service named `name`.
///
/// # Errors
/// There is none; the message lists all.
pub(crate) fn named(name: &str) -> Result<&'static Service, String> {
    SERVICES.iter().find(|service| service.name == name).ok_or_else(|| {
        let names: Vec<&str> = SERVICES.iter().map(|service| service.name).collect();
        format!("no service named {name}; there are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_up_message_of_postgres_says_its_length() {
        assert_eq!(POSTGRES_HELLO.len(), usize::from(POSTGRES_HELLO.as_bytes()[3]));
    }

    #[test]
    fn names_and_variables_are_unique() {
        let mut all: Vec<&str> = Vec::new();
        for service in SERVICES {
            all.extend([service.name, service.program_variable]);
            all.extend(service.server.as_ref().map(|server| server.address.0));
        }
        let unique: std::collections::BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(unique.len(), all.len());
        assert!(named("redis").is_ok());
        assert!(named("oracle").is_err_and(|error| error.contains("postgresql")));
    }
}
