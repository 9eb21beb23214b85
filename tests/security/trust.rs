//! Files whose content is believed, in the hands of somebody else: the configuration, secrets, certificates, and the
//! directories that lead to them.

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, chown, lchown, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    files::assert_refused,
    support::{
        daemon::{Daemon, Home},
        issuer::Issuer,
        skip::skip,
    },
    world::{REFRESH, TOKEN, World, log_in},
};

/// Someone who owns nothing on this machine.
const NOBODY: u32 = 65534;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn write(path: &Path, text: &str) {
    File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    set_mode(path, 0o600);
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip("in part: only root can give files away");
    }
    is_root
}

/// A daemon not started, and a directory above its configuration.
fn unstarted() -> (Arc<Home>, Daemon, PathBuf) {
    let home = Home::new();
    let daemon = Daemon::prepare(&home, "a", "", &[]);
    let directory = home.path().join("above");
    fs::create_dir(&directory).unwrap();
    (home, daemon, directory)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_others_could_have_written_is_refused() {
    let (_home, mut daemon, above) = unstarted();
    let config = daemon.config();
    let name = config.to_str().unwrap().to_owned();
    for mode in [0o666, 0o664, 0o602] {
        set_mode(&config, mode);
        assert_refused(&daemon, "writable by others", &[&name, "chmod go-w"]).await;
        assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o777, mode, "it is left as it was");
    }
    let check = daemon.command(&["check"], "").await;
    assert!(!check.status.success() && String::from_utf8_lossy(&check.stderr).contains("chmod go-w"));
    set_mode(&config, 0o644);

    let kept = above.join("kept.toml");
    fs::rename(&config, &kept).unwrap();
    symlink(&kept, &config).unwrap();
    set_mode(&above, 0o777);
    assert_refused(&daemon, "in a directory that others write to", &[above.to_str().unwrap(), "chmod go-w"]).await;
    set_mode(&above, 0o1777);
    daemon.launch().await;
    daemon.kill9().await;
    set_mode(&above, 0o755);

    if !is_root() {
        return;
    }
    lchown(&config, Some(NOBODY), None).unwrap();
    assert_refused(&daemon, "another user's link", &[&name, "chown -h"]).await;
    lchown(&config, Some(0), None).unwrap();
    for owned in [&kept, &above] {
        chown(owned, Some(NOBODY), None).unwrap();
        assert_refused(&daemon, "another user's", &[owned.to_str().unwrap(), "belongs to another user"]).await;
        chown(owned, Some(0), None).unwrap();
    }
    daemon.launch().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_a_directory_that_others_could_replace_is_refused() {
    let (home, daemon, above) = unstarted();
    let store = above.join("deep/credproxy.db");
    let config = fs::read_to_string(daemon.config()).unwrap();
    let old = home.path().join("data/credproxy.db");
    write(&daemon.config(), &config.replace(old.to_str().unwrap(), store.to_str().unwrap()));
    set_mode(&above, 0o777);
    assert_refused(&daemon, "a store", &[above.to_str().unwrap(), "chmod go-w"]).await;
    let check = daemon.command(&["check"], "").await;
    assert!(!check.status.success() && String::from_utf8_lossy(&check.stdout).contains("chmod go-w"), "{check:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_the_environment_that_others_could_have_written_are_refused() {
    let home = Home::new();
    let (file, directory) = (home.path().join("roots.pem"), home.path().join("roots"));
    write(&file, "");
    fs::create_dir(&directory).unwrap();
    set_mode(&file, 0o666);
    set_mode(&directory, 0o777);
    // Relative to the home, and among others.
    let several = format!("/etc:{}:/usr", directory.display());
    for (name, value, due) in [
        ("SSL_CERT_FILE", file.to_str().unwrap(), &file),
        ("SSL_CERT_FILE", "roots.pem", &file),
        ("SSL_CERT_DIR", &several, &directory),
    ] {
        let mut daemon = Daemon::prepare(&home, "a", "", &[(name, value)]);
        assert_refused(&daemon, value, &[name, &format!("chmod go-w '{}'", due.display())]).await;
        let mode = fs::metadata(due).unwrap().permissions().mode();
        set_mode(due, 0o755);
        daemon.launch().await;
        daemon.kill9().await;
        set_mode(due, mode);
    }
}

/// What a provider needs besides the configuration, each in a file that others may write.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_or_certificate_that_others_could_have_written_stops_its_provider_alone() {
    let (issuer, home) = (Issuer::start().await, Home::new());
    let secret = home.path().join("client.txt");
    let authority = home.path().join("ca.pem");
    let program = home.path().join("print");
    write(&secret, crate::world::CLIENT_SECRET);
    write(&authority, "a certificate, perhaps");
    write(&program, "#!/bin/sh\necho canary-client-secret\n");
    set_mode(&secret, 0o666);
    set_mode(&authority, 0o646);
    set_mode(&program, 0o775);
    let table = |name: &str, more: &str| {
        format!("[providers.{name}]\ntoken_endpoint = \"{}\"\nclient_id = \"me\"\n{more}\n", issuer.token_endpoint())
    };
    let config = [
        crate::world::table("corp", &issuer),
        table("secret", &format!("client_secret = {{ file = {secret:?} }}")),
        table("key", &format!("client_key = {{ file = {secret:?} }}")),
        table("ca", &format!("ca_file = {authority:?}")),
        table("command", &format!("client_secret = {{ command = \"{} now\" }}", program.display())),
    ];
    let daemon = Daemon::start(&home, "a", &config.join("\n"), &[("SECRET", crate::world::CLIENT_SECRET)]).await;
    log_in(&daemon, &issuer, TOKEN).await;
    let check = daemon.command(&["check"], "").await;
    let (check, log) = (String::from_utf8(check.stdout).unwrap(), daemon.output_text());
    let fails = async |name: &str| {
        log_in(&daemon, &issuer, &format!("/v1/tokens/{name}")).await;
        let answer = daemon.request("POST", &format!("/v1/tokens/{name}/refresh"), &[], "").await;
        assert_eq!(answer.status, 502, "{name}: {}", answer.text());
    };
    tokio::join!(fails("secret"), fails("key"), fails("ca"), fails("command"));
    for (name, file) in [("secret", &secret), ("key", &secret), ("ca", &authority), ("command", &program)] {
        let due = format!("chmod go-w '{}'", file.display());
        let told = |text: &str| text.lines().any(|line| line.contains(name) && line.contains(&due));
        assert!(told(&check), "{name}: {check}");
        assert!(told(&log), "{name}");
    }
    assert_eq!(issuer.requests().len(), 0, "nothing was sent");
    let answer = daemon.request("POST", REFRESH, &[], "").await;
    assert_eq!(answer.status, 200, "the others go on: {}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_others_could_have_written_is_no_store_key() {
    let home = Home::new();
    let credentials = home.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    write(&credentials.join("key"), &"5".repeat(64));
    let store = format!("[store]\nurl = \"sqlite://{}/data/s.db\"\nkey = \"credential:key\"\n", home.path().display());
    let env = [("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())];
    let mut daemon = Daemon::prepare(&home, "a", &store, &env);
    set_mode(&credentials, 0o777);
    assert_refused(&daemon, "a credential", &[credentials.to_str().unwrap(), "chmod go-w"]).await;
    set_mode(&credentials, 0o500);
    daemon.launch().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_imported_from_no_file_that_others_could_have_written() {
    let world = World::new().await;
    let file = world.home.path().join("grant.json");
    let (access, refresh) = world.issuer.new_grant();
    let grant = format!("{{\"access_token\": \"{access}\", \"refresh_token\": \"{refresh}\"}}");
    write(&file, &grant);
    set_mode(&file, 0o666);
    let from = ["import", "corp/other", "--from", file.to_str().unwrap()];
    let output = world.daemon.command(&from, "").await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("chmod go-w") && said.contains("standard input"), "{said}");
    let output = world.daemon.command(&["import", "corp/other"], &grant).await;
    assert!(output.status.success(), "{output:?}");
    set_mode(&file, 0o644);
    assert!(world.daemon.command(&from, "").await.status.success());
}
