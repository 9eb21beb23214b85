//! Sandboxes where nobody makes sockets. `tests/sandboxes` has a daemon that does.

use credproxy::policy::{Allowed, Operation, Policy};

use crate::api::{Api, JSON, World};

#[tokio::test]
async fn a_router_without_sockets_says_so_to_the_host_alone() {
    let world = World::new().await;
    let operations = Operation::ALL.to_vec();
    let sandbox = Policy::sandbox(Allowed { operations, ..Allowed::default() });
    let sandbox = Api::new(&world, sandbox);
    let one = "/v1/sandboxes/0f1e2d3c4b5a69788796a5b4c3d2e1f0";
    for (method, target) in
        [("GET", "/v1/sandboxes"), ("POST", "/v1/sandboxes"), ("GET", one), ("DELETE", one), ("GET", "/v1/sandboxes/x")]
    {
        let (headers, body) = if method == "POST" { (&[JSON][..], &b"{}"[..]) } else { (&[][..], &b""[..]) };
        let none = world.host.send(method, target, headers, body).await;
        assert_eq!((none.status, none.code().as_str()), (404, "NOT_FOUND"), "{method} {target}");
        let refused = sandbox.send(method, target, headers, body).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "UNAUTHORIZED"), "{method} {target}");
    }
}
