//! The lines of JSON that a program and its cron socket exchange, as Deno 2.9.6 has them.
//!
//! | from | line | meaning |
//! |---|---|---|
//! | program | `register` | it has these crons; a name that it has already is replaced |
//! | socket | `invoke` | call the handler; no other call of the cron may be open |
//! | program | `result` | the handler has ended |
//! | socket | `reject-new-crons` | every later `Deno.cron` of the program throws, for this reason |
//! | program | `reject-ack` | it knows |

use serde::{Deserialize, Serialize};

/// A line with many crons of the longest names and schedules has fewer bytes.
pub(crate) const MAX_BYTES: usize = 64 * 1024;

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum FromProgram {
    Register {
        crons: Vec<Registration>,
    },
    Result {
        name: String,
        success: bool,
    },
    RejectAck,
    /// Of a later version of Deno.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Registration {
    pub(crate) name: String,
    pub(crate) schedule: String,
    /// Milliseconds.
    #[serde(default)]
    pub(crate) backoff_schedule: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum ToProgram<'a> {
    Invoke { name: &'a str },
    RejectNewCrons { reason: &'a str },
}

impl ToProgram<'_> {
    /// Without its end.
    pub(crate) fn line(&self) -> String {
        // Texts always have a JSON.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_that_deno_writes_and_reads() {
        let read = |line: &str| serde_json::from_str::<FromProgram>(line).unwrap();
        let registration = |backoff_schedule| FromProgram::Register {
            crons: vec![Registration {
                name: "a b".to_owned(),
                schedule: "* * * * *".to_owned(),
                backoff_schedule,
            }],
        };
        let line = r#"{"kind":"register","crons":[{"name":"a b","schedule":"* * * * *"}]}"#;
        assert_eq!(read(line), registration(None));
        let line = r#"{"kind":"register","crons":[{"name":"a b","schedule":"* * * * *","backoff_schedule":[1]}]}"#;
        assert_eq!(read(line), registration(Some(vec![1])));
        let result = FromProgram::Result { name: "a b".to_owned(), success: false };
        assert_eq!(read(r#"{"kind":"result","name":"a b","success":false}"#), result);
        assert_eq!(read(r#"{"kind":"reject-ack"}"#), FromProgram::RejectAck);
        assert_eq!(read(r#"{"kind":"later"}"#), FromProgram::Unknown);
        let invoke = ToProgram::Invoke { name: "a b" };
        assert_eq!(invoke.line(), r#"{"kind":"invoke","name":"a b"}"#);
        let reject = ToProgram::RejectNewCrons { reason: "\"" };
        assert_eq!(reject.line(), r#"{"kind":"reject-new-crons","reason":"\""}"#);
    }
}
