use std::collections::{HashMap, HashSet};

use meridian_types::DatabaseId;

use crate::{Access, Grant};

/// Which databases there are and who may open them. Asked on every request: an implementation answers
/// from memory.
pub trait Catalogue: Send + Sync + 'static {
    /// What a client opens at `/`.
    fn default_database(&self) -> Option<DatabaseId>;

    /// What a client opens at `/db/<name>`. Names are compared as they stand in the path, undecoded.
    fn by_name(&self, name: &str) -> Option<DatabaseId>;

    fn contains(&self, database: DatabaseId) -> bool;

    /// `None`: the token is not known (any more).
    fn authorize(&self, bearer: &str) -> Option<Grant>;
}

/// A database with the name it is opened by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedDatabase {
    pub id: DatabaseId,
    /// Letters, digits, `-`, `_`, `.` and `~`: what a URL holds without escapes.
    pub name: String,
}

/// A set of databases that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCatalogue {
    #[error("the database name `{0}` is not made of letters, digits, `-`, `_`, `.` and `~`")]
    Name(String),
    #[error("two databases are named `{0}`")]
    DuplicateName(String),
    #[error("two databases have the id {0}")]
    DuplicateId(DatabaseId),
    #[error("the default database {0} is not one of the databases")]
    UnknownDefault(DatabaseId),
}

/// A [`Catalogue`] that is known at start and never changes.
#[derive(Debug, Clone, Default)]
pub struct StaticCatalogue {
    default: Option<DatabaseId>,
    names: HashMap<String, DatabaseId>,
    ids: HashSet<DatabaseId>,
    access: Access,
}

impl StaticCatalogue {
    pub fn new(
        databases: impl IntoIterator<Item = NamedDatabase>,
        default: Option<DatabaseId>,
        access: Access,
    ) -> Result<Self, InvalidCatalogue> {
        let mut catalogue = Self { default, names: HashMap::new(), ids: HashSet::new(), access };
        for NamedDatabase { id, name } in databases {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
            if name.is_empty() || !name.bytes().all(plain) {
                return Err(InvalidCatalogue::Name(name));
            }
            if !catalogue.ids.insert(id) {
                return Err(InvalidCatalogue::DuplicateId(id));
            }
            if catalogue.names.insert(name.clone(), id).is_some() {
                return Err(InvalidCatalogue::DuplicateName(name));
            }
        }
        match default {
            Some(id) if !catalogue.ids.contains(&id) => Err(InvalidCatalogue::UnknownDefault(id)),
            _ => Ok(catalogue),
        }
    }
}

impl Catalogue for StaticCatalogue {
    fn default_database(&self) -> Option<DatabaseId> {
        self.default
    }

    fn by_name(&self, name: &str) -> Option<DatabaseId> {
        self.names.get(name).copied()
    }

    fn contains(&self, database: DatabaseId) -> bool {
        self.ids.contains(&database)
    }

    fn authorize(&self, bearer: &str) -> Option<Grant> {
        self.access.authorize(bearer, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: u8, name: &str) -> NamedDatabase {
        NamedDatabase { id: DatabaseId([id; 16]), name: name.to_owned() }
    }

    fn catalogue(databases: Vec<NamedDatabase>, default: Option<u8>) -> Result<StaticCatalogue, InvalidCatalogue> {
        StaticCatalogue::new(databases, default.map(|id| DatabaseId([id; 16])), Access::default())
    }

    #[test]
    fn finds_what_it_was_given() {
        let catalogue = catalogue(vec![named(1, "main"), named(2, "a-b_c.d~2")], Some(1)).unwrap();
        assert_eq!(catalogue.default_database(), Some(DatabaseId([1; 16])));
        assert_eq!(catalogue.by_name("a-b_c.d~2"), Some(DatabaseId([2; 16])));
        assert_eq!(catalogue.by_name("other"), None);
        assert!(catalogue.contains(DatabaseId([2; 16])) && !catalogue.contains(DatabaseId([3; 16])));
    }

    #[test]
    fn refuses_what_cannot_be_served() {
        let id = |id| DatabaseId([id; 16]);
        let refused = |databases, default| catalogue(databases, default).unwrap_err();
        assert_eq!(refused(vec![named(1, "")], None), InvalidCatalogue::Name(String::new()));
        assert_eq!(refused(vec![named(1, "a/b")], None), InvalidCatalogue::Name("a/b".to_owned()));
        assert_eq!(refused(vec![named(1, "a"), named(2, "a")], None), InvalidCatalogue::DuplicateName("a".to_owned()));
        assert_eq!(refused(vec![named(1, "a"), named(1, "b")], None), InvalidCatalogue::DuplicateId(id(1)));
        assert_eq!(refused(vec![named(1, "a")], Some(2)), InvalidCatalogue::UnknownDefault(id(2)));
    }
}
