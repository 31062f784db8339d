//! The servers.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Ipv6Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::thread;

use crate::names;
use crate::pattern;
use crate::pattern::BLOCK;

/// Bytes of a request: what it is, and how many bytes.
pub(crate) const REQUEST: usize = 9;
/// Requests: bytes for the client, bytes from it.
pub(crate) const GET: u8 = b'g';
pub(crate) const PUT: u8 = b'p';
/// What the server says when all bytes that it got are right.
pub(crate) const RIGHT: u8 = b'+';

/// Serves until it is ended.
pub(crate) fn serve(port: u16, names: bool) -> io::Result<()> {
    // Both versions of IP, which is Linux's default for this address.
    let any = (Ipv6Addr::UNSPECIFIED, port);
    let (listener, echo) = (TcpListener::bind(any)?, UdpSocket::bind(any)?);
    if names {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, names::PORT))?;
        thread::spawn(move || names::serve(&socket));
    }
    thread::spawn(move || echo_datagrams(&echo));
    println!("ready");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = answer(stream) {
                eprintln!("a connection: {error}");
            }
        });
    }
    Ok(())
}

fn echo_datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (count, peer) = socket.recv_from(&mut buffer)?;
        // An echo that does not go is one that was lost.
        let _ = socket.send_to(&buffer[..count], peer);
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; REQUEST];
    stream.read_exact(&mut request)?;
    let [kind, bytes @ ..] = request;
    let bytes = u64::from_be_bytes(bytes);
    match kind {
        GET => give(&mut stream, bytes),
        PUT => {
            take(&mut stream, bytes)?;
            stream.write_all(&[RIGHT])
        }
        _ => Err(io::Error::other(format!("request {kind:#x} is none"))),
    }
}

/// Sends so many bytes.
pub(crate) fn give(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    for at in (0..bytes).step_by(BLOCK) {
        pattern::fill(&mut block, at);
        let count = usize::try_from(bytes - at).unwrap_or(BLOCK).min(BLOCK);
        stream.write_all(&block[..count])?;
    }
    Ok(())
}

/// Takes so many bytes and checks each.
pub(crate) fn take(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let (mut block, mut right) = (vec![0; BLOCK], vec![0; BLOCK]);
    for at in (0..bytes).step_by(BLOCK) {
        let count = usize::try_from(bytes - at).unwrap_or(BLOCK).min(BLOCK);
        stream.read_exact(&mut block[..count])?;
        pattern::fill(&mut right, at);
        if block[..count] != right[..count] {
            return Err(io::Error::other(format!("a byte in the block at {at} is wrong")));
        }
    }
    Ok(())
}
