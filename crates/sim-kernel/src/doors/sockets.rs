//! TCP over IPv4, without waiting: a call that would wait fails, as its callers want it.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};

use super::poll::open;
use crate::files::{FileKind, Socket};
use crate::kernel::{Held, current, hold};
use crate::network::{Address, Message, ROOM};
use crate::real;
use crate::scheduler::may_give_way;

super::addresses![
    socket,
    bind,
    listen,
    accept4,
    connect,
    getsockname,
    getpeername,
    getsockopt,
    setsockopt,
    shutdown,
    send,
    recv
];

/// The state, and the thread, if the descriptor is a simulated one.
fn simulated(fd: c_int) -> Option<(Held, usize)> {
    let me = current()?;
    let mut kernel = hold();
    kernel.files.socket(fd)?;
    Some((kernel, me))
}

/// # Safety
/// `address` is one, if it is said to be long enough.
unsafe fn address_from(address: *const libc::sockaddr, length: libc::socklen_t) -> Option<Address> {
    if (length as usize) < size_of::<libc::sockaddr_in>() {
        return None;
    }
    // SAFETY: the family says what follows it.
    unsafe {
        if i32::from((*address).sa_family) != libc::AF_INET {
            return None;
        }
        let address = address.cast::<libc::sockaddr_in>().read_unaligned();
        let ip = address.sin_addr.s_addr.to_ne_bytes();
        Some(Address { ip, port: u16::from_be(address.sin_port) })
    }
}

/// # Safety
/// There is room for an address, if any is wanted.
unsafe fn tell(address: Address, to: *mut libc::sockaddr, length: *mut libc::socklen_t) {
    if to.is_null() {
        return;
    }
    // SAFETY: all of it may be zero.
    let mut told: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    told.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0);
    told.sin_port = address.port.to_be();
    told.sin_addr.s_addr = u32::from_ne_bytes(address.ip);
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_in>()).unwrap_or(0);
    // SAFETY: the caller says so.
    unsafe {
        to.cast::<libc::sockaddr_in>().write_unaligned(told);
        length.write(size);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    match current() {
        Some(me) if domain == libc::AF_INET && kind & 0xf == libc::SOCK_STREAM => {
            open(me, FileKind::Socket(Socket::New { address: None }))
        }
        // SAFETY: it has no pointers.
        _ => unsafe { real::socket(domain, kind, protocol) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bind(
    fd: c_int,
    address: *const libc::sockaddr,
    length: libc::socklen_t,
) -> c_int {
    let Some((mut kernel, me)) = simulated(fd) else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::bind(fd, address, length) };
    };
    // SAFETY: as above.
    let Some(mut wanted) = (unsafe { address_from(address, length) }) else {
        return real::fail(libc::EINVAL);
    };
    let machine = kernel.machine_of(me);
    if wanted.port == 0 {
        wanted.port = kernel.machine(machine).next_port();
    } else if kernel.files.listener(machine, wanted.port).is_some() {
        return real::fail(libc::EADDRINUSE);
    }
    if let Some((_, socket)) = kernel.files.socket(fd) {
        *socket = Socket::New { address: Some(wanted) };
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    let Some((mut kernel, _)) = simulated(fd) else {
        // SAFETY: it has no pointers.
        return unsafe { real::listen(fd, backlog) };
    };
    match kernel.files.socket(fd) {
        Some((_, socket)) => {
            let Socket::New { address: Some(address) } = *socket else {
                return real::fail(libc::EINVAL);
            };
            *socket = Socket::Listening { address, waiting: VecDeque::new() };
            0
        }
        None => real::fail(libc::EBADF),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn accept4(
    fd: c_int,
    address: *mut libc::sockaddr,
    length: *mut libc::socklen_t,
    flags: c_int,
) -> c_int {
    let Some((mut kernel, me)) = simulated(fd) else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::accept4(fd, address, length, flags) };
    };
    let connection = match kernel.files.socket(fd) {
        Some((_, Socket::Listening { waiting, .. })) => waiting.pop_front(),
        _ => return real::fail(libc::EINVAL),
    };
    let Some(connection) = connection else { return real::fail(libc::EAGAIN) };
    let peer = kernel.side(connection, 0).map(|side| side.local).unwrap_or_default();
    drop(kernel);
    let accepted = open(me, FileKind::Socket(Socket::Connected { connection, side: 1 }));
    let mut kernel = hold();
    let file = kernel.files.file(accepted);
    if let Some(side) = kernel.side(connection, 1) {
        (side.file, side.waits_for_accept) = (file, false);
    }
    // SAFETY: the arguments are the caller's.
    unsafe { tell(peer, address, length) };
    accepted
}

#[unsafe(no_mangle)]
unsafe extern "C" fn connect(
    fd: c_int,
    address: *const libc::sockaddr,
    length: libc::socklen_t,
) -> c_int {
    let Some((mut kernel, me)) = simulated(fd) else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::connect(fd, address, length) };
    };
    // SAFETY: as above.
    let Some(wanted) = (unsafe { address_from(address, length) }) else {
        return real::fail(libc::EAFNOSUPPORT);
    };
    let machine = kernel.machine_of(me);
    let target = match wanted.ip {
        [127, ..] => Some(machine),
        ip => kernel.machines.iter().position(|known| known.ip == ip),
    };
    let Some(target) = target else { return real::fail(libc::ENETUNREACH) };
    let Some(file) = kernel.files.file(fd) else { return real::fail(libc::EBADF) };
    let on = kernel.machine(machine);
    let ip = if machine == target { wanted.ip } else { on.ip };
    let local = Address { ip, port: on.next_port() };
    let connection = kernel.network.open((machine, local, file), (target, wanted));
    if let Some((_, socket)) = kernel.files.socket(fd) {
        *socket = Socket::Connecting { connection };
    }
    kernel.send(connection, 1, Message::Open);
    real::fail(libc::EINPROGRESS)
}

