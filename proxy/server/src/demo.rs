//! `nuncio demo`: an edge listener before two sample upstreams, all inside the process.
//!
//! The configuration is an ordinary bootstrap, printed at the start, so that it can be copied and changed. The sample
//! upstreams are listeners that answer directly, reached over the loopback like any other host.

use crate::options::Options;

/// The demo's bootstrap; the edge listens on `port`, the admin interface on the next.
pub fn bootstrap(port: u16) -> String {
    include_str!("demo.yaml")
        .replace("@EDGE@", &port.to_string())
        .replace("@ADMIN@", &(port + 1).to_string())
        .replace("@BLUE@", &(port + 2).to_string())
        .replace("@GREEN@", &(port + 3).to_string())
        .replace("@GONE@", &(port + 4).to_string())
}

/// Options that serve the demo.
pub fn options(base: &Options, port: u16) -> Options {
    let mut options = base.clone();
    options.config_path = None;
    options.config_yaml = Some(bootstrap(port));
    options.command = None;
    options
}

/// What to try, printed once the demo serves.
pub fn help(port: u16) -> String {
    let admin = port + 1;
    format!(
        "\nNuncio demo: an edge proxy with two sample upstreams, `blue` (75 %) and `green` (25 %), both health checked.\n\n  \
         curl http://127.0.0.1:{port}/                       # weighted: mostly blue, sometimes green\n  \
         curl http://127.0.0.1:{port}/green/hello            # routed by prefix, path rewritten\n  \
         curl -H 'x-color: green' http://127.0.0.1:{port}/   # routed by header\n  \
         curl -i http://127.0.0.1:{port}/old                 # redirect\n  \
         curl -i http://127.0.0.1:{port}/flaky               # one of its two hosts is not there: health checks keep it out\n  \
         curl --http2-prior-knowledge http://127.0.0.1:{port}/\n\n  \
         Take blue down: its requests are tried again at green, and a second later all go there.\n\n  \
         curl -X POST 'http://127.0.0.1:{admin}/runtime_modify?demo.blue.down=100'\n  \
         curl -s http://127.0.0.1:{admin}/clusters | grep -E 'samples.*(health_flags|weight|rq_total)'\n  \
         curl -X POST 'http://127.0.0.1:{admin}/runtime_modify?demo.blue.down=0'\n\n  \
         curl http://127.0.0.1:{admin}/clusters              # hosts, health, counters\n  \
         curl 'http://127.0.0.1:{admin}/stats?usedonly'\n  \
         curl http://127.0.0.1:{admin}/config_dump\n\n\
         Access log lines follow. Ctrl-C drains and ends; a second one ends at once.\n"
    )
}
