//! Crons of a fleet of programs: each tick of `Deno.cron` runs once, however many programs have the
//! cron, through however many gateways.
//!
//! A gateway or `meridian run` serves a socket on loopback, which Deno finds by
//! `DENO_UNSTABLE_CRON_SOCK`. Behind it is nothing but a database: a tick is claimed by an atomic
//! write with checks, through KV Connect, as any client could. `docs/adr/0033` has the reasons.
//!
//! | module | what it holds |
//! |---|---|
//! | `schedule` | [`Schedule`]: when a cron ticks |
//! | `row` | [`Row`]: the state of a cron, as it is stored |
//! | `step` | [`Step`] and [`Event`]: the questions of a ticker, and the answers that it gets |
//! | `phase` | the states of a ticker |
//! | `ticks` | the ticks of a schedule that have come |
//! | `ticker` | [`Ticker`]: the decisions for one cron of one program; pure |
//! | `lines` | the lines that a program and its socket exchange |
//! | `rows` | rows in a database, over KV Connect |
//! | `boot_clock` | the clock that goes on while a machine is suspended |
//! | `program` | one connected program, with its crons |
//! | `server` | [`CronServer`]: the socket |
//!
//! Invariants:
//! - A tick is claimed by one write, and its handler is called by the claimant alone, while the row
//!   says so.
//! - A tick is not claimed before the time that the cluster logs has reached it, whatever the clock
//!   of a gateway says.
//! - The handler of a cron is not called while another call of it is known to run.
//!
//! Absent on purpose: ticks that came while no program was there. They are not made up.

mod boot_clock;
mod lines;
mod phase;
mod program;
mod row;
mod rows;
mod schedule;
mod server;
mod step;
mod ticker;
mod ticks;

pub use row::{Row, State};
pub use schedule::{InvalidSchedule, Schedule};
pub use server::{CronError, CronServer};
pub use step::{Event, Now, Sight, Step, Version, Warning, Write};
pub use ticker::{LEASE, Ticker};
