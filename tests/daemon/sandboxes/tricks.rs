//! What a program can do to the daemon that has its sandbox's directory, and may write to it.

use std::{
    fs::{self, File, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::Path,
};

use serde_json::json;

use crate::sandboxes::{Sandbox, World};

const TOKEN: &str = "/v1/tokens/corp";

/// Puts something in the place of the socket, with the path of a file that is not the program's.
type Trick = fn(&Path, &Path);

const TRICKS: [(&str, Trick); 8] = [
    ("no socket", |_, _| ()),
    ("a file", |socket, _| drop(File::create(socket).unwrap())),
    ("a link to a file", |socket, victim| symlink(victim, socket).unwrap()),
    ("a link to the host's socket", |socket, _| symlink("../../credproxy.sock", socket).unwrap()),
    ("a link to nothing", |socket, _| symlink("/nowhere/at/all", socket).unwrap()),
    ("a directory", |socket, _| fs::create_dir(socket).unwrap()),
    ("a socket that is dead", |socket, _| drop(UnixListener::bind(socket).unwrap())),
    ("a directory that all may write to", |socket, _| {
        fs::set_permissions(socket.parent().unwrap(), Permissions::from_mode(0o777)).unwrap();
    }),
];

async fn assert_unhurt(world: &World, good: &Sandbox, victim: &Path, after: &str) {
    assert_eq!(world.host("GET", TOKEN, "").await.status, 200, "{after}");
    assert_eq!(good.status("GET", TOKEN).await, 200, "{after}");
    assert_eq!(fs::read(victim).unwrap(), b"", "{after}");
    assert_eq!(fs::metadata(victim).unwrap().permissions().mode() & 0o777, 0o644, "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_in_the_socket_s_place_hurts_nobody_else() {
    let mut world = World::new().await;
    let victim = world.home.path().join("victim");
    File::create(&victim).unwrap();
    fs::set_permissions(&victim, Permissions::from_mode(0o644)).unwrap();
    let good = world.sandbox(&json!({"allow": ["corp"]})).await;
    for restart in [false, true] {
        for (name, trick) in TRICKS {
            let bad = world.sandbox(&json!({"allow": ["corp"]})).await;
            fs::remove_file(bad.socket()).unwrap();
            trick(&bad.socket(), &victim);
            if restart {
                world.daemon.kill9().await;
                world.launch().await;
            }
            assert_unhurt(&world, &good, &victim, name).await;
            let deleted = world.host("DELETE", &bad.path(), "").await;
            assert_eq!(deleted.status, 204, "{name}: {}", deleted.text());
            assert_unhurt(&world, &good, &victim, name).await;
        }
    }
    assert_eq!(world.sandboxes().await.len(), 1);
    assert!(world.daemon.socket().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_listens_in_the_daemon_s_stead_keeps_its_socket_and_gets_nothing() {
    let mut world = World::new().await;
    let bad = world.sandbox(&json!({"allow": ["corp"]})).await;
    fs::remove_file(bad.socket()).unwrap();
    let theirs = UnixListener::bind(bad.socket()).unwrap();
    theirs.set_nonblocking(true).unwrap();
    world.restart().await;
    assert_eq!(world.host("GET", TOKEN, "").await.status, 200);
    assert_eq!(world.host("DELETE", &bad.path(), "").await.status, 204);
    assert!(bad.socket().exists());
    // At most it was knocked at.
    while let Ok((mut stream, _)) = theirs.accept() {
        let mut said = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut said).unwrap();
        assert_eq!(said, b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_directory_can_be_made_there_is_no_sandbox_and_a_reason() {
    let mut world = World::new().await;
    let root = world.daemon.socket().with_file_name("sandboxes");
    File::create(&root).unwrap();
    let refused = world.wanted(&json!({"allow": ["corp"]})).await;
    assert_eq!((refused.status, &refused.json()["code"]), (500, &json!("INTERNAL_ERROR")));
    assert!(refused.text().contains("socket cannot be made"), "{}", refused.text());
    assert!(fs::symlink_metadata(&root).unwrap().is_file() && world.sandboxes().await.is_empty());
    // Nothing of it was kept either.
    fs::remove_file(&root).unwrap();
    world.restart().await;
    assert!(world.sandboxes().await.is_empty() && !root.exists());
    world.sandbox(&json!({"allow": ["corp"]})).await;
}