/// The connection of a descriptor, and the side of it.
fn connected(kernel: &mut Held, fd: c_int) -> Option<(usize, usize)> {
    match kernel.files.socket(fd) {
        Some((_, Socket::Connected { connection, side })) => Some((*connection, *side)),
        Some((_, Socket::Connecting { connection })) => Some((*connection, 0)),
        _ => None,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getsockname(
    fd: c_int,
    address: *mut libc::sockaddr,
    length: *mut libc::socklen_t,
) -> c_int {
    let Some((mut kernel, _)) = simulated(fd) else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::getsockname(fd, address, length) };
    };
    let own = match kernel.files.socket(fd) {
        Some((_, Socket::Listening { address, .. })) => Some(*address),
        Some((_, Socket::New { address })) => *address,
        _ => None,
    };
    let connected = connected(&mut kernel, fd);
    let side = connected.and_then(|(connection, side)| kernel.side(connection, side));
    let local = side.map(|side| side.local).or(own).unwrap_or_default();
    // SAFETY: the arguments are the caller's.
    unsafe { tell(local, address, length) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getpeername(
    fd: c_int,
    address: *mut libc::sockaddr,
    length: *mut libc::socklen_t,
) -> c_int {
    let Some((mut kernel, _)) = simulated(fd) else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::getpeername(fd, address, length) };
    };
    let connected = match kernel.files.socket(fd) {
        Some((_, Socket::Connected { connection, side })) => Some((*connection, *side)),
        _ => None,
    };
    let other = connected.and_then(|(connection, side)| kernel.side(connection, 1 - side));
    let Some(peer) = other.map(|side| side.local) else { return real::fail(libc::ENOTCONN) };
    // SAFETY: the arguments are the caller's.
    unsafe { tell(peer, address, length) };
    0
}

