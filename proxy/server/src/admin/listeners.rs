//! `/listeners`.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::AdminResponse;
use super::commands::Call;
use super::sources::{AddressStatus, ListenerStatus};

/// `/listeners`, as text or JSON.
pub(super) fn listeners(call: &Call<'_>) -> AdminResponse {
    let listeners = call.sources.listeners();
    if call.query.get("format") == Some("json") {
        let mut out = Map::new();
        if !listeners.is_empty() {
            out.insert("listener_statuses".into(), listeners.iter().map(status).collect());
        }
        return AdminResponse::json(&Value::Object(out));
    }
    let mut out = String::new();
    for listener in &listeners {
        for address in &listener.addresses {
            let _ = writeln!(out, "{}::{address}", listener.name);
        }
    }
    AdminResponse::text(200, out)
}

fn status(listener: &ListenerStatus) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), listener.name.clone().into());
    if let Some((first, more)) = listener.addresses.split_first() {
        out.insert("local_address".into(), address_json(first));
        if !more.is_empty() {
            out.insert("additional_local_addresses".into(), more.iter().map(address_json).collect());
        }
    }
    Value::Object(out)
}

/// `envoy.config.core.v3.Address`.
pub(super) fn address_json(address: &AddressStatus) -> Value {
    match address {
        AddressStatus::Socket(address) => {
            json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
        }
        AddressStatus::InNetwork(address, file) => json!({"socket_address": {
            "address": address.ip().to_string(),
            "port_value": address.port(),
            "network_namespace_filepath": file,
        }}),
        AddressStatus::Pipe(path) => json!({"pipe": {"path": path}}),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeSources, get, text_of};
    use super::*;

    #[test]
    fn listeners_are_shown_with_all_addresses() {
        let sources = FakeSources::default();
        *sources.listeners.borrow_mut() = vec![
            ListenerStatus {
                name: "main".into(),
                addresses: vec![
                    AddressStatus::Socket(([127, 0, 0, 1], 40007).into()),
                    AddressStatus::InNetwork(([127, 0, 0, 2], 40008).into(), "/run/netns/a".into()),
                    AddressStatus::Socket("[::1]:45001".parse().expect("an address")),
                ],
            },
            ListenerStatus { name: "57e5".into(), addresses: vec![AddressStatus::Pipe("/run/l.sock".into())] },
        ];
        let text = "main::127.0.0.1:40007\nmain::127.0.0.2:40008\nmain::[::1]:45001\n57e5::/run/l.sock\n";
        assert_eq!(get(&sources, "/listeners"), AdminResponse::text(200, text));
        assert_eq!(get(&sources, "/listeners?format=zz"), AdminResponse::text(200, text));
        let expected = r#"{
 "listener_statuses": [
  {
   "name": "main",
   "local_address": {
    "socket_address": {
     "address": "127.0.0.1",
     "port_value": 40007
    }
   },
   "additional_local_addresses": [
    {
     "socket_address": {
      "address": "127.0.0.2",
      "port_value": 40008,
      "network_namespace_filepath": "/run/netns/a"
     }
    },
    {
     "socket_address": {
      "address": "::1",
      "port_value": 45001
     }
    }
   ]
  },
  {
   "name": "57e5",
   "local_address": {
    "pipe": {
     "path": "/run/l.sock"
    }
   }
  }
 ]
}
"#;
        assert_eq!(text_of(&get(&sources, "/listeners?format=json")), expected);
    }
}
