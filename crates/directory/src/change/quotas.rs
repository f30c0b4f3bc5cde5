//! Changes of quotas.

use std::collections::BTreeSet;

use meridian_types::{Quota, Quotas};

use crate::change::QuotaOwner;
use crate::cluster::Cluster;
use crate::refused::Refused;

pub(super) fn check_of_token(quotas: &Quotas) -> Result<(), Refused> {
    match quotas.iter().find(|(quota, _)| quota.is_stored()) {
        Some((quota, _)) => Err(Refused(format!("{quota} is a quota of databases, not of tokens"))),
        None => Ok(()),
    }
}

impl Cluster {
    pub(super) fn set_quotas(
        &mut self,
        of: QuotaOwner,
        set: &Quotas,
        remove: &BTreeSet<Quota>,
    ) -> Result<(), Refused> {
        if let Some(quota) = remove.iter().find(|quota| set.get(**quota).is_some()) {
            return Err(Refused(format!("{quota} cannot be both set and removed")));
        }
        let quotas = match of {
            QuotaOwner::Database(id) => {
                self.databases.get_mut(&id).map(|database| &mut database.quotas)
            }
            QuotaOwner::Token(id) => {
                check_of_token(set)?;
                self.tokens.get_mut(&id).map(|token| &mut token.quotas)
            }
        };
        let quotas = quotas.ok_or_else(|| match of {
            QuotaOwner::Database(id) => Refused(format!("there is no database {id}")),
            QuotaOwner::Token(id) => Refused(format!("there is no token {id}")),
        })?;
        set.iter().for_each(|(quota, value)| quotas.set(quota, Some(value)));
        remove.iter().for_each(|quota| quotas.set(*quota, None));
        Ok(())
    }
}