/// The error of a connection that did not come about is asked for; of all else there is none.
#[unsafe(no_mangle)]
unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    length: *mut libc::socklen_t,
) -> c_int {
    let Some((mut kernel, _)) = simulated(fd) else {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::getsockopt(fd, level, name, value, length) };
    };
    let is_error = level == libc::SOL_SOCKET && name == libc::SO_ERROR;
    let error = match kernel.files.socket(fd) {
        Some((_, Socket::Failed { error })) if is_error => *error,
        _ => 0,
    };
    // SAFETY: the caller has room for `length` bytes.
    unsafe {
        value.cast::<u8>().write_bytes(0, *length as usize);
        if *length as usize >= size_of::<c_int>() {
            value.cast::<c_int>().write_unaligned(error);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    length: libc::socklen_t,
) -> c_int {
    match simulated(fd) {
        Some(_) => 0,
        // SAFETY: the arguments are the caller's.
        None => unsafe { real::setsockopt(fd, level, name, value, length) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    let Some((mut kernel, _)) = simulated(fd) else {
        // SAFETY: it has no pointers.
        return unsafe { real::shutdown(fd, how) };
    };
    let Some((connection, side)) = connected(&mut kernel, fd) else {
        return real::fail(libc::ENOTCONN);
    };
    let Some(here) = kernel.side(connection, side) else { return real::fail(libc::ENOTCONN) };
    if how != libc::SHUT_RD && !std::mem::replace(&mut here.has_shut, true) {
        kernel.send(connection, 1 - side, Message::End);
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, from: *const c_void, length: usize, flags: c_int) -> isize {
    if simulated(fd).is_none() {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::send(fd, from, length, flags) };
    }
    // SAFETY: as above.
    unsafe { send_all(fd, &[(from.cast(), length)]) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn recv(fd: c_int, to: *mut c_void, length: usize, flags: c_int) -> isize {
    if simulated(fd).is_none() {
        // SAFETY: the arguments are the caller's.
        return unsafe { real::recv(fd, to, length, flags) };
    }
    // SAFETY: as above.
    unsafe { receive(fd, &[(to.cast(), length)], flags & libc::MSG_PEEK != 0) }
}

/// Sends as much of the parts as there is room for.
///
/// # Safety
/// Each part is as long as it is said to be.
pub(super) unsafe fn send_all(fd: c_int, parts: &[(*const u8, usize)]) -> isize {
    let mut kernel = hold();
    let Some((connection, side)) = connected(&mut kernel, fd) else {
        return real::fail(libc::ENOTCONN);
    };
    let Some(here) = kernel.side(connection, side) else { return real::fail(libc::EPIPE) };
    if here.is_reset || here.has_shut {
        return real::fail(if here.is_reset { libc::ECONNRESET } else { libc::EPIPE });
    }
    let Some(other) = kernel.side(connection, 1 - side) else { return real::fail(libc::EPIPE) };
    let room = ROOM.saturating_sub(other.arrived.len() + other.coming);
    let mut bytes = Vec::new();
    let mut wanted = 0;
    for (part, length) in parts {
        let fits = (*length).min(room - bytes.len());
        wanted += *length;
        // SAFETY: the caller says so.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(*part, fits) });
    }
    let sent = bytes.len();
    other.coming += sent;
    if sent < wanted
        && let Some(here) = kernel.side(connection, side)
    {
        here.is_full = true;
    }
    if sent == 0 && wanted > 0 {
        return real::fail(libc::EAGAIN);
    }
    kernel.send(connection, 1 - side, Message::Data(bytes));
    if let Some(me) = current() {
        may_give_way(kernel, me);
    }
    isize::try_from(sent).unwrap_or(isize::MAX)
}

/// Takes what has arrived, or looks at it.
///
/// # Safety
/// Each part has the room that it is said to have.
pub(super) unsafe fn receive(fd: c_int, parts: &[(*mut u8, usize)], looks_only: bool) -> isize {
    let mut kernel = hold();
    let Some((connection, side)) = connected(&mut kernel, fd) else {
        return real::fail(libc::ENOTCONN);
    };
    let Some(here) = kernel.side(connection, side) else { return real::fail(libc::ECONNRESET) };
    if here.arrived.is_empty() {
        return match (here.is_reset, here.ended) {
            (true, _) => real::fail(libc::ECONNRESET),
            (_, true) => 0,
            _ => real::fail(libc::EAGAIN),
        };
    }
    let mut taken = 0;
    for (part, room) in parts {
        for (at, byte) in here.arrived.iter().skip(taken).take(*room).enumerate() {
            // SAFETY: the caller says so.
            unsafe { part.add(at).write(*byte) };
        }
        taken += (*room).min(here.arrived.len() - taken);
    }
    if !looks_only {
        here.arrived.drain(..taken);
        let is_awaited = kernel.side(connection, 1 - side).is_some_and(|other| other.is_full);
        if is_awaited {
            kernel.send(connection, 1 - side, Message::Room);
        }
    }
    isize::try_from(taken).unwrap_or(isize::MAX)
}
