//! Translates the access to Landlock rules.

use std::{error::Error, io};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, RestrictionStatus, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, path_beneath_rules,
};
use rustix::io::Errno;

use super::{AllowedAccess, Extent, Unavailable};

/// The newest interface whose file rights are all used here (Linux 6.10); an older kernel enforces what it knows.
const FILES: ABI = ABI::V5;

/// A terminal to prompt for a passphrase on, and the null device.
const DEVICES: [&str; 2] = ["/dev/tty", "/dev/null"];

pub(super) fn restrict(access: &AllowedAccess) -> Extent {
    // This asks the kernel for its version. The crate tells only whether Landlock is disabled, so the thread's `errno`
    // is read while it still belongs to that call.
    let ruleset = Ruleset::default();
    let asked = io::Error::last_os_error();
    match rules(ruleset, access) {
        Ok(RestrictionStatus { ruleset: RulesetStatus::FullyEnforced, .. }) => Extent::Full,
        Ok(RestrictionStatus { ruleset: RulesetStatus::PartiallyEnforced, .. }) => Extent::Partial,
        Ok(RestrictionStatus { ruleset: RulesetStatus::NotEnforced, landlock, .. }) => {
            Extent::Unavailable(match landlock {
                LandlockStatus::NotEnabled => Unavailable::Disabled,
                LandlockStatus::NotImplemented => reason(&asked),
                LandlockStatus::Available { .. } => Unavailable::Failed,
            })
        }
        Err(error) => {
            tracing::warn!(%error, "the kernel refused the Landlock sandbox");
            let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
            while let Some(error) = cause {
                if let Some(error) = error.downcast_ref() {
                    return Extent::Unavailable(reason(error));
                }
                cause = error.source();
            }
            Extent::Unavailable(Unavailable::Failed)
        }
    }
}

fn reason(error: &io::Error) -> Unavailable {
    match Errno::from_io_error(error) {
        Some(Errno::NOSYS) => Unavailable::NotImplemented,
        Some(Errno::OPNOTSUPP) => Unavailable::Disabled,
        Some(Errno::PERM) => Unavailable::Forbidden,
        Some(_) | None => Unavailable::Failed,
    }
}

fn rules(ruleset: Ruleset, access: &AllowedAccess) -> Result<RestrictionStatus, RulesetError> {
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
    let ports = access.ports.iter().map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::BindTcp)));
    ruleset
        .handle_access(all)?
        .handle_access(AccessNet::BindTcp)?
        .create()?
        .add_rules(path_beneath_rules(&access.read, read))?
        .add_rules(path_beneath_rules(&access.changed, changed))?
        .add_rules(path_beneath_rules(DEVICES, device))?
        .add_rules(ports)?
        .restrict_self()
}
