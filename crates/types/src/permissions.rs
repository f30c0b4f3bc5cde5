//! Permissions: the kinds of operations that a client may do in a database.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A kind of operation that a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// Reads, change feeds, lists of queues, and the checks of atomic writes.
    Read,
    /// Mutations, and the keys of messages that are not delivered.
    Write,
    /// Watches.
    Watch,
    /// Messages, in atomic writes or alone.
    Enqueue,
    /// Listeners and polls of queues, with their reports.
    Listen,
    /// Orders on messages and dead letters of others.
    Manage,
}

/// No permission has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no permission of this name: known are {}", Permissions::ALL)]
pub struct UnknownPermission;

impl Permission {
    pub const EVERY: [Self; 6] =
        [Self::Read, Self::Write, Self::Watch, Self::Enqueue, Self::Listen, Self::Manage];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Watch => "watch",
            Self::Enqueue => "enqueue",
            Self::Listen => "listen",
            Self::Manage => "manage",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Permission {
    type Err = UnknownPermission;

    fn from_str(name: &str) -> Result<Self, UnknownPermission> {
        Self::EVERY.into_iter().find(|known| known.name() == name).ok_or(UnknownPermission)
    }
}

/// A set of permissions, written as a list of their names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Permissions(u8);

impl Permissions {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self((1 << Permission::EVERY.len()) - 1);
    /// Those of a token that was said to be for reading.
    pub const READ_ONLY: Self = Self(Permission::Read.bit() | Permission::Watch.bit());

    pub const fn contains(self, permission: Permission) -> bool {
        self.0 & permission.bit() != 0
    }

    pub const fn without(self, permission: Permission) -> Self {
        Self(self.0 & !permission.bit())
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Permission> {
        Permission::EVERY.into_iter().filter(move |of| self.contains(*of))
    }
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        Self(permissions.into_iter().fold(0, |all, of| all | of.bit()))
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Permission::name).collect();
        f.write_str(&names.join(", "))
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for Permissions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Permission::name))
    }
}

impl<'de> Deserialize<'de> for Permissions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        names.iter().map(|name| name.parse().map_err(serde::de::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_holds_what_was_put_into_it_and_shows_it_in_order() {
        for one in Permission::EVERY {
            let set: Permissions = [one].into_iter().collect();
            assert_eq!(set.iter().collect::<Vec<_>>(), [one]);
            assert_eq!((set.to_string(), one.name().parse()), (one.to_string(), Ok(one)));
            assert!(Permissions::ALL.contains(one) && !Permissions::NONE.contains(one));
            assert!(!Permissions::ALL.without(one).contains(one));
        }
        assert_eq!(Permissions::ALL.to_string(), "read, write, watch, enqueue, listen, manage");
        assert_eq!(Permissions::READ_ONLY.to_string(), "read, watch");
        assert_eq!("admin".parse::<Permission>(), Err(UnknownPermission));
    }
}
