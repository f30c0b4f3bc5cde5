//! A versionstamp as twenty hex characters in JSON.

use meridian_types::Versionstamp;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

fn parse(text: &str) -> Option<Versionstamp> {
    if text.len() != 2 * Versionstamp::LEN {
        return None;
    }
    let mut bytes = [0; Versionstamp::LEN];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(Versionstamp(bytes))
}

pub(crate) fn serialize<S: Serializer>(stamp: &Versionstamp, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&stamp.to_hex())
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Versionstamp, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not a versionstamp")))
}

pub(super) mod optional {
    use meridian_types::Versionstamp;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::history) fn serialize<S: Serializer>(
        stamp: &Option<Versionstamp>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match stamp {
            Some(stamp) => to.serialize_some(&stamp.to_hex()),
            None => to.serialize_none(),
        }
    }

    pub(in crate::history) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Versionstamp>, D::Error> {
        Option::<String>::deserialize(from)?
            .map(|text| {
                super::parse(&text)
                    .ok_or_else(|| D::Error::custom(format!("`{text}` is not a versionstamp")))
            })
            .transpose()
    }
}
