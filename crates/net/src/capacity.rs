//! How many files and sockets this process may open, and how many of them clients may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For RocksDB (512 tables), its logs, orphan files, and connections to and from other nodes.
const RESERVED: u64 = 2048;

/// Raises the soft limit to the hard one, as RocksDB and every gateway want it. Returns how many
/// files this process may open; `u64::MAX`: as many as it likes.
///
/// Shells and service managers start programs with a soft limit of 1,024, for the sake of `select`.
/// A database that meets it cannot open its next table, and stops.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    current.unwrap_or(u64::MAX)
}

/// How many connections of clients this process can serve, at most `configured`, with `files` open.
pub fn client_connections(configured: usize, files: u64) -> usize {
    // With few files, a quarter of them: a node that cannot open a table serves no client.
    let free = files.saturating_sub(RESERVED).max(files / 4);
    let allowed = configured.min(usize::try_from(free).unwrap_or(usize::MAX)).max(1);
    if allowed < configured {
        tracing::warn!(
            configured,
            allowed,
            files,
            "this process may not open enough files for so many connections: raise its limit (ulimit -n, LimitNOFILE)"
        );
    }
    allowed
}

/// How many connections of clients there is memory for, at most `configured`: half of
/// `headroom_bytes`, the memory that no other purpose has, at `connection_bytes` each, as much as a
/// client without a token can make each connection hold.
pub fn connections_within_memory(
    configured: usize,
    headroom_bytes: usize,
    connection_bytes: usize,
) -> usize {
    let room = (headroom_bytes / 2 / connection_bytes.max(1)).max(1);
    if room < configured {
        tracing::warn!(
            configured,
            allowed = room,
            "this process has no memory for so many connections: raise max_memory_mb, or lower max_connections"
        );
    }
    configured.min(room)
}

/// How many connections of nodes and gateways this process can serve, of `wanted`, with `files`
/// open.
pub fn rpc_connections(wanted: usize, files: u64) -> usize {
    wanted.min(usize::try_from(files / 4).unwrap_or(usize::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use meridian_memory::Shares;

    use super::*;

    #[test]
    fn connections_take_at_most_half_of_the_free_memory() {
        let of = |mb: usize| {
            connections_within_memory(8192, Shares::of_node(mb << 20).headroom(), 48 * 1024)
        };
        assert_eq!((of(320), of(1024), of(4096)), (682, 2184, 8192));
        assert_eq!(connections_within_memory(5, Shares::of_node(0).headroom(), 48 * 1024), 5);
    }

    #[test]
    fn clients_leave_files_for_the_database() {
        assert_eq!(client_connections(8192, u64::MAX), 8192);
        assert_eq!(client_connections(8192, 1 << 20), 8192);
        assert_eq!(client_connections(8192, 4096), 2048);
        assert_eq!(client_connections(8192, 1024), 256);
        assert_eq!(client_connections(10, 1024), 10);
        assert_eq!(client_connections(10, 0), 1);
    }

    #[test]
    fn other_nodes_and_gateways_leave_files_for_the_database() {
        assert_eq!(rpc_connections(1024, u64::MAX), 1024);
        assert_eq!(rpc_connections(1024, 4096), 1024);
        // Half is for what is stored.
        assert_eq!((rpc_connections(1024, 1024), client_connections(8192, 1024)), (256, 256));
        assert_eq!(rpc_connections(1024, 0), 1);
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let files = raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(files, limit.maximum.unwrap_or(u64::MAX));
    }
}
