//! The wire and disk types, generated from `/proto`, and their conversions to `meridian-types`.
//!
//! Invariants: a conversion checks everything that the target type promises, and its error names
//! the field. A batch carries a checksum that its leader made, and nothing decodes a batch whose
//! bytes are others; every message between processes carries a checksum, which is verified where it
//! arrives (`codec.rs`). Absent on purpose: limits and evaluation.

macro_rules! generated {
    ($(#[$doc:meta])* $name:ident, $package:literal) => {
        $(#[$doc])*
        pub mod $name {
            #![allow(
                clippy::all,
                clippy::indexing_slicing,
                clippy::unwrap_used,
                clippy::too_many_lines,
                missing_docs,
                unreachable_pub,
                reason = "generated code"
            )]
            tonic::include_proto!($package);
        }
    };
}

// The generated code names other packages by their path from here, hence the nesting.
mod meridian {
    pub(crate) mod log {
        generated!(v1, "meridian.log.v1");
    }
    pub(crate) mod raft {
        generated!(v1, "meridian.raft.v1");
    }
    pub(crate) mod shard {
        generated!(v1, "meridian.shard.v1");
    }
    pub(crate) mod queue {
        generated!(v1, "meridian.queue.v1");
    }
    pub(crate) mod shipping {
        generated!(v1, "meridian.shipping.v1");
    }
    pub(crate) mod admin {
        generated!(v1, "meridian.admin.v1");
    }
    pub(crate) mod directory {
        generated!(v1, "meridian.directory.v1");
    }
    pub(crate) mod changes {
        generated!(v1, "meridian.changes.v1");
    }
}
mod com {
    pub(crate) mod deno {
        pub(crate) mod kv {
            generated!(datapath, "com.deno.kv.datapath");
        }
    }
}
mod batch;
mod caller;
mod codec;
mod node_id;
mod shard_report;
mod transaction;

pub use batch::{
    DecodedBatch, InvalidBatch, batch_header, decode_batch, decode_dead_letter, decode_message,
    decode_queue_totals, decode_request, decode_stored, encode_batch, encode_dead_letter,
    encode_message, encode_queue_totals, encode_request, verify_checksum,
};
pub use caller::{CallingNode, speaks_for};
pub use com::deno::kv::datapath as kv_connect;
pub use meridian::admin::v1 as admin;
pub use meridian::changes::v1 as changes;
pub use meridian::directory::v1 as directory;
pub use meridian::log::v1 as log;
pub use meridian::queue::v1 as queue;
pub use meridian::raft::v1 as raft;
pub use meridian::shard::v1 as shard;
pub use meridian::shipping::v1 as shipping;
pub use node_id::{node_id, node_id_to_wire};
pub use shard_report::{shard_report, shard_report_to_wire};
pub use transaction::{
    InvalidTransaction, entry, entry_to_wire, read_range, read_range_to_wire, transaction,
    transaction_to_wire,
};
