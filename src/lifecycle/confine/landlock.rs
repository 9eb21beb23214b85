//! The rules in Landlock's words.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, NetPort, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetError, RulesetStatus, path_beneath_rules,
};

use super::{Extent, Reach};

/// The newest interface whose file rights are all used here (Linux 6.10); an older kernel enforces what it knows.
const FILES: ABI = ABI::V5;

/// A terminal to ask for a passphrase on, and the place where nothing is.
const DEVICES: [&str; 2] = ["/dev/tty", "/dev/null"];

pub(super) fn restrict(reach: &Reach) -> Extent {
    match rules(reach) {
        Ok(RulesetStatus::FullyEnforced) => Extent::Full,
        Ok(RulesetStatus::PartiallyEnforced) => Extent::Partial,
        Ok(RulesetStatus::NotEnforced) => Extent::Unavailable,
        Err(error) => {
            tracing::warn!(%error, "the kernel refuses to confine the daemon");
            Extent::Unavailable
        }
    }
}

fn rules(reach: &Reach) -> Result<RulesetStatus, RulesetError> {
    let all = AccessFs::from_all(FILES);
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let changed = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let ports = reach.ports.iter().map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::BindTcp)));
    let status = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::BindTcp)?
        .create()?
        .add_rules(path_beneath_rules(&reach.read, read))?
        .add_rules(path_beneath_rules(&reach.changed, changed))?
        .add_rules(path_beneath_rules(DEVICES, device))?
        .add_rules(ports)?
        .restrict_self()?;
    Ok(status.ruleset)
}
