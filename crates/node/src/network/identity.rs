//! Which cluster a call is meant for.
//!
//! A call between nodes names its cluster as the authority of its requests, as a client of a web
//! server names the host.

use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::Authority;

/// Behind the id of a cluster, in the authority of a call.
const SUFFIX: &str = ".meridian";

/// The address of calls to nodes of this cluster. `None`: that is not the id of a cluster.
pub(crate) fn origin(cluster: &str) -> Option<Uri> {
    format!("http://{cluster}{SUFFIX}").parse().ok()
}

/// The cluster that a call is meant for, if it names one.
pub(crate) fn meant(authority: Option<&Authority>) -> Option<&str> {
    authority?.host().strip_suffix(SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_names_the_cluster_that_it_is_meant_for() {
        let uri = origin("00ff00ff00ff00ff").unwrap();
        assert_eq!(meant(uri.authority()), Some("00ff00ff00ff00ff"));
        for address in ["http://127.0.0.1:4601", "http://node-1.example.com", "http://[::1]:1"] {
            assert_eq!(meant(address.parse::<Uri>().unwrap().authority()), None);
        }
        assert_eq!(origin("no host at all"), None);
    }
}
