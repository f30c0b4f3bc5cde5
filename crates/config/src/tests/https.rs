//! Certificates, proxies, and plain HTTP that is meant.

use super::*;

fn gateway(fields: &str) -> String {
    with("[gateway]\n", &format!("[gateway]\n{fields}\n"))
}

#[test]
fn certificates_lie_beside_the_file_and_a_key_may_be_in_the_same_one() {
    let files = "[[gateway.certificates]]\ncertificate = \"tls/a.crt\"\nkey = \"/run/a.key\"\n\
                 [[gateway.certificates]]\ncertificate = \"b.pem\"";
    let config = parse(&gateway(files)).unwrap();
    let of = |certificate: &str, key: &str| CertificateFiles {
        certificate: certificate.into(),
        key: key.into(),
    };
    let expected = [
        of("/etc/meridian/tls/a.crt", "/run/a.key"),
        of("/etc/meridian/b.pem", "/etc/meridian/b.pem"),
    ];
    assert_eq!(config.gateway.certificates, expected);
    // They may stand at the end of a file as well.
    let at_the_end = format!("{NODE}\n{files}");
    assert_eq!(parse(&at_the_end).unwrap().gateway.certificates, expected);
}

#[test]
fn proxies_are_networks_and_insecure_is_said_where_there_is_no_certificate() {
    let config = parse(&gateway("insecure = true\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]"));
    let gateway_of = config.unwrap().gateway;
    assert!(gateway_of.insecure && gateway_of.trusted_proxies.networks().len() == 2);
    assert_eq!(
        refused_text(&gateway("trusted_proxies = [\"proxy\"]")),
        "gateway.trusted_proxies: `proxy` is no IP address and no network such as 10.0.0.0/8"
    );
    let both = "insecure = true\n[[gateway.certificates]]\ncertificate = \"a.crt\"";
    let text = refused_text(&gateway(both));
    assert!(text.starts_with("gateway.insecure says that clients come in the clear"), "{text}");
    let many = "[[gateway.certificates]]\ncertificate = \"a.crt\"\n".repeat(65);
    assert_eq!(
        refused_text(&gateway(&many)),
        "the number of [[gateway.certificates]] is 65: it must lie between 0 and 64"
    );
}
