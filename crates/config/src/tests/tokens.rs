//! Access tokens in files.

use meridian_types::{Permission, Permissions};

use super::*;

const LINE: &str = "secret = \"a-long-enough-secret\"";

#[test]
fn tokens_are_checked() {
    let line = LINE;
    let tables = "[[tokens]]\nsecret = \"a-long-enough-secret\"\ndatabases = [\"*\"]\naccess = \"read-write\"\n";
    assert_eq!(
        refused(tables, ""),
        "there are no access tokens: at least one [[tokens]] is needed"
    );
    let short = refused(line, "secret = \"hunter2hunter2x\"");
    assert_eq!(short, "token number 1: its `secret` has 15 characters, fewer than 16");
    assert_eq!(
        refused(line, "secret = \"with a space in it all\""),
        "token number 1: its `secret` is not made of visible ASCII characters"
    );
    for digest in ["", "abc", &"g".repeat(64), &"a".repeat(66), &"é".repeat(32)] {
        let digest = refused(line, &format!("secret_sha256 = \"{digest}\""));
        assert_eq!(digest, "token number 1: its `secret_sha256` is not 64 hexadecimal digits");
    }
    // printf %s a-long-enough-secret | sha256sum
    let digest = "1d9bc28f4f099e188e634f27555e6a435b9c6f6d2c490175eee22ff2a5790b9a";
    let again = format!(
        "[[tokens]]\nsecret_sha256 = \"{digest}\"\ndatabases = [\"main\"]\naccess = \"read\"\n"
    );
    assert_eq!(
        refused(tables, &format!("{tables}{again}")),
        "token number 2: it has the same secret as token number 1"
    );
    let databases = |list: &str| refused("[\"*\"]", list);
    assert_eq!(
        databases("[]"),
        "token number 1: its `databases` are none: list names, or \"*\" for all"
    );
    assert_eq!(
        databases("[\"main\", \"*\"]"),
        "token number 1: its `databases` have \"*\" beside names"
    );
    assert_eq!(
        databases("[\"mian\"]"),
        "token number 1: its `databases` have `mian`, which is not the name of a database"
    );
    assert_eq!(
        refused("\"read-write\"", "\"write\""),
        "line 38: unknown variant, expected `read-write` or `read`"
    );

    let config = parse(&with(tables, &again)).unwrap();
    let [token] = &config.tokens[..] else { panic!("one token") };
    assert_eq!(token.secret.sha256(), TokenSecret::Plain(SECRET.to_owned()).sha256());
    assert_eq!(
        token.databases,
        Databases::Only(vec!["00000000-0000-4000-8000-000000000001".parse().unwrap()])
    );
    assert_eq!(token.permissions, Permissions::READ_ONLY);
}

#[test]
fn token_has_one_secret() {
    let line = LINE;
    let sources =
        "of `secret`, `secret_sha256`, `secret_file`, `secret_env` and `secret_credential` is set";
    assert_eq!(refused(line, ""), format!("token number 1: none {sources}"));
    let others = ["secret_sha256", "secret_file", "secret_env", "secret_credential"];
    for (at, other) in others.into_iter().enumerate() {
        let two = refused(line, &format!("{line}\n{other} = \"x\""));
        assert_eq!(two, format!("token number 1: more than one {sources}"));
        for third in &others[..at] {
            let two = refused(line, &format!("{third} = \"x\"\n{other} = \"x\""));
            assert_eq!(two, format!("token number 1: more than one {sources}"));
        }
    }
    assert_eq!(
        refused(line, "secret_file = \"no/such/file\""),
        "token number 1: the file /etc/meridian/no/such/file cannot be read: entity not found"
    );
}

#[test]
fn token_has_one_scope_that_is_of_use() {
    let access = "access = \"read-write\"";
    for wrong in ["", "access = \"read\"\npermissions = [\"read\"]"] {
        assert_eq!(
            refused(access, wrong),
            "token number 1: exactly one of `access` and `permissions` is wanted"
        );
    }
    for wrong in ["[]", "[\"reed\"]", "[\"a-long-enough-secret\"]"] {
        assert_eq!(
            refused(access, &format!("permissions = {wrong}")),
            "token number 1: its `permissions` are some of read, write, watch, enqueue, listen, manage"
        );
    }
    assert_eq!(
        refused(access, "permissions = [\"manage\"]\nprefixes = ['[\"a\"]']"),
        "token number 1: queues are of a whole database: with `prefixes` it cannot have the \
         permission `manage`"
    );
    for wrong in ["users", "[\"a", "[{}]"] {
        assert_eq!(
            refused(access, &format!("{access}\nprefixes = ['[1]', '{wrong}']")),
            "token number 1: number 2 of its `prefixes` is no key, such as [\"users\", 42]"
        );
    }
    assert_eq!(
        refused(access, &format!("{access}\nprefixes = ['[]']")),
        "token number 1: number 1 of its `prefixes` cannot be used: an empty prefix is no limit: \
         leave it out"
    );
    let scoped = with(access, &format!("{access}\nprefixes = ['[\"a\"]', '[\"b\", 1n]']"));
    let scoped = parse(&scoped).unwrap().tokens.remove(0);
    assert_eq!(scoped.permissions, Permissions::ALL.without(Permission::Manage));
    assert!(
        scoped.grant().opens_key(b"\x02b\x00\x15\x01") && !scoped.grant().opens_key(b"\x02b\x00")
    );
}
